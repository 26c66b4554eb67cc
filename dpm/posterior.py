"""Posteriors p̃(x⁰) ∝ p(x⁰) r(x⁰), Section 2.5, Table App.1 and Appendix C: a model times a likelihood r.

r is a `GaussianLikelihood`, a `BernoulliLikelihood` or a `GradientGuidance`. An RSchedule says what stands for it in
mid-trajectory, r(x^t): `constant`, `annealed` or `diffused`. The perturbed kernels (22) reach p̃(x⁰) approximately;
with importance weights and resampling they reach it exactly.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from dpm.distributions import Bernoulli, Distribution, Normal
from dpm.forward import ForwardProcess, sum_except_batch
from dpm.importance import effective_sample_size
from dpm.reverse import ReverseModel, reverse_step
from dpm.schedules import extract


class Likelihood(ABC):
    """r(x) of equation (16), over x [B, …]; it multiplies one reverse transition at a time, as in (22)."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log r(x), [B] nats."""

    @abstractmethod
    def multiply(self, distribution: Distribution) -> Distribution:
        """p̃ ∝ p · r, equation (22), for one reverse transition p."""

    @abstractmethod
    def temper(self, power: Tensor) -> "Likelihood":
        """r^power up to a constant; power [B, 1, …]."""

    def diffused(self, q: ForwardProcess, t: int | Tensor, x: Tensor) -> "Likelihood":
        """E r over t forward steps from x, up to a constant. TypeError where that is not known."""
        raise TypeError(f"the mean of a {type(self).__name__} over q is not known; take `constant` or `annealed`")

    def log_normalizer(self, distribution: Distribution, x: Tensor) -> Tensor:
        """log p(x) r(x)/p̃(x), [B] nats: log Z̃_t(x^{t+1}) of (22) where p̃ is the exact product, else a log weight."""
        return sum_except_batch(distribution.log_prob(x) - self.multiply(distribution).log_prob(x)) + self.log_prob(x)


@dataclass(frozen=True)
class GaussianLikelihood(Likelihood):
    """r(x) = N(y; x, variance), Section 2.5.3: an observation y of x under normal noise, multiplied exactly.

    y and variance broadcast with x. Variance 0 is a known coordinate (the delta of inpainting), ∞ a missing one.
    """

    y: Tensor  #: what was observed
    variance: Tensor  #: of the observation's noise

    def log_prob(self, x: Tensor) -> Tensor:
        """log r(x), [B] nats; a missing coordinate adds nothing."""
        return self._over_observed(Normal(x, self.variance).log_prob(self.y))

    def multiply(self, distribution: Distribution) -> Distribution:
        """The product of two Gaussians. TypeError for bits and for a full covariance."""
        return distribution.observe(self.y, self.variance)

    def log_normalizer(self, distribution: Distribution, x: Tensor) -> Tensor:
        """log N(y; mean, variance of both), [B] nats, for any x."""
        return self._over_observed(distribution.add_noise(self.variance).log_prob(self.y))

    def temper(self, power: Tensor) -> "GaussianLikelihood":
        """The same observation with its variance divided by the power."""
        return GaussianLikelihood(self.y, torch.where(power > 0, self.variance / power, math.inf))

    def diffused(self, q: ForwardProcess, t: int | Tensor, x: Tensor) -> "GaussianLikelihood":
        """E r over t forward steps from x: N(y; x√ᾱ_t, variance + 1 − ᾱ_t), as a function of x, up to a constant."""
        alpha_bar, noise_variance = extract(q.alpha_bar, t, x), extract(q.noise_variance, t, x)
        y = torch.where(alpha_bar > 0, self.y / alpha_bar.sqrt(), 0.0)
        return GaussianLikelihood(y, (self.variance + noise_variance) / alpha_bar)

    def _over_observed(self, log_prob: Tensor) -> Tensor:
        return sum_except_batch(torch.where(self.variance.isinf(), torch.zeros_like(log_prob), log_prob))


@dataclass(frozen=True)
class BernoulliLikelihood(Likelihood):
    """r(x) = Π_i B(x_i; d_i), Table App.1: an uncertain observation of each bit, multiplied exactly.

    `logits` broadcasts with x. ±∞ is a known bit (the delta), 0 an unobserved one.
    """

    logits: Tensor  #: log d/(1−d)

    def log_prob(self, x: Tensor) -> Tensor:
        """log r(x), [B] nats."""
        return sum_except_batch(logsigmoid(torch.where(x > 0.5, self.logits, -self.logits)))

    def multiply(self, distribution: Distribution) -> Distribution:
        """The product of two Bernoullis: logits add. TypeError for anything else."""
        self._check_bits(distribution)
        return distribution.tilt(self.logits)

    def log_normalizer(self, distribution: Distribution, x: Tensor) -> Tensor:
        """Σ_i log(c_i d_i + (1−c_i)(1−d_i)), [B] nats; c_i, d_i are P(x_i = 1) by distribution and r; x is unused."""
        return sum_except_batch(self._log_mean(distribution))

    def temper(self, power: Tensor) -> "BernoulliLikelihood":
        """The same observation with its logits times the power."""
        return BernoulliLikelihood(torch.where(power > 0, power * self.logits, 0.0))  # 0 also where a logit is ±∞

    def diffused(self, q: ForwardProcess, t: int | Tensor, x: Tensor) -> "BernoulliLikelihood":
        """E r over t forward steps from x, up to a constant."""
        log_one, log_zero = (self._log_mean(q.marginal(torch.full_like(x, bit), t)) for bit in (1.0, 0.0))
        return BernoulliLikelihood(log_one - log_zero)

    def _check_bits(self, distribution: Distribution) -> None:
        if not hasattr(distribution, "logits"):
            raise TypeError(
                f"a BernoulliLikelihood multiplies bits with logits, not a {type(distribution).__name__}; "
                "take a GaussianLikelihood for real numbers, GradientGuidance for others"
            )

    def _log_mean(self, distribution: Distribution) -> Tensor:
        """log(c d + (1−c)(1−d)) per bit: the denominator of Table App.1, with c_i where it prints x_i."""
        self._check_bits(distribution)
        bits = Bernoulli(distribution.logits)  # type: ignore[attr-defined]
        (log_c, log_not_c), (log_d, log_not_d) = bits.log_probs, Bernoulli(self.logits).log_probs
        return torch.logaddexp(log_c + log_d, log_not_c + log_not_d)


