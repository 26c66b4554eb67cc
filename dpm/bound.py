"""The evidence lower bound K on the log likelihood, Sections 2.3 and 2.4, Appendix B. All in nats.

In general K = E log p(x⁰|x¹) − Σ_{t=2..T} KL(q(x^{t−1}|x^t,x⁰) ‖ p(x^{t−1}|x^t)) − KL(q(x^T|x⁰) ‖ π): `EvidenceBound`.
With the edge step (44) the two ends become analytic entropies, and K is equation (14): `PaperBound`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate, pad

from dpm.distributions import kl_divergence
from dpm.forward import ForwardProcess, sum_except_batch
from dpm.reverse import ReverseModel, final_step, has_edge_step, reverse_step

STRATUM_SIZE = 10  # consecutive samples that interleave their timesteps
FINAL_STRIDE = 10  # samples of which `final_step_bound_loss` gives one to the final step
N_RANGES = 20  # of timesteps, in which mean and spread of KL terms are estimated

Loss = Callable[..., Tensor]  #: (p, q, x⁰, t, noise) → a loss per sample, [B]


@dataclass(frozen=True)
class PaperBound:
    """K of equation (14) in parts, [B] nats each: K = −kl + entropy_T − entropy_1 − entropy_prior."""

    kl: Tensor  #: Σ_{t=2..T} KL( q(x^{t−1}|x^t,x⁰) ‖ p(x^{t−1}|x^t) )
    entropy_T: Tensor  #: H_q(X^T|X⁰)
    entropy_1: Tensor  #: H_q(X¹|X⁰)
    entropy_prior: Tensor  #: H_p(X^T)

    @property
    def K(self) -> Tensor:
        """The bound, [B] nats."""
        return self.entropy_T - self.entropy_1 - self.entropy_prior - self.kl


@dataclass(frozen=True)
class EvidenceBound:
    """K with any final step, in parts, [B] nats each: K = −reconstruction − kl − prior_kl."""

    reconstruction: Tensor  #: −log p(x⁰|x¹) at one x¹ from q(x¹|x⁰)
    kl: Tensor  #: Σ_{t=2..T} KL( q(x^{t−1}|x^t,x⁰) ‖ p(x^{t−1}|x^t) )
    prior_kl: Tensor  #: KL( q(x^T|x⁰) ‖ π )

    @property
    def K(self) -> Tensor:
        """The bound, [B] nats."""
        return -self.reconstruction - self.kl - self.prior_kl


Bound = PaperBound | EvidenceBound  #: K in parts


# Terms


def step_kl(p: ReverseModel, q: ForwardProcess, x0: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
    """KL( q(x^{t−1}|x^t,x⁰) ‖ p(x^{t−1}|x^t) ) of (14), (51) at t ≥ 2, for the x^t that the noise makes: [B] nats."""
    xt = q.marginal(x0, t).reparameterize(noise)
    return sum_except_batch(kl_divergence(q.posterior(xt, x0, t), p(q, xt, t)))


def reconstruction_loss(p: ReverseModel, q: ForwardProcess, x0: Tensor, noise: Tensor) -> Tensor:
    """−log p(x⁰|x¹), for the x¹ that the noise makes: [B] nats."""
    x1 = q.marginal(x0, 1).reparameterize(noise)
    return -sum_except_batch(final_step(p, q, x1).log_prob(x0))


def prior_kl(q: ForwardProcess, x0: Tensor) -> Tensor:
    """KL( q(x^T|x⁰) ‖ π ), [B] nats."""
    return sum_except_batch(kl_divergence(q.marginal(x0, q.T), q.prior(x0)))


def log_null(q: ForwardProcess, x0: Tensor) -> Tensor:
    """L_null of Table 1: log π(x⁰), [B] nats."""
    return sum_except_batch(q.prior(x0).log_prob(x0))


def assemble(p: ReverseModel, q: ForwardProcess, x0: Tensor, kl: Tensor, generator: Generator) -> Bound:
    """K in parts, given the sum of its KL terms: (14) with its analytic entropies (49)-(50) where the final step is
    (44), else the two ends of the general bound."""
    if has_edge_step(p, q):
        return PaperBound(kl, *q.entropy_constants(x0))
    return EvidenceBound(reconstruction_loss(p, q, x0, q.sample_noise(x0, generator)), kl, prior_kl(q, x0))


# Timesteps


def first_learned_timestep(p: ReverseModel, q: ForwardProcess) -> int:
    """The lowest t whose reverse step is learned: 2 with the edge step (44), else 1."""
    return 2 if has_edge_step(p, q) else 1


def timestep_at(u: Tensor, T: int, above: int = 1) -> Tensor:
    """Map u ∈ [0, 1] to a timestep in {above+1, …, T}, all equally likely."""
    return above + 1 + (u * (T - above)).long().clamp(max=T - above - 1)


def stratified_timesteps(batch: int, T: int, generator: Generator, above: int = 1) -> Tensor:
    """Low-discrepancy timesteps t [batch] in {above+1, …, T}: evenly spaced, shifted by one uniform draw.

    A mean over them estimates a mean over all timesteps without bias, with less variance than independent draws.
    """
    shift = torch.rand((), generator=generator, dtype=torch.float64, device=generator.device)
    u = (torch.arange(batch, dtype=torch.float64, device=generator.device) + shift) / batch
    return timestep_at(u, T, above)


def timestep_by_share(u: Tensor, share: Tensor) -> Tensor:
    """Map u ∈ [0, 1] to a timestep, t with the probability share[t], [T+1], of which slots 0 and 1 are 0."""
    return torch.searchsorted(share.cumsum(0), u, right=True).clamp(2, len(share) - 1)


@dataclass(frozen=True)
class KLProfile:
    """How the KL terms of (14) go with t, [T+1] each: what it takes to estimate their sum from few timesteps."""

    mean: Tensor  #: a guess of their mean, nats: only what differs from it is estimated
    share: Tensor  #: the probability with which a timestep is drawn; slots 0 and 1 are 0


def uniform_profile(T: int, device: torch.device) -> KLProfile:
    """The profile that draws timesteps 2…T alike, and guesses no mean."""
    share = torch.full((T - 1,), 1 / (T - 1), dtype=torch.float64, device=device)
    return KLProfile(torch.zeros(T + 1, dtype=torch.float64, device=device), pad(share, (2, 0)))


def kl_profile(t: Tensor, kl: Tensor, T: int) -> KLProfile:
    """The profile of KL terms kl [n], nats, that a pilot drew at t [n], for timesteps 2…T.

    Timesteps are to be drawn in proportion to the standard deviation, which is best for independent draws; a tenth of
    the share is uniform, so that no draw weighs more than ten times the uniform one. Means and deviations are of
    N_RANGES ranges of timesteps, with straight lines between their middles.
    """
    n_ranges = min(N_RANGES, T - 1)
    range_of = (t - 2) * n_ranges // (T - 1)
    moments = [(kl[range_of == k].mean(), kl[range_of == k].std()) for k in range(n_ranges)]
    by_range = torch.tensor(moments, dtype=torch.float64, device=t.device).T
    mean, spread = interpolate(by_range[None], T - 1, mode="linear")[0]
    share = 0.9 * spread / spread.sum() + 0.1 / (T - 1)
    return KLProfile(pad(mean, (2, 0)), pad(share, (2, 0)))


# Estimators of K


def estimate_K(p: ReverseModel, q: ForwardProcess, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """K from one stratified timestep per sample, [B] nats: unbiased in the mean over the batch.

    t is spread over the learned steps: 2…T with the edge step (44), 1…T with another final step.
    """
    if has_edge_step(p, q):
        return PaperBound((q.T - 1) * step_kl(p, q, x0, t, noise), *q.entropy_constants(x0)).K
    is_final = t == 1
    loss = torch.empty(len(x0), dtype=x0.dtype, device=x0.device)
    loss[is_final] = reconstruction_loss(p, q, x0[is_final], noise[is_final])
    loss[~is_final] = step_kl(p, q, x0[~is_final], t[~is_final], noise[~is_final])
    return -q.T * loss - prior_kl(q, x0)


def bound_loss(p: ReverseModel, q: ForwardProcess, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """−K, [B] nats: the paper's loss, whose descent is the ascent of equation (15)."""
    return -estimate_K(p, q, x0, t, noise)


