"""The bound K on the log likelihood, Sections 2.3 and 2.4, Appendix B. All in nats, but for `in_bits`."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.distributions import kl_divergence

from dpm.forward import Chain, everywhere
from dpm.reverse import Reverse, step_back

NEIGHBOURS = 10  # samples in a row that share out the steps t among them


def per_sample(values: Tensor) -> Tensor:
    """Sum over all but the batch: [B, …] → [B]."""
    return values.reshape(len(values), -1).sum(1)


@dataclass(frozen=True)
class Bound:
    """K of equation (14) in parts, each [B], nats a sample: K = −kl + entropy_T − entropy_1 − entropy_prior."""

    kl: Tensor  #: Σ_{t=2..T} KL( q(x^{t−1}|x^t,x⁰) ‖ p(x^{t−1}|x^t) )
    entropy_T: Tensor  #: H_q(X^T|X⁰)
    entropy_1: Tensor  #: H_q(X¹|X⁰)
    entropy_prior: Tensor  #: H_p(X^T)

    @property
    def K(self) -> Tensor:
        """The bound, [B] nats."""
        return self.entropy_T - self.entropy_1 - self.entropy_prior - self.kl


def step_kl(p: Reverse, q: Chain, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """KL( q(x^{t−1}|x^t,x⁰) ‖ p(x^{t−1}|x^t) ) of (14), (51) at t [B], x^t from q(x^t|x⁰) by frozen noise: [B]."""
    xt = q.marginal(x0, t).at(noise)
    q = q.holding(xt, t)
    return per_sample(kl_divergence(q.posterior(xt, x0, t), p(q, xt, t)))


def step_at(place: Tensor, T: int, above: int = 1) -> Tensor:
    """The step t, of those above one up to T, at a place in [0, 1], of which each covers as much."""
    return above + 1 + (place * (T - above)).long().clamp(max=T - above - 1)


def stratified_steps(batch: int, T: int, generator: Generator, above: int = 1) -> Tensor:
    """t [batch], spread evenly over the KL terms of (14), 2…T or those above a step, from one uniform draw: a mean over
    them is unbiased."""
    shift = torch.rand((), generator=generator, dtype=torch.float64, device=generator.device)
    spread = (torch.arange(batch, dtype=torch.float64, device=generator.device) + shift) / batch
    return step_at(spread, T, above)


def with_constants(kl: Tensor, q: Chain, x0: Tensor) -> Bound:
    """The parts of (14), given its KL sum: the entropies that (49)-(50) telescope to are analytic, and counted once."""
    return Bound(kl, *q.entropies(x0))


def estimate(p: Reverse, q: Chain, x0: Tensor, t: Tensor, noise: Tensor) -> Bound:
    """(14) from one stratified t a sample: unbiased in the mean over the batch, cheap enough to train on."""
    return with_constants((q.T - 1) * step_kl(p, q, x0, t, noise), q, x0)


@torch.no_grad()
def kl_above(p: Reverse, q: Chain, x0: Tensor, t: int, generator: Generator) -> Tensor:
    """The KL terms of (14) above t, [B] nats, each sample's from one of them, stratified and in no order: unbiased."""
    order = torch.randperm(len(x0), generator=generator, device=generator.device)
    steps = stratified_steps(len(x0), q.T, generator, above=t)[order]
    return (q.T - t) * step_kl(p, q, x0, steps, q.noise(x0, generator))


@torch.no_grad()
def evaluate(p: Reverse, q: Chain, x0: Tensor, generator: Generator) -> Bound:
    """(14) with every t for every sample, each with its own draw of x^t."""
    kl = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
    for t in range(2, q.T + 1):
        kl += step_kl(p, q, x0, everywhere(t, x0), q.noise(x0, generator))
    return with_constants(kl, q, x0)


