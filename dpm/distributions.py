"""Distributions that forward processes and reverse models return: Normal, MultivariateNormal, Bernoulli, Categorical.

Small classes of our own. Unlike torch's they can be drawn from given noise, so that gradients and comparisons see the
same randomness (the "frozen noise" of Section 2.4.1), and they keep their digits where a probability is near 0 or 1.
All but MultivariateNormal are independent over the entries of x. Entropies and divergences are in nats.
"""

import math
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.special import entr

LOG_2PI = math.log(2 * math.pi)


class Distribution(ABC):
    """A distribution of x [B, …]; every method works entry by entry unless it says otherwise."""

    mean: Tensor  #: E x, shaped like x
    variance: Tensor  #: Var x, shaped to broadcast with the mean

    @abstractmethod
    def reparameterize(self, noise: Tensor) -> Tensor:
        """The sample that `noise` determines; `ForwardProcess.sample_noise` draws noise of the right kind."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log density or log probability of x, nats."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Entropy, nats."""

    @abstractmethod
    def cross_entropy(self, other: "Distribution") -> Tensor:
        """−E log other(x) over x from this distribution, nats; finite also where this one has no entropy."""

    @abstractmethod
    def kl_divergence(self, other: "Distribution") -> Tensor:
        """KL(self ‖ other), nats."""

    @abstractmethod
    def tilt(self, slope: Tensor) -> "Distribution":
        """The exponentially tilted distribution ∝ p(x) exp(slope · x)."""

    def observe(self, y: Tensor, variance: Tensor) -> "Distribution":
        """The distribution of x given y = x + N(0, variance), entry by entry. TypeError unless it is a `Normal`."""
        raise TypeError(self._no_normal())

    def add_noise(self, variance: Tensor) -> "Distribution":
        """The distribution of x + N(0, variance). TypeError unless it is a `Normal`."""
        raise TypeError(self._no_normal())

    def _no_normal(self) -> str:
        return (
            f"a normal likelihood multiplies independent normals, not a {type(self).__name__}; "
            "take a BernoulliLikelihood for bits, GradientGuidance for a full covariance"
        )


class Normal(Distribution):
    """N(x; mean, variance) for each entry. The variance may be a number or [B, 1, …]: it broadcasts with the mean."""

    def __init__(self, mean: Tensor, variance: Tensor):
        self.mean, self.variance = mean, variance

    @property
    def stddev(self) -> Tensor:
        """σ, shaped like the mean."""
        return self.variance.sqrt().expand_as(self.mean)

    def reparameterize(self, noise: Tensor) -> Tensor:
        """mean + σ · noise, for standard normal noise; differentiable in mean and variance."""
        return self.mean + self.variance.sqrt() * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """log density of x, nats."""
        return -0.5 * ((x - self.mean).square() / self.variance + self.variance.log() + LOG_2PI)

    def entropy(self) -> Tensor:
        """½ log(2πeσ²), nats, shaped like the mean; −∞ where the variance is 0."""
        return (0.5 * (1 + LOG_2PI + self.variance.log())).expand_as(self.mean)

    def cross_entropy(self, other: Distribution) -> Tensor:
        """−E log other(x), nats."""
        return self.variance / (2 * other.variance) - other.log_prob(self.mean)

    def kl_divergence(self, other: Distribution) -> Tensor:
        """KL(self ‖ other), nats: [B, …] for another Normal, [B] for a MultivariateNormal."""
        if isinstance(other, MultivariateNormal):
            covariance = torch.diag_embed(self.variance.expand_as(self.mean))
            return MultivariateNormal(self.mean, covariance).kl_divergence(other)
        ratio = self.variance / other.variance
        return 0.5 * (ratio - 1 - ratio.log() + (self.mean - other.mean).square() / other.variance)

    def tilt(self, slope: Tensor) -> "Normal":
        """N(mean + variance · slope, variance)."""
        return Normal(self.mean + self.variance * slope, self.variance)

    def observe(self, y: Tensor, variance: Tensor) -> "Normal":
        """The product of two Gaussians, by the Kalman gain; variance 0 is a known entry, ∞ a missing one."""
        gain = self.variance / (self.variance + variance)
        return Normal((1 - gain) * self.mean + gain * y, (1 - gain) * self.variance)

    def add_noise(self, variance: Tensor) -> "Normal":
        """N(mean, the sum of both variances)."""
        return Normal(self.mean, self.variance + variance)