def final_step_bound_loss(p: ReverseModel, q: ForwardProcess, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """−K, [B] nats, of a model with a final step of its own, which takes every FINAL_STRIDE-th sample, whatever its t.

    Unbiased in the mean over a batch of stratified timesteps that is a multiple of FINAL_STRIDE · T, with less variance
    than `bound_loss` where T is large: −log p(x⁰|x¹) is one term of T, and varies more than any other.
    """
    is_final = (t == 1) | (torch.arange(len(t), device=t.device) % FINAL_STRIDE == 0)
    share = 1 / FINAL_STRIDE  # of the samples, before those of t = 1
    loss = torch.empty(len(x0), dtype=x0.dtype, device=x0.device)
    loss[is_final] = reconstruction_loss(p, q, x0[is_final], noise[is_final]) / (share + (1 - share) / q.T)
    loss[~is_final] = step_kl(p, q, x0[~is_final], t[~is_final], noise[~is_final]) * q.T / (1 - share)
    return loss + prior_kl(q, x0)


def simple_loss(p, q: ForwardProcess, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """‖ε − ε̂‖², [B]: L_simple of Ho et al. 2020, for a reverse model that predicts x⁰ of a Gaussian process."""
    marginal = q.marginal(x0, t)
    xt = marginal.reparameterize(noise)
    x0_hat, _ = p.predict_x0(q, xt, t)
    return sum_except_batch((x0_hat - x0).square() * (1 - marginal.variance) / marginal.variance)


@torch.no_grad()
def kl_above(p: ReverseModel, q: ForwardProcess, x0: Tensor, t: int, generator: Generator) -> Tensor:
    """The sum of the KL terms of (14) above t, [B] nats, estimated from one stratified timestep per sample."""
    order = torch.randperm(len(x0), generator=generator, device=generator.device)
    timesteps = stratified_timesteps(len(x0), q.T, generator, above=t)[order]
    return (q.T - t) * step_kl(p, q, x0, timesteps, q.sample_noise(x0, generator))


@torch.no_grad()
def evaluate(p: ReverseModel, q: ForwardProcess, x0: Tensor, generator: Generator) -> Bound:
    """K with every timestep for every sample, each with its own draw of x^t."""
    kl = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
    for t in range(2, q.T + 1):
        kl += step_kl(p, q, x0, t, q.sample_noise(x0, generator))
    return assemble(p, q, x0, kl, generator)


@torch.no_grad()
def evaluate_subsampled(
    p: ReverseModel,
    q: ForwardProcess,
    x0: Tensor,
    generator: Generator,
    n_timesteps: int,
    profile: KLProfile | None = None,
) -> Bound:
    """Estimate (14) from `n_timesteps` stratified timesteps per sample, drawn uniformly, or as a profile says.

    STRATUM_SIZE consecutive samples interleave their timesteps. The estimate is unbiased, but samples within such a
    stratum are correlated: use the means of strata for standard errors.
    """
    profile = profile or uniform_profile(q.T, x0.device)
    kl = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
    n_strata, index = math.ceil(len(x0) / STRATUM_SIZE), torch.arange(len(x0), device=x0.device)
    shift = torch.rand(n_strata, generator=generator, dtype=torch.float64, device=x0.device)
    start = (shift[index // STRATUM_SIZE] + index / STRATUM_SIZE) % 1
    for k in range(n_timesteps):
        u = (start + k) / n_timesteps
        t = timestep_by_share(u, profile.share)
        kl_t = step_kl(p, q, x0, t, q.sample_noise(x0, generator))
        kl += (profile.mean.sum() + (kl_t - profile.mean[t]) / profile.share[t]) / n_timesteps
    return assemble(p, q, x0, kl, generator)


@torch.no_grad()
def trajectory_K(p: ReverseModel, q: ForwardProcess, x0: Tensor, generator: Generator) -> Tensor:
    """K from whole trajectories, (37)-(39): log p(x^T) + Σ_t log p(x^{t−1}|x^t)/q(x^t|x^{t−1}), [B] nats.

    Unbiased for K whatever the data's variance, and noisy. It is also the log weight of one trajectory in (9), and
    minus the work of the trajectory in the physicists' sense.
    """
    K, previous = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device), x0
    for t in range(1, q.T + 1):
        transition = q.transition(previous, t)
        xt = transition.reparameterize(q.sample_noise(x0, generator))
        log_p = sum_except_batch(reverse_step(p, q, xt, t).log_prob(previous))
        K += log_p - sum_except_batch(transition.log_prob(xt))
        previous = xt
    return K + log_null(q, previous)


def prior_cross_entropy_gap(q: ForwardProcess, x0: Tensor) -> Tensor:
    """K of (37)-(39) minus K of (14), [B] nats: the cross entropies to π that (40)-(43) and (45)-(46) hold constant.

    Ours. Its mean is zero for Gaussian data of mean square 1 and for bits of the prior's mean activity.
    """
    prior = q.prior(x0)
    at_1, at_T = (q.marginal(x0, t).cross_entropy(prior) for t in (1, q.T))
    return sum_except_batch(prior.entropy() - at_T + prior.log_prob(x0) + at_1)