@torch.no_grad()
def evaluate_some(p: Reverse, q: Chain, x0: Tensor, generator: Generator, times: int) -> Bound:
    """(14) with so many t for each sample, evenly spaced, and those of NEIGHBOURS samples in a row evenly between one
    another: as unbiased as all, and cheaper. Samples are not independent then; the means of such rows are."""
    kl = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
    rows, place = math.ceil(len(x0) / NEIGHBOURS), torch.arange(len(x0), device=x0.device)
    shift = torch.rand(rows, generator=generator, dtype=torch.float64, device=x0.device)
    start = (shift[place // NEIGHBOURS] + place / NEIGHBOURS) % 1
    for k in range(times):
        t = step_at((start + k) / times, q.T)
        kl += (q.T - 1) / times * step_kl(p, q, x0, t, q.noise(x0, generator))
    return with_constants(kl, q, x0)


@torch.no_grad()
def along_trajectory(p: Reverse, q: Chain, x0: Tensor, generator: Generator) -> Tensor:
    """K from whole trajectories, equations (37)-(39): log p(x^T) + Σ_t log p(x^{t−1}|x^t)/q(x^t|x^{t−1}), [B] nats.

    Unbiased for K whatever the data's variance, and noisy; the reverse step at t = 1 is the edge step (44). It is also
    the log weight of one trajectory in (9), and minus it the trajectory's work.
    """
    K, before = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device), x0
    for t in range(1, q.T + 1):
        forward = q.step(before, everywhere(t, x0))
        xt = forward.at(q.noise(x0, generator))
        K += per_sample(step_back(p, q, xt, t).log_prob(before) - forward.log_prob(xt))
        before = xt
    return K + per_sample(q.prior(before).log_prob(before))


@dataclass(frozen=True)
class Importance:
    """log p(x⁰) by equation (9), each field [B].

    Its mean over the data is K for one trajectory, L of (10)-(11) for infinitely many; K ≤ L is (12)-(13).
    """

    log_p: Tensor  #: log of the mean weight, nats; its own mean is at most log p(x⁰)
    error: Tensor  #: standard error of log_p by the delta method, nats; nan for one trajectory
    size: Tensor  #: effective sample size (Σw)²/Σw², from 1 to S


def log_weights(p: Reverse, q: Chain, x0: Tensor, S: int, generator: Generator) -> Tensor:
    """log of the weights p(x^{0…T})/q(x^{1…T}|x⁰) of (7)-(9), S forward trajectories for each sample: [S, B] nats."""
    return along_trajectory(p, q, x0.expand(S, *x0.shape).flatten(0, 1), generator).reshape(S, len(x0))


def importance(log_weight: Tensor) -> Importance:
    """The estimate (9) of log p(x⁰), annealed importance sampling, from log weights [S, B]."""
    S = len(log_weight)
    log_p = log_weight.logsumexp(0) - math.log(S)
    spread = ((log_weight - log_p).exp() - 1).square().mean(0)  # of the weights, divided by their mean
    return Importance(log_p, error=(spread / (S - 1)).sqrt(), size=effective_size(log_weight))


def effective_size(log_weight: Tensor) -> Tensor:
    """How many equal weights are worth as much, (Σw)²/Σw² along the first axis: [S, …] → […], from 1 to S."""
    return torch.exp(2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0))


def correction(q: Chain, x0: Tensor) -> Tensor:
    """K of (37)-(39) less K of (14), [B] nats: the cross entropies to π that (40)-(43) and (45)-(46)
    take as constant. Ours.

    Its mean is zero for Gaussian data of mean square 1 and for bits of the prior's mean activity.
    """
    prior, first = q.prior(x0), everywhere(1, x0)

    def cross_entropy(t: Tensor) -> Tensor:
        law = q.marginal(x0, t)
        return law.entropy() + kl_divergence(law, prior)

    end = prior.entropy() - cross_entropy(everywhere(q.T, x0))
    return per_sample(end + prior.log_prob(x0) + cross_entropy(first))


def log_null(q: Chain, x0: Tensor) -> Tensor:
    """L_null of Table 1: log π(x⁰), [B] nats a sample."""
    return per_sample(q.prior(x0).log_prob(x0))


def in_bits(nats: Tensor) -> Tensor:
    """Nats to bits."""
    return nats / math.log(2)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean over a batch and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


# Units. A pixel has `channels` numbers; `scale` is how many grey levels one unit of x spans: x = (level + noise)/scale.


def bits_per_dimension(K: float, channels: int, scale: float) -> float:
    """Table 1's K, bits a pixel, as the bits a dimension in which others report: an upper bound, smaller is better.

    log₂(scale) − K/C bounds −log₂ P(level) when x holds uniform noise of exactly one level.
    """
    return math.log2(scale) - K / channels


def bits_per_pixel(bits: float, channels: int, scale: float) -> float:
    """Bits a dimension as Table 1's K, bits a pixel: `bits_per_dimension` read backwards."""
    return channels * (math.log2(scale) - bits)


def null_bits(channels: int) -> float:
    """L_null of Table 1 for data of mean square 1, bits a pixel: −½ log₂(2πe) for each channel."""
    return -channels / 2 * math.log2(2 * math.pi * math.e)


def ceiling(beta_1: float, channels: int) -> float:
    """The most that (14) can be with the edge step (44): −H_q(X¹|X⁰), bits a pixel of a Gaussian chain."""
    return -channels / 2 * math.log2(2 * math.pi * math.e * beta_1)