class MultivariateNormal(Distribution):
    """N(x; mean, covariance) of vectors x [B, D], covariance [B, D, D]. Its methods return [B], summed over entries."""

    def __init__(self, mean: Tensor, covariance: Tensor):
        self.mean, self.covariance = mean, covariance

    @cached_property
    def scale_tril(self) -> Tensor:
        """The Cholesky factor of the covariance, [B, D, D]."""
        return torch.linalg.cholesky(self.covariance)

    @property
    def variance(self) -> Tensor:  # type: ignore[override]
        """The covariance's diagonal, [B, D]."""
        return self.covariance.diagonal(dim1=-2, dim2=-1)

    @property
    def _log_det(self) -> Tensor:
        return 2 * self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _mahalanobis(self, gap: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.scale_tril, gap[..., None], upper=False).square().sum((-2, -1))

    def reparameterize(self, noise: Tensor) -> Tensor:
        """mean + L · noise, L the Cholesky factor, for standard normal noise [B, D]."""
        return self.mean + (self.scale_tril @ noise[..., None])[..., 0]

    def log_prob(self, x: Tensor) -> Tensor:
        """log density of x [B, D], [B] nats."""
        return -0.5 * (self._mahalanobis(x - self.mean) + self._log_det + x.shape[-1] * LOG_2PI)

    def entropy(self) -> Tensor:
        """½ log det(2πeΣ), [B] nats."""
        return 0.5 * (self._log_det + self.mean.shape[-1] * (1 + LOG_2PI))

    def cross_entropy(self, other: Distribution) -> Tensor:
        """−E log other(x), [B] nats."""
        return self.entropy() + self.kl_divergence(other)

    def kl_divergence(self, other: Distribution) -> Tensor:
        """KL(self ‖ other) of two MultivariateNormals, [B] nats."""
        assert isinstance(other, MultivariateNormal)
        ratio = torch.linalg.solve_triangular(other.scale_tril, self.scale_tril, upper=False)
        trace = ratio.square().sum((-2, -1)) - self.mean.shape[-1]
        return 0.5 * (trace + other._mahalanobis(self.mean - other.mean) + other._log_det - self._log_det)

    def tilt(self, slope: Tensor) -> "MultivariateNormal":
        """N(mean + Σ slope, Σ)."""
        return MultivariateNormal(self.mean + (self.covariance @ slope[..., None])[..., 0], self.covariance)


