"""Bernoulli diffusion, the paper's "binomial" kernel, Table App.1, right column: bits are drawn anew from the prior."""

import math
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from dpm.distributions import Bernoulli
from dpm.forward.base import ForwardProcess, sum_except_batch
from dpm.schedules import extract


class BernoulliForward(ForwardProcess):
    """q(x^t|x^{t−1}) = B(x^{t−1}(1−β_t) + π(1) β_t): with probability β_t a bit is drawn anew from the prior.

    π(1) = `prior_prob`: 0.5 in Table App.1, 0.2 for the heartbeat (Appendix D.1.2). beta is [T+1], slot 0 is 0.
    """

    states = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def __init__(self, beta: Tensor, prior_prob: float = 0.5):
        super().__init__(beta)
        self.prior_prob = prior_prob  #: π(1)
        self.prior_logit = math.log(prior_prob / (1 - prior_prob))
        marginal = self._bit_transition(self.alpha_bar, self.noise_variance)  # [T+1, x⁰, x^t]
        self._log_ratios = pad((marginal[1:, 1] / marginal[1:, 0]).log(), (0, 0, 1, 0))  # [T+1, x^t]
        prior = self._bit_transition(beta.new_zeros(1), beta.new_ones(1))[0]
        # H_q(X^T|x⁰), H_q(X¹|x⁰) and H_p(X^T) of a bit, for x⁰ = 0 and 1: [2, 3]
        self._bit_entropies = torch.special.entr(torch.stack([marginal[-1], marginal[1], prior])).sum(2).T
        step = self._bit_transition(1 - beta[1:], beta[1:])
        joint = torch.einsum("tbs,tsa->tsab", marginal[:-1], step)
        # q(x^{t−1} = s | x^t = a, x⁰ = b), [T+1, s, a, b], slot 0 unused
        self._posterior_table = pad(joint / joint.sum(1, keepdim=True), (0, 0, 0, 0, 0, 0, 1, 0))

    def with_beta(self, beta: Tensor) -> Self:
        """The same kernel with another schedule, [T+1]."""
        return type(self)(beta, self.prior_prob)

    def _bit_transition(self, kept: Tensor, redrawn: Tensor) -> Tensor:
        """Probabilities that a bit turns into another, [T, from, to], where it is kept or redrawn with these."""
        prior = redrawn.new_tensor([1 - self.prior_prob, self.prior_prob])
        return kept[:, None, None] * torch.eye(2).to(kept) + redrawn[:, None, None] * prior

    def _redrawn(self, x: Tensor, kept: Tensor, redrawn: Tensor) -> Bernoulli:
        one = x * kept + self.prior_prob * redrawn
        return Bernoulli(probs=(one, (1 - x) * kept + (1 - self.prior_prob) * redrawn))

    def prior(self, x: Tensor) -> Bernoulli:
        """π, equation (1)."""
        return Bernoulli(torch.full_like(x, self.prior_logit))

    def transition(self, x: Tensor, t: int | Tensor) -> Bernoulli:
        """q(x^t | x^{t−1}) = B(x^{t−1}(1−β_t) + π(1) β_t), equation (2)."""
        beta = extract(self.beta, t, x)
        return self._redrawn(x, 1 - beta, beta)

    def marginal(self, x0: Tensor, t: int | Tensor) -> Bernoulli:
        """q(x^t | x⁰) = B(x⁰ ᾱ_t + π(1)(1−ᾱ_t))."""
        return self._redrawn(x0, extract(self.alpha_bar, t, x0), extract(self.noise_variance, t, x0))

    def posterior_from_moments(self, xt: Tensor, mean: Tensor, variance: Tensor | float, t: int | Tensor) -> Bernoulli:
        """The bits nearest in KL to q(x^{t−1} | x^t), given P(x⁰ = 1 | x^t) = mean; a bit's variance is not needed."""
        table = self._posterior_table[t] if not isinstance(t, Tensor) else self._posterior_table.index_select(0, t)
        # [s, a, b, B or 1, 1…], contiguous, since all that follows inherits its memory layout
        table = table.to(xt.dtype).reshape(-1, 8).T.contiguous().reshape(2, 2, 2, -1, *[1] * (xt.dim() - 1))
        given_x0 = (1 - xt) * table[:, 0] + xt * table[:, 1]  # [s, b, B, …], exact for bits
        zero, one = torch.lerp(given_x0[:, 0], given_x0[:, 1], mean).unbind()
        return Bernoulli(probs=(one, zero))

    def log_likelihood_ratio(self, xt: Tensor, t: int | Tensor) -> Tensor:
        """log q(x^t_i | x⁰_i = 1)/q(x^t_i | x⁰_i = 0), nats: all that x^t_i says of x⁰_i."""
        for_zero, for_one = (extract(table, t, xt) for table in self._log_ratios.unbind(1))
        return for_zero + xt * (for_one - for_zero)

    def log_likelihood(self, xt: Tensor, points: Tensor, t: int | Tensor) -> Tensor:
        """log q(x^t | x⁰ = point) up to a constant in the point: x^t [B, D], points [M, D] → [B, M] nats."""
        return self.log_likelihood_ratio(xt, t) @ points.T

    def entropy_constants(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """H_q(X^T|X⁰), H_q(X¹|X⁰) and H_p(X^T) of (14), [B] nats each: a constant per 0 and a constant per 1 of x⁰."""
        ones = sum_except_batch(x0)
        counts = torch.stack([x0[0].numel() - ones, ones], dim=1)
        at_T, at_1, prior = (counts @ self._bit_entropies.to(x0.dtype)).unbind(1)
        return at_T, at_1, prior
