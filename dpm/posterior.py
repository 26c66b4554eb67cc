"""Multiplying distributions, Section 2.5, Table App.1 and Appendix C: samples of p̃(x⁰) ∝ p(x⁰) r(x⁰).

The second distribution r is a `Noisy`, a `Hint` or a `Smooth`. What stands for it in mid-trajectory, r(x^t), is chosen
by `constant`, `fading` or `carried`. The kernels alone reach p̃(x⁰) only roughly; with their weights they reach it.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from dpm.bound import effective_size, per_sample
from dpm.forward import Binomial, Bits, Chain, Gaussian, Law, Normal, at_time, everywhere
from dpm.reverse import Reverse, step_back


class Factor(ABC):
    """r of equation (16), over x [B, …]. It is multiplied into one law at a time, as in (22)."""

    @abstractmethod
    def log(self, x: Tensor) -> Tensor:
        """log r(x), [B] nats."""

    @abstractmethod
    def times(self, law: Law) -> Law:
        """p̃ ∝ p·r, equation (22), for one law p of the reverse trajectory."""

    @abstractmethod
    def power(self, share: Tensor) -> "Factor":
        """r^share up to a constant, share [B, 1, …]."""

    def log_weight(self, law: Law, x: Tensor) -> Tensor:
        """log p(x) r(x)/p̃(x), [B] nats: where p̃ is the exact product, the log normaliser log Z̃_t(x^{t+1}) of (22)."""
        return per_sample(law.log_prob(x) - self.times(law).log_prob(x)) + self.log(x)


@dataclass(frozen=True)
class Noisy(Factor):
    """r(x) = N(y; x, variance), Section 2.5.3: a look at x through noise, multiplied exactly.

    y and variance are shaped to broadcast with x. Variance 0 is a coordinate known (the delta), ∞ one not seen.
    """

    y: Tensor
    variance: Tensor

    def log(self, x: Tensor) -> Tensor:
        return self._of_y(x, self.variance)

    def times(self, law: Law) -> Normal:
        gain = law.variance / (law.variance + self.variance)
        return Normal((1 - gain) * law.mean + gain * self.y, (1 - gain) * law.variance)

    def log_weight(self, law: Law, x: Tensor) -> Tensor:
        return self._of_y(law.mean, law.variance + self.variance)

    def power(self, share: Tensor) -> "Noisy":
        return Noisy(self.y, torch.where(share > 0, self.variance / share, math.inf))

    def carried(self, q: Gaussian, t: Tensor, x: Tensor) -> "Noisy":
        """E r over t steps of the chain from x: N(y; x√ᾱ_t, variance + 1 − ᾱ_t), as a function of x."""
        signal, noise = at_time(q.alpha_bar, t, x), at_time(q.noise_level, t, x)
        y = torch.where(signal > 0, self.y / signal.sqrt(), 0.0)
        return Noisy(y, (self.variance + noise) / signal)

    def _of_y(self, mean: Tensor, variance: Tensor) -> Tensor:
        density = Normal(mean, variance).log_prob(self.y)
        return per_sample(torch.where(self.variance.isinf(), torch.zeros_like(density), density))


@dataclass(frozen=True)
class Hint(Factor):
    """r(x) = Π_i B(x_i; d_i), Table App.1, by the log odds of d: a doubtful word on each bit, multiplied exactly.

    log_odds is shaped to broadcast with x. ±∞ is a bit known (the delta), 0 one not heard of.
    """

    log_odds: Tensor  #: log d/(1−d)

    def log(self, x: Tensor) -> Tensor:
        return per_sample(logsigmoid(torch.where(x > 0.5, self.log_odds, -self.log_odds)))

    def times(self, law: Law) -> Bits:
        return Bits(_bits(law).logits + self.log_odds)

    def log_weight(self, law: Law, x: Tensor) -> Tensor:
        return per_sample(self._expected(_bits(law)))

    def power(self, share: Tensor) -> "Hint":
        return Hint(torch.where(share > 0, share * self.log_odds, 0.0))

    def carried(self, q: Binomial, t: Tensor, x: Tensor) -> "Hint":
        """E r over t steps of the chain from x, up to a constant."""
        one, zero = (self._expected(q.marginal(torch.full_like(x, bit), t)) for bit in (1.0, 0.0))
        return Hint(one - zero)

    def _expected(self, law: Bits) -> Tensor:
        """log(c d + (1−c)(1−d)) for each bit: the denominator of Table App.1 with c_i where x_i is printed."""
        on = logsigmoid(law.logits) + logsigmoid(self.log_odds)
        return torch.logaddexp(on, logsigmoid(-law.logits) + logsigmoid(-self.log_odds))


@dataclass(frozen=True)
class Smooth(Factor):
    """Any differentiable log r, [B, …] → [B], multiplied to first order at the law's mean: Table App.1, (52)-(61).

    The Gaussian's mean moves by f_Σ ∂log r/∂x, (61); a bit's log odds move by ∂log r/∂x.
    """

    log_r: Callable[[Tensor], Tensor]
    share: Tensor | float = 1.0

    def log(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.share, dtype=x.dtype, device=x.device).flatten() * self.log_r(x)

    def times(self, law: Law) -> Law:
        with torch.enable_grad():
            at = law.mean.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_r(at).sum(), at)
        slope = self.share * slope
        return (
            Bits(law.logits + slope) if isinstance(law, Bits) else Normal(law.mean + law.variance * slope, law.variance)
        )

    def power(self, share: Tensor) -> "Smooth":
        return Smooth(self.log_r, self.share * share)


def _bits(law: Law) -> Bits:
    if not isinstance(law, Bits):
        raise TypeError("a Hint multiplies bits; for real numbers use Noisy or Smooth")
    return law


Choice = Callable[..., Factor]  #: (r, q, t, x) → r(x^t), made from r(x⁰)


def constant(r: Factor, q: Chain, t: Tensor, x: Tensor) -> Factor:
    """r(x^t) = r(x⁰), equation (23)."""
    return r


def fading(r: Factor, q: Chain, t: Tensor, x: Tensor) -> Factor:
    """r(x^t) = r(x⁰)^{(T−t)/T}, Section 2.5.4: it leaves the start p(x^T) as it is."""
    return r.power(at_time(1 - torch.arange(q.T + 1, device=x.device) / q.T, t, x))


def carried(r: Noisy | Hint, q: Chain, t: Tensor, x: Tensor) -> Factor:
    """r(x^t) = E r(x⁰) over t steps of the chain from x^t. Ours; it makes (22) exact at t = 1, and for data from π."""
    return r.carried(q, t, x)  # type: ignore[arg-type]  # the chain is of r's own family


@torch.no_grad()
def trajectory(
    p: Reverse,
    q: Chain,
    r: Factor,
    like: Tensor,
    generator: Generator,
    choice: Choice = constant,
    resample_below: float = 0.0,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Samples by the kernels of (22), the start and the edge step (44) multiplied too: yields (t, x^t, log weight [B]).

    Weighted, x^t follow p(x^t) r(x^t) as (16)-(20) ask, and the mean weight estimates Z̃_t: each step's factor is (21)
    over (22), but for what all x^t share. They are resampled when the effective number falls below that share; then
    every row must have the same r. `reverse.trajectory` knows neither weights nor r.
    """
    law, paid = q.prior(like), like.new_zeros(len(like))
    log_weight = like.new_zeros(len(like))
    for t in range(q.T, -1, -1):
        steps = everywhere(t, like)
        r_t = choice(r, q, steps, like)
        x = r_t.times(law).at(q.noise(like, generator))
        log_weight = log_weight + r_t.log_weight(law, x) - paid
        if resample_below and effective(log_weight) < resample_below * len(x):
            x, log_weight = resample(x, log_weight, generator)
        yield t, x, log_weight
        if t > 0:
            law, paid = step_back(p, q, x, t), r_t.log(x)


def sample(
    p: Reverse,
    q: Chain,
    r: Factor,
    like: Tensor,
    generator: Generator,
    choice: Choice = constant,
    resample_below: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """x⁰ shaped like `like`, and its log weights [B]: the end of `trajectory`."""
    [(_, x0, log_weight)] = deque(trajectory(p, q, r, like, generator, choice, resample_below), maxlen=1)
    return x0, log_weight


def effective(log_weight: Tensor) -> float:
    """The effective number of weighted samples, (Σw)²/Σw²."""
    return float(effective_size(log_weight))


def resample(x: Tensor, log_weight: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Each row as often as its weight asks, by one systematic draw; all weights become their mean."""
    if log_weight.isnan().any():
        raise ValueError("these weights do not exist: a delta on real numbers cannot be held at every t; use `carried`")
    n = len(x)
    grid = torch.arange(n, device=x.device) + torch.rand(1, generator=generator, dtype=x.dtype, device=x.device)
    index = torch.searchsorted(log_weight.softmax(0).cumsum(0), grid / n).clamp(max=n - 1)
    return x[index], (log_weight.logsumexp(0) - math.log(n)).expand(n)
