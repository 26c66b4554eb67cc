"""The forward trajectory, Section 2.1 and Table App.1: two kernels that destroy structure, behind one signature.

`Gaussian(beta)` and `Binomial(beta, rate)` are the chain q. Their methods return distributions over one more
variable, each independent over the entries of x. Throughout, x is [B, …] and t a LongTensor [B] in 1…T.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from functools import cache, cached_property
from typing import Self

import torch
from torch import Generator, Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution, register_kl
from torch.distributions import Normal as TorchNormal
from torch.nn.functional import logsigmoid, pad

from dpm.schedules import log_alpha_bar


class Normal(TorchNormal):
    """N(x; μ, σ²), one a coordinate, that can be drawn with noise frozen beforehand (Section 2.4.1).

    The variance may be one number a sample, [B, 1, …]; most formulas can leave it so.
    """

    def __init__(self, mean: Tensor, variance: Tensor):
        Distribution.__init__(self, mean.shape, validate_args=False)
        self.loc, self.spread = mean, variance

    @cached_property
    def scale(self) -> Tensor:  # type: ignore[override]
        return self.spread.sqrt().expand_as(self.loc)

    def at(self, noise: Tensor) -> Tensor:
        """The draw that this standard-normal noise makes, differentiable in μ and σ."""
        return self.loc + self.scale * noise


@register_kl(Normal, Normal)
def _kl_normal(p: Normal, q: Normal) -> Tensor:
    ratio = p.spread / q.spread
    return 0.5 * (ratio - 1 - ratio.log() + (p.loc - q.loc).square() / q.spread)


class Bits(TorchBernoulli):
    """B(x; r), one bit a coordinate, given by its log odds so that rates near 0 and 1 keep their digits."""

    def __init__(self, logits: Tensor):
        Distribution.__init__(self, logits.shape, validate_args=False)
        self.logits = logits

    @property
    def off(self) -> Tensor:
        """1 − r."""
        return torch.sigmoid(-self.logits)

    def logs(self) -> tuple[Tensor, Tensor]:
        """log r and log(1−r)."""
        return logsigmoid(self.logits), logsigmoid(-self.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        """log B(x; r), without the cancellation of torch's own."""
        return torch.where(value > 0.5, *self.logs())

    def entropy(self) -> Tensor:
        """H of each bit in nats, likewise; that of a certain bit is 0."""
        on, off = self.logs()
        return torch.where(self.probs * self.off > 0, -(self.probs * on + self.off * off), 0.0)

    def at(self, noise: Tensor) -> Tensor:
        """The draw that this uniform noise makes."""
        return (noise < self.probs).to(self.probs.dtype)


class BitRates(Bits):
    """The same given by r, and by a way to find 1 − r, for whoever asks, without taking r from 1."""

    def __init__(self, on: Tensor, off: Callable[[], Tensor]):
        Distribution.__init__(self, on.shape, validate_args=False)
        self.probs, self.find_off = on, off

    @cached_property
    def off(self) -> Tensor:  # type: ignore[override]
        return self.find_off()

    @cached_property
    def logits(self) -> Tensor:  # type: ignore[override]
        on, off = self.logs()
        return on - off

    def logs(self) -> tuple[Tensor, Tensor]:
        return self.probs.log(), self.off.log()


@register_kl(Bits, Bits)
def _kl_bits(p: Bits, q: Bits) -> Tensor:
    (on, off), (q_on, q_off) = p.logs(), q.logs()
    return p.probs * (on - q_on) + p.off * (off - q_off)


@register_kl(BitRates, BitRates)
def _kl_rates(p: BitRates, q: BitRates) -> Tensor:
    return p.probs * (p.probs / q.probs).log() + p.off * (p.off / q.off).log()


Law = Normal | Bits  #: what a step of either chain returns
Pair = tuple[Tensor, Tensor]  #: one for x⁰ = 0, one for x⁰ = 1


