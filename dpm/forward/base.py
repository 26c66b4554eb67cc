"""`ForwardProcess`: what every forward process q offers, Section 2.1."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Generator, Tensor

from dpm.distributions import Distribution
from dpm.schedules import log_alpha_bar


def sum_except_batch(values: Tensor) -> Tensor:
    """Sum over all but the batch: [B, …] → [B], also where B is 0."""
    return values.reshape(len(values), math.prod(values.shape[1:])).sum(1)


class ForwardProcess(ABC):
    """q(x^{0…T}), equation (3): a Markov chain that turns data x⁰ [B, …] into the prior π in T steps.

    A timestep t is an int, the same for the whole batch, or a LongTensor [B], one per sample. Methods that return a
    Distribution return one that is independent over the entries of x. Probabilities come from float64 tables of T+1
    slots; slot 0 means "no noise".
    """

    states: Tensor | None = None  #: the values that an entry of x^t can take, None for real numbers
    reversible = True  #: T_π(y|x) π(x) = T_π(x|y) π(y): the kernel is its own reversal under π, as in (44)

    def __init__(self, beta: Tensor):
        self.beta = beta  #: β_t, [T+1]
        self.T = len(beta) - 1  #: number of steps
        self.log_alpha_bar = log_alpha_bar(beta)  #: log ᾱ_t, [T+1]
        self.alpha_bar = self.log_alpha_bar.exp()  #: ᾱ_t = Π_{s≤t} (1−β_s), [T+1]: the share of the signal left
        self.noise_variance = -torch.expm1(self.log_alpha_bar)  #: 1 − ᾱ_t, [T+1], computed without cancellation

    def with_beta(self, beta: Tensor) -> Self:
        """The same kernel with another schedule, [T+1]."""
        return type(self)(beta)

    def sample_noise(self, x: Tensor, generator: Generator) -> Tensor:
        """Noise shaped like x, of the kind that `Distribution.reparameterize` takes: uniform, for discrete x."""
        return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    @abstractmethod
    def prior(self, x: Tensor) -> Distribution:
        """π, equation (1), for a batch shaped like x."""

    @abstractmethod
    def transition(self, x: Tensor, t: int | Tensor) -> Distribution:
        """q(x^t | x^{t−1} = x), equation (2)."""

    @abstractmethod
    def marginal(self, x0: Tensor, t: int | Tensor) -> Distribution:
        """q(x^t | x⁰): t steps at once."""

    def posterior(self, xt: Tensor, x0: Tensor, t: int | Tensor) -> Distribution:
        """q(x^{t−1} | x^t, x⁰) by Bayes' rule, (47)-(48): the target of every reverse step in (14).

        A known x⁰ is its own mean and has variance 0.
        """
        return self.posterior_from_moments(xt, x0, 0.0, t)

    @abstractmethod
    def posterior_from_moments(
        self, xt: Tensor, mean: Tensor, variance: Tensor | float, t: int | Tensor
    ) -> Distribution:
        """The factored distribution nearest in KL to q(x^{t−1} | x^t), given mean and variance of x⁰ | x^t.

        It has the mean and variance of each entry. This is how a prediction of x⁰ becomes a reverse step.
        """

    @abstractmethod
    def log_likelihood(self, xt: Tensor, points: Tensor, t: int | Tensor) -> Tensor:
        """log q(x^t | x⁰ = point) up to a constant in the point: x^t [B, D], points [M, D] → [B, M] nats."""

    def final_step(self, p: Callable[..., Distribution], x1: Tensor) -> Distribution:
        """p(x⁰|x¹) where the reverse model p names no final step of its own: the "edge step" of Appendix B.2.

        p(x⁰|x¹) = q(x¹|x⁰) π(x⁰)/π(x¹) = T_π(x⁰|x¹; β_1), equation (44): set, not learned. The second equality is
        detailed balance, so a process that is not `reversible` must override this.
        """
        return self.transition(x1, 1)

    def entropy_constants(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """H_q(X^T|X⁰), H_q(X¹|X⁰) and H_p(X^T) of (14), [B] nats each."""
        distributions = self.marginal(x0, self.T), self.marginal(x0, 1), self.prior(x0)
        at_T, at_1, prior = (sum_except_batch(distribution.entropy()) for distribution in distributions)
        return at_T, at_1, prior

    def transition_entropy(self, x0: Tensor, t: int | Tensor) -> Tensor:
        """H_q(X^t|X^{t−1}) given x⁰, [B] nats.

        The entropy of a transition is a constant for real numbers and linear in x^{t−1} for a bit, so that its mean
        follows from the mean of x^{t−1}. A process of which neither is true overrides this.
        """
        from_zero, from_one = (self.transition(torch.full_like(x0, bit), t).entropy() for bit in (0.0, 1.0))
        return sum_except_batch(from_zero + (from_one - from_zero) * self.marginal(x0, t - 1).mean)

    def blurred_marginal(self, points: Tensor, variance: float, t: int | Tensor) -> Distribution:
        """q(x^t) for x⁰ ~ N(point, variance · I), one per row of points [M, D]; bits take variance 0."""
        if variance:
            raise ValueError("only a process on real numbers can be blurred by normal noise; take variance 0")
        return self.marginal(points, t)
