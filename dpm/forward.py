"""The forward trajectory, Section 2.1 and Table App.1: two kernels that destroy structure, behind one signature.

`Gaussian(beta)` and `Binomial(beta, rate)` are the chain q. Their methods return distributions over one more
variable, each independent over the entries of x. Throughout, x is [B, …] and t a LongTensor [B] in 1…T.
"""

from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal as TorchNormal
from torch.distributions import register_kl
from torch.nn.functional import logsigmoid

from dpm.schedules import log_alpha_bar


class Normal(TorchNormal):
    """N(x; μ, σ²), one a coordinate, that can be drawn with noise frozen beforehand (Section 2.4.1)."""

    def __init__(self, mean: Tensor, variance: Tensor):
        super().__init__(mean, variance.sqrt(), validate_args=False)

    def at(self, noise: Tensor) -> Tensor:
        """The draw that this standard-normal noise makes, differentiable in μ and σ."""
        return self.loc + self.scale * noise


class Bits(TorchBernoulli):
    """B(x; r), one bit a coordinate, given by its log odds so that rates near 0 and 1 keep their digits."""

    def __init__(self, logits: Tensor):
        super().__init__(logits=logits, validate_args=False)

    def at(self, noise: Tensor) -> Tensor:
        """The draw that this uniform noise makes."""
        return (noise < self.probs).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """log B(x; r), without the cancellation of torch's own."""
        return logsigmoid(torch.where(value > 0.5, self.logits, -self.logits))

    def entropy(self) -> Tensor:
        """H of each bit in nats, likewise."""
        return -(self.probs * logsigmoid(self.logits) + torch.sigmoid(-self.logits) * logsigmoid(-self.logits))


@register_kl(Bits, Bits)
def _kl_bits(p: Bits, q: Bits) -> Tensor:
    on = torch.sigmoid(p.logits) * (logsigmoid(p.logits) - logsigmoid(q.logits))
    off = torch.sigmoid(-p.logits) * (logsigmoid(-p.logits) - logsigmoid(-q.logits))
    return on + off


Law = Normal | Bits


def at_time(values: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """values[t], shaped and typed to multiply x: [T+1], [B] → [B, 1, …]."""
    return values[t].to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))


class Chain(ABC):
    """q(x^{0…T}), equation (3), from its rates β [T+1]: what Gaussian and Binomial share, and all that others ask."""

    def __init__(self, beta: Tensor):
        self.beta = beta
        self.T = len(beta) - 1
        self.log_alpha_bar = log_alpha_bar(beta)
        self.alpha_bar = self.log_alpha_bar.exp()
        self.noise_level = -torch.expm1(self.log_alpha_bar)  # 1 − ᾱ without the cancellation

    @abstractmethod
    def noise(self, x: Tensor, generator: Generator) -> Tensor: ...
    @abstractmethod
    def prior(self, x: Tensor) -> Law: ...
    @abstractmethod
    def step(self, x: Tensor, t: Tensor) -> Law: ...
    @abstractmethod
    def marginal(self, x0: Tensor, t: Tensor) -> Law: ...
    @abstractmethod
    def posterior(self, xt: Tensor, x0: Tensor, t: Tensor) -> Law: ...
    @abstractmethod
    def average(self, xt: Tensor, mean: Tensor, variance: Tensor, t: Tensor) -> Law: ...
    @abstractmethod
    def log_likelihood(self, xt: Tensor, points: Tensor, t: Tensor) -> Tensor: ...


class Gaussian(Chain):
    """Gaussian diffusion to π = N(0, I), Table App.1, left column; beta is [T+1], its slot 0 is 0."""

    def noise(self, x: Tensor, generator: Generator) -> Tensor:
        """Standard normal noise, shaped like x."""
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    def prior(self, x: Tensor) -> Normal:
        """π, equation (1), for a batch shaped like x."""
        return Normal(torch.zeros_like(x), torch.ones_like(x))

    def step(self, x: Tensor, t: Tensor) -> Normal:
        """q(x^t | x^{t−1}) = N(x^{t−1} √(1−β_t), β_t I), equation (2)."""
        beta = at_time(self.beta, t, x)
        return Normal(x * (1 - beta).sqrt(), beta.expand_as(x))

    def marginal(self, x0: Tensor, t: Tensor) -> Normal:
        """q(x^t | x⁰) = N(x⁰ √ᾱ_t, (1−ᾱ_t) I): t steps at once."""
        return Normal(x0 * at_time(self.alpha_bar, t, x0).sqrt(), at_time(self.noise_level, t, x0).expand_as(x0))

    def posterior(self, xt: Tensor, x0: Tensor, t: Tensor) -> Normal:
        """q(x^{t−1} | x^t, x⁰) by Bayes' rule, t ≥ 2: the target of every reverse step in (14)."""
        return self.average(xt, x0, torch.zeros_like(x0), t)

    def average(self, xt: Tensor, mean: Tensor, variance: Tensor, t: Tensor) -> Normal:
        """The Gaussian nearest in KL to q(x^{t−1} | x^t), when x⁰ given x^t has this mean and variance, t ≥ 2."""
        beta, noise = at_time(self.beta, t, xt), at_time(self.noise_level, t, xt)
        before = at_time(self.noise_level, t - 1, xt)
        from_x0 = at_time(self.alpha_bar, t - 1, xt).sqrt() * beta / noise
        from_xt = (1 - beta).sqrt() * before / noise
        return Normal(from_x0 * mean + from_xt * xt, beta * before / noise + from_x0**2 * variance)

    def log_likelihood(self, xt: Tensor, points: Tensor, t: Tensor, variance: float = 0.0) -> Tensor:
        """log q(x^t | x⁰ ~ N(point, variance·I)), less what no point changes: x^t [B, D], points [M, D] → [B, M]."""
        signal, noise = at_time(self.alpha_bar, t, xt), at_time(self.noise_level, t, xt)
        fit = signal.sqrt() * (xt @ points.T) - signal / 2 * points.square().sum(1)
        return fit / (signal * variance + noise)