@dataclass(frozen=True)
class GradientGuidance(Likelihood):
    """Any differentiable log r, [B, …] → [B], multiplied to first order at the mean: Table App.1, (52)-(61).

    A Gaussian's mean moves by f_Σ ∂log r/∂x, (61); a bit's logit moves by ∂log r/∂x. Later papers call it guidance.
    """

    log_r: Callable[[Tensor], Tensor]
    power: Tensor | float = 1.0

    def log_prob(self, x: Tensor) -> Tensor:
        """log r(x), [B] nats."""
        return torch.as_tensor(self.power, dtype=x.dtype, device=x.device).flatten() * self.log_r(x)

    def multiply(self, distribution: Distribution) -> Distribution:
        """The distribution tilted by the gradient of log r at its mean."""
        with torch.enable_grad():
            mean = distribution.mean.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_r(mean).sum(), mean)
        return distribution.tilt(self.power * gradient)

    def temper(self, power: Tensor) -> "GradientGuidance":
        """The same guidance at a power of r."""
        return GradientGuidance(self.log_r, self.power * power)


RSchedule = Callable[..., Likelihood]  #: (r, q, t, x) → r(x^t), made from r(x⁰)


def constant(r: Likelihood, q: ForwardProcess, t: int | Tensor, x: Tensor) -> Likelihood:
    """r(x^t) = r(x⁰), equation (23)."""
    return r


def annealed(r: Likelihood, q: ForwardProcess, t: int | Tensor, x: Tensor) -> Likelihood:
    """r(x^t) = r(x⁰)^{(T−t)/T}, Section 2.5.4: it leaves the start p(x^T) as it is."""
    return r.temper(extract(1 - torch.arange(q.T + 1, dtype=torch.float64, device=x.device) / q.T, t, x))


def diffused(r: Likelihood, q: ForwardProcess, t: int | Tensor, x: Tensor) -> Likelihood:
    """r(x^t) = E r(x⁰) over t forward steps from x^t. Ours. TypeError for `GradientGuidance`, whose mean is not known.

    By detailed balance (22) is then exact at t = 1 with the edge step (44), and at every t for data drawn from π.
    """
    return r.diffused(q, t, x)


@torch.no_grad()
def posterior_trajectory(
    p: ReverseModel,
    q: ForwardProcess,
    r: Likelihood,
    like: Tensor,
    generator: Generator,
    r_schedule: RSchedule = constant,
    resample_below: float = 0.0,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Sample by the perturbed kernels (22), start and final step included: yields (t, x^t, log weight [B]).

    Weighted, x^t follows p(x^t) r(x^t) as (16)-(20) ask, and the mean weight estimates Z̃_t: each step's weight is (21)
    over (22), up to a factor that all x^t share. The batch is resampled when its effective sample size falls below the
    share `resample_below` of it; then every row must have the same r.
    """
    distribution, previous_log_r = q.prior(like), like.new_zeros(len(like))
    log_weight = like.new_zeros(len(like))
    for t in range(q.T, -1, -1):
        r_t = r_schedule(r, q, t, like)
        x = r_t.multiply(distribution).reparameterize(q.sample_noise(like, generator))
        log_weight = log_weight + r_t.log_normalizer(distribution, x) - previous_log_r
        if resample_below and not effective_sample_size(log_weight) >= resample_below * len(x):  # nan is refused there
            x, log_weight = resample(x, log_weight, generator)
        yield t, x, log_weight
        if t > 0:
            distribution, previous_log_r = reverse_step(p, q, x, t), r_t.log_prob(x)


def sample_posterior(
    p: ReverseModel,
    q: ForwardProcess,
    r: Likelihood,
    like: Tensor,
    generator: Generator,
    r_schedule: RSchedule = constant,
    resample_below: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """x⁰ shaped like `like`, and log weights [B]: the end of a `posterior_trajectory`."""
    trajectory = posterior_trajectory(p, q, r, like, generator, r_schedule, resample_below)
    [(_, x0, log_weight)] = deque(trajectory, maxlen=1)
    return x0, log_weight


def resample(x: Tensor, log_weight: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Systematic resampling: each row as often as its weight asks; afterwards all weights are their mean."""
    share, n = log_weight.softmax(0), len(x)
    if share.isnan().any():
        raise ValueError(
            "these weights do not exist: no row is possible, or a delta on real numbers is held at every t; "
            "use `diffused`"
        )
    grid = torch.arange(n, device=x.device) + torch.rand(1, generator=generator, dtype=x.dtype, device=x.device)
    index = torch.searchsorted(share.cumsum(0), grid / n).clamp(max=n - 1)
    return x[index], (log_weight.logsumexp(0) - math.log(n)).expand(n)