def at_time(values: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """values[t], shaped and typed to multiply x: [T+1], [B] → [B, 1, …], or [1, 1, …] where one t serves the batch."""
    return look_up(values, t).to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def columns_at(table: Tensor, t: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """The columns of table[t], each as `at_time` has it: [T+1, k], [B] → k of [B, 1, …]."""
    return look_up(table, t).to(x.dtype).T.reshape(table.shape[1], -1, *[1] * (x.dim() - 1)).unbind()


def look_up(table: Tensor, t: Tensor) -> Tensor:
    """Rows of a table by t, [T+1, …] → [B, …]; a single row where `everywhere` made the t."""
    return table.index_select(0, t[:1] if t.stride(0) == 0 else t)


def everywhere(t: int, x: Tensor) -> Tensor:
    """One t for the whole batch, [B], as a view of a single number, which need be looked up only once."""
    return torch.full((), t, device=x.device).expand(len(x))


class Chain(ABC):
    """q(x^{0…T}), equation (3), from its rates β [T+1]: what Gaussian and Binomial share, and all that others ask."""

    def __init__(self, beta: Tensor):
        self.beta = beta  #: β_t, [T+1]: the share of the signal that step t erases
        self.T = len(beta) - 1  #: number of steps
        self.log_alpha_bar = log_alpha_bar(beta)  #: log ᾱ_t, [T+1]
        self.alpha_bar = self.log_alpha_bar.exp()  #: ᾱ_t = Π_{s≤t} (1−β_s), [T+1]: the share left after t steps
        self.noise_level = -torch.expm1(self.log_alpha_bar)  #: 1 − ᾱ_t, [T+1], without the cancellation
        self.reversal = pad(self.tabulate(), (0, 0, 1, 0))  # of q(x^{t−1}|x^t,x⁰), slot 0 unused

    def holding(self, xt: Tensor, t: Tensor) -> Self:
        """The same chain, which holds what it was `given` at this x^t and t: (14) asks there twice."""
        q, held = copy(self), self.given(xt, t)
        q.given = lambda a, b: held if a is xt and b is t else self.given(a, b)  # type: ignore
        return q

    @abstractmethod
    def tabulate(self) -> Tensor: ...
    @abstractmethod
    def given(self, xt: Tensor, t: Tensor) -> tuple: ...

    @abstractmethod
    def noise(self, x: Tensor, generator: Generator) -> Tensor: ...
    @abstractmethod
    def prior(self, x: Tensor) -> Law: ...
    @abstractmethod
    def step(self, x: Tensor, t: Tensor) -> Law: ...
    @abstractmethod
    def marginal(self, x0: Tensor, t: Tensor) -> Law: ...
    @abstractmethod
    def entropies(self, x0: Tensor) -> tuple[Tensor, ...]: ...

    @abstractmethod
    def posterior(self, xt: Tensor, x0: Tensor, t: Tensor) -> Law: ...
    @abstractmethod
    def average(self, xt: Tensor, mean: Tensor, variance: Tensor, t: Tensor) -> Law: ...
    @abstractmethod
    def log_likelihood(self, xt: Tensor, points: Tensor, t: Tensor) -> Tensor: ...


class Gaussian(Chain):
    """Gaussian diffusion to π = N(0, I), Table App.1, left column; beta is [T+1], its slot 0 is 0."""

    def tabulate(self) -> Tensor:
        """The mean's weights of x⁰ and x^t in q(x^{t−1}|x^t,x⁰), and its variance, for t = 1…T: [T, 3]."""
        beta, noise, before = self.beta[1:], self.noise_level[1:], self.noise_level[:-1]
        from_x0 = self.alpha_bar[:-1].sqrt() * beta / noise
        from_xt = (1 - beta).sqrt() * before / noise
        return torch.stack([from_x0, from_xt, beta * before / noise], dim=1)

    def noise(self, x: Tensor, generator: Generator) -> Tensor:
        """Standard normal noise, shaped like x."""
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    def prior(self, x: Tensor) -> Normal:
        """π, equation (1), for a batch shaped like x."""
        return Normal(torch.zeros_like(x), torch.ones_like(x))

    def step(self, x: Tensor, t: Tensor) -> Normal:
        """q(x^t | x^{t−1}) = N(x^{t−1} √(1−β_t), β_t I), equation (2)."""
        beta = at_time(self.beta, t, x)
        return Normal(x * (1 - beta).sqrt(), beta)

    def marginal(self, x0: Tensor, t: Tensor) -> Normal:
        """q(x^t | x⁰) = N(x⁰ √ᾱ_t, (1−ᾱ_t) I): t steps at once."""
        return Normal(x0 * at_time(self.alpha_bar, t, x0).sqrt(), at_time(self.noise_level, t, x0))

    def entropies(self, x0: Tensor) -> tuple[Tensor, ...]:
        """H_q(X^T|X⁰), H_q(X¹|X⁰) and H_p(X^T), [B] nats each, the same for every x⁰."""
        variances = torch.stack([self.noise_level[-1], self.noise_level[1], self.beta.new_ones(())])
        each = 0.5 * (2 * math.pi * math.e * variances).log()
        return (x0[0].numel() * each).to(x0.dtype)[:, None].expand(3, len(x0)).unbind()

    def given(self, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of q(x^{t−1} | x^t, x⁰): the weight of x⁰ in the mean, the rest of the mean, and the variance."""
        from_x0, from_xt, variance = columns_at(self.reversal, t, xt)
        return from_x0, from_xt * xt, variance

    def posterior(self, xt: Tensor, x0: Tensor, t: Tensor) -> Normal:
        """q(x^{t−1} | x^t, x⁰) by Bayes' rule, (47)-(48), t ≥ 2: the target of every reverse step in (14)."""
        from_x0, from_xt, variance = self.given(xt, t)
        return Normal(from_x0 * x0 + from_xt, variance)

    def average(self, xt: Tensor, mean: Tensor, variance: Tensor, t: Tensor) -> Normal:
        """The Gaussian nearest in KL to q(x^{t−1} | x^t), when x⁰ given x^t has this mean and variance, t ≥ 2."""
        from_x0, from_xt, rest = self.given(xt, t)
        return Normal(from_x0 * mean + from_xt, rest + from_x0**2 * variance)

    def log_likelihood(self, xt: Tensor, points: Tensor, t: Tensor, variance: float = 0.0) -> Tensor:
        """log q(x^t | x⁰ ~ N(point, variance·I)), less what no point changes: x^t [B, D], points [M, D] → [B, M]."""
        signal, noise = at_time(self.alpha_bar, t, xt), at_time(self.noise_level, t, xt)
        fit = signal.sqrt() * (xt @ points.T) - signal / 2 * points.square().sum(1)
        return fit / (signal * variance + noise)


class Binomial(Chain):
    """Binomial diffusion to independent bits of rate π(1) = `rate`, Table App.1, right column (0.5 there, 0.2 in
    Appendix D.1.2); beta is [T+1], its slot 0 is 0."""

    def __init__(self, beta: Tensor, rate: float = 0.5):
        self.rate, self.log_odds = rate, math.log(rate / (1 - rate))
        super().__init__(beta)
        changes = self._changes(self.alpha_bar, self.noise_level)
        self.ratios = pad((changes[1:, 1] / changes[1:, 0]).log(), (0, 0, 1, 0))  # log q(x^t=a|1)/q(x^t=a|0), [T+1, 2]
        laws = torch.stack([changes[-1], changes[1], self._changes(beta.new_zeros(1), beta.new_ones(1))[0]])
        self.bit_entropies = torch.special.entr(laws).sum(2).T  # for x⁰ = 0 and 1, and the three ends of (14): [2, 3]

    def tabulate(self) -> Tensor:
        """q(x^{t−1}=s | x^t=a, x⁰=b) by Bayes' rule, for sab = 000 … 111 and t = 1…T: [T, 8]."""
        earlier = self._changes(self.alpha_bar[:-1], self.noise_level[:-1])
        step = self._changes(1 - self.beta[1:], self.beta[1:])
        joint = torch.einsum("tbs,tsa->tsab", earlier, step)
        return (joint / joint.sum(1, keepdim=True)).flatten(1)

    def _changes(self, kept: Tensor, erased: Tensor) -> Tensor:
        """Chances that a bit becomes another, [T, from, to]."""
        prior = erased.new_tensor([1 - self.rate, self.rate])
        return kept[:, None, None] * torch.eye(2).to(kept) + erased[:, None, None] * prior

    def noise(self, x: Tensor, generator: Generator) -> Tensor:
        """Uniform noise, shaped like x."""
        return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    def prior(self, x: Tensor) -> Bits:
        """π, equation (1), for a batch shaped like x."""
        return Bits(torch.full_like(x, self.log_odds))

    def step(self, x: Tensor, t: Tensor) -> Bits:
        """q(x^t | x^{t−1}) = B(x^{t−1}(1−β_t) + rate·β_t), equation (2)."""
        beta = at_time(self.beta, t, x)
        return self._erased(x, 1 - beta, beta)

    def marginal(self, x0: Tensor, t: Tensor) -> Bits:
        """q(x^t | x⁰) = B(x⁰ ᾱ_t + rate·(1−ᾱ_t)): t steps at once."""
        return self._erased(x0, at_time(self.alpha_bar, t, x0), at_time(self.noise_level, t, x0))

    def entropies(self, x0: Tensor) -> tuple[Tensor, ...]:
        """H_q(X^T|X⁰), H_q(X¹|X⁰) and H_p(X^T), [B] nats each: so much for every 0 of x⁰, so much for every 1."""
        ones = x0.flatten(1).sum(1)
        return (torch.stack([x0[0].numel() - ones, ones], dim=1) @ self.bit_entropies.to(x0.dtype)).unbind(1)

    def given(self, xt: Tensor, t: Tensor) -> tuple[Pair, Callable[[], Pair]]:
        """q(x^{t−1}=1 | x^t, x⁰=b) for b = 0, 1; and q(x^{t−1}=0 | …), once someone asks."""
        off00, off01, off10, off11, on00, on01, on10, on11 = columns_at(self.reversal, t, xt)
        no = 1 - xt
        on = no * on00 + xt * on10, no * on01 + xt * on11
        return on, cache(lambda: (no * off00 + xt * off10, no * off01 + xt * off11))

    def posterior(self, xt: Tensor, x0: Tensor, t: Tensor) -> Bits:
        """q(x^{t−1} | x^t, x⁰) by Bayes' rule, (47)-(48), once for every case; known bits are their own mean."""
        return self.average(xt, x0, x0, t)

    def average(self, xt: Tensor, mean: Tensor, variance: Tensor, t: Tensor) -> Bits:
        """The bits nearest in KL to q(x^{t−1} | x^t) when x⁰ given x^t has this mean; a bit's variance follows."""
        on, off = self.given(xt, t)
        return BitRates(torch.lerp(*on, mean), lambda: torch.lerp(*off(), mean))

    def evidence(self, xt: Tensor, t: Tensor) -> Tensor:
        """log q(x^t_i | x⁰_i=1)/q(x^t_i | x⁰_i=0): all that x^t_i says of x⁰_i, in nats."""
        off, on = columns_at(self.ratios, t, xt)
        return off + xt * (on - off)

    def log_likelihood(self, xt: Tensor, points: Tensor, t: Tensor) -> Tensor:
        """log q(x^t | x⁰ = point), less what no point changes: x^t [B, D], points [M, D] → [B, M]."""
        return self.evidence(xt, t) @ points.T

    def _erased(self, x: Tensor, kept: Tensor, erased: Tensor) -> Bits:
        return BitRates(x * kept + self.rate * erased, lambda: (1 - x) * kept + (1 - self.rate) * erased)