class Binomial(Chain):
    """Binomial diffusion to independent bits of rate π(1) = `rate`, Table App.1, right column (0.5 there, 0.2 in
    Appendix D.1.2); beta is [T+1], its slot 0 is 0."""

    def __init__(self, beta: Tensor, rate: float = 0.5):
        super().__init__(beta)
        self.rate = rate

    def noise(self, x: Tensor, generator: Generator) -> Tensor:
        """Uniform noise, shaped like x."""
        return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    def prior(self, x: Tensor) -> Bits:
        """π, equation (1), for a batch shaped like x."""
        return Bits(torch.full_like(x, self.rate).logit())

    def step(self, x: Tensor, t: Tensor) -> Bits:
        """q(x^t | x^{t−1}) = B(x^{t−1}(1−β_t) + rate·β_t), equation (2)."""
        beta = at_time(self.beta, t, x)
        return self._erased(x, 1 - beta, beta)

    def marginal(self, x0: Tensor, t: Tensor) -> Bits:
        """q(x^t | x⁰) = B(x⁰ ᾱ_t + rate·(1−ᾱ_t)): t steps at once."""
        return self._erased(x0, at_time(self.alpha_bar, t, x0), at_time(self.noise_level, t, x0))

    def posterior(self, xt: Tensor, x0: Tensor, t: Tensor) -> Bits:
        """q(x^{t−1} | x^t, x⁰) by Bayes' rule: prior odds from x⁰ times the likelihood ratio of x^t."""
        beta = at_time(self.beta, t, xt)
        return Bits(self.marginal(x0, t - 1).logits + self._evidence(xt, 1 - beta, beta))

    def average(self, xt: Tensor, mean: Tensor, variance: Tensor, t: Tensor) -> Bits:
        """The bits nearest in KL to q(x^{t−1} | x^t) when x⁰ given x^t has this mean; a bit's variance follows."""
        zero, one = (self.posterior(xt, torch.full_like(xt, b), t).logits for b in (0.0, 1.0))
        on = mean * one.sigmoid() + (1 - mean) * zero.sigmoid()
        off = mean * (-one).sigmoid() + (1 - mean) * (-zero).sigmoid()
        return Bits(on.log() - off.log())

    def evidence(self, xt: Tensor, t: Tensor) -> Tensor:
        """log q(x^t_i | x⁰_i=1)/q(x^t_i | x⁰_i=0): all that x^t_i says of x⁰_i, in nats."""
        return self._evidence(xt, at_time(self.alpha_bar, t, xt), at_time(self.noise_level, t, xt))

    def log_likelihood(self, xt: Tensor, points: Tensor, t: Tensor) -> Tensor:
        """log q(x^t | x⁰ = point), less what no point changes: x^t [B, D], points [M, D] → [B, M]."""
        return self.evidence(xt, t) @ points.T

    def _erased(self, x: Tensor, kept: Tensor, erased: Tensor) -> Bits:
        on = x * kept + self.rate * erased
        off = (1 - x) * kept + (1 - self.rate) * erased
        return Bits(on.log() - off.log())

    def _evidence(self, xt: Tensor, kept: Tensor, erased: Tensor) -> Tensor:
        from_one, from_zero = (self._erased(torch.full_like(xt, b), kept, erased).logits for b in (1.0, 0.0))
        on = logsigmoid(from_one) - logsigmoid(from_zero)
        off = logsigmoid(-from_one) - logsigmoid(-from_zero)
        return torch.where(xt > 0.5, on, off)