class Bernoulli(Distribution):
    """B(x; r), P(x = 1) = r for each entry, given by its logits or by both probabilities.

    Two floats near 1 cannot be told apart where their distances to 1 can: so neither probability is computed as one
    minus the other. Exactly one of `logits` and `probs` = (P(x = 1), P(x = 0)) must be given.
    """

    def __init__(self, logits: Tensor | None = None, probs: tuple[Tensor, Tensor] | None = None):
        if (logits is None) == (probs is None):
            raise ValueError("give either logits or probs, the probabilities of 1 and of 0")
        if logits is not None:
            self.logits = logits
        else:
            self.probs, self.prob_zero = probs  # type: ignore[misc]

    @cached_property
    def logits(self) -> Tensor:
        """log r/(1−r)."""
        log_one, log_zero = self.log_probs
        return log_one - log_zero

    @cached_property
    def probs(self) -> Tensor:
        """r = P(x = 1)."""
        return torch.sigmoid(self.logits)

    @cached_property
    def prob_zero(self) -> Tensor:
        """1 − r = P(x = 0)."""
        return torch.sigmoid(-self.logits)

    @cached_property
    def log_probs(self) -> tuple[Tensor, Tensor]:
        """log r and log(1−r), nats."""
        if "probs" in self.__dict__ and "logits" not in self.__dict__:
            return self.probs.log(), self.prob_zero.log()
        return logsigmoid(self.logits), logsigmoid(-self.logits)

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        """r, the probability of 1."""
        return self.probs

    @property
    def variance(self) -> Tensor:  # type: ignore[override]
        """r(1−r)."""
        return self.probs * self.prob_zero

    def reparameterize(self, noise: Tensor) -> Tensor:
        """1 where uniform noise is below r, else 0; not differentiable, as Section 2.4.1 says of discrete noise."""
        return (noise < self.probs).to(self.probs.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """log probability of x, nats."""
        return torch.where(x > 0.5, *self.log_probs)

    def entropy(self) -> Tensor:
        """Entropy of each bit, nats; 0 for a certain bit."""
        log_one, log_zero = self.log_probs
        summed = -(self.probs * log_one + self.prob_zero * log_zero)
        return torch.where(self.variance > 0, summed, 0.0)

    def cross_entropy(self, other: Distribution) -> Tensor:
        """−E log other(x), nats."""
        assert isinstance(other, Bernoulli)
        log_one, log_zero = other.log_probs
        return -(self.probs * log_one + self.prob_zero * log_zero)

    def kl_divergence(self, other: Distribution) -> Tensor:
        """KL(self ‖ other), nats."""
        assert isinstance(other, Bernoulli)
        (log_one, log_zero), (other_one, other_zero) = self.log_probs, other.log_probs
        return self.probs * (log_one - other_one) + self.prob_zero * (log_zero - other_zero)

    def tilt(self, slope: Tensor) -> "Bernoulli":
        """Logits plus the slope."""
        return Bernoulli(self.logits + slope)


class Categorical(Distribution):
    """P(x = values[k]) = probs[…, k]: each entry takes one of a few values.

    `values` [k] are numbers in ascending order, `probs` [B, …, k]. A probability may be 0 in all that it is asked for,
    and makes no gradient NaN.
    """

    def __init__(self, probs: Tensor, values: Tensor):
        self.probs, self.values = probs, values

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        """E x: only as meaningful as the numbers that name the values."""
        return self.probs @ self.values

    @property
    def variance(self) -> Tensor:  # type: ignore[override]
        """Var x, likewise."""
        return self.probs @ self.values.square() - self.mean.square()

    def reparameterize(self, noise: Tensor) -> Tensor:
        """The value in whose share of [0, 1) uniform noise falls."""
        below = (noise[..., None] >= self.probs.cumsum(-1)).sum(-1)
        return self.values[below.clamp(max=len(self.values) - 1)]

    def log_prob(self, x: Tensor) -> Tensor:
        """log probability of x, nats; −∞ for what cannot be."""
        index = torch.searchsorted(self.values, x.contiguous()).clamp(max=len(self.values) - 1)
        shape = torch.broadcast_shapes(index.shape, self.probs.shape[:-1])
        probs = self.probs.expand(*shape, len(self.values))
        prob = probs.gather(-1, index.expand(shape)[..., None])[..., 0]
        possible = (prob > 0) & (self.values[index] == x)
        return torch.where(possible, torch.where(possible, prob, 1.0).log(), -torch.inf)

    def entropy(self) -> Tensor:
        """Entropy, nats."""
        return entr(torch.where(self.probs > 0, self.probs, 1.0)).sum(-1)  # the slope of entr at 0 is infinite

    def cross_entropy(self, other: Distribution) -> Tensor:
        """−E log other(x), nats; 0 log 0 is 0."""
        assert isinstance(other, Categorical)
        never = (self.probs == 0) & (other.probs == 0)
        return -torch.xlogy(self.probs, torch.where(never, 1.0, other.probs)).sum(-1)

    def kl_divergence(self, other: Distribution) -> Tensor:
        """KL(self ‖ other), nats."""
        return self.cross_entropy(other) - self.entropy()

    def tilt(self, slope: Tensor) -> "Categorical":
        """Probabilities times exp(slope · value), normalised."""
        log_probs = self.probs.log() + slope[..., None] * self.values
        return Categorical(log_probs.softmax(-1), self.values)


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    """KL(p ‖ q), nats: entry by entry, or [B] where q is a MultivariateNormal."""
    return p.kl_divergence(q)


class DiscretizedNormal:
    """P(level) of levels `bin_width` apart between `low` and `high`: a normal's mass within half a bin of the level.

    The two outermost bins reach to ±∞, so that the levels' probabilities add up to 1 (Ho et al. 2020, Section 3.3).
    """

    def __init__(self, normal: Distribution, bin_width: float, low: float, high: float):
        self.normal, self.bin_width, self.low, self.high = normal, bin_width, low, high

    def log_prob(self, x: Tensor) -> Tensor:
        """log P(x) of levels x, nats."""
        edges = torch.stack([x - self.bin_width / 2, x + self.bin_width / 2])
        left, right = (edges - self.normal.mean) / self.normal.variance.sqrt()
        left = torch.where(x <= self.low + self.bin_width / 2, -math.inf, left)
        right = torch.where(x >= self.high - self.bin_width / 2, math.inf, right)
        # Φ(right) − Φ(left) = Φ(−left) − Φ(−right); of the two take the one in the left tail, which keeps its digits
        lower, upper = torch.where(left + right > 0, torch.stack([-right, -left]), torch.stack([left, right]))
        log_upper = torch.special.log_ndtr(upper)
        return log_upper + torch.log1p(-(torch.special.log_ndtr(lower) - log_upper).exp())

    def reparameterize(self, noise: Tensor) -> Tensor:
        """The level nearest to the normal sample that this noise determines."""
        x = self.normal.reparameterize(noise)
        return (self.low + ((x - self.low) / self.bin_width).round() * self.bin_width).clamp(self.low, self.high)
