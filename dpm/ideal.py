"""Ideal (Bayes-optimal) reverse models, for data whose q(x⁰|x^t) is a finite sum. Ours: the yardstick of the book.

Among all reverse transitions of the paper's form the best has the moments of q(x^{t−1}|x^t). Its bound is K*, and
K ≤ K* ≤ −H(X⁰) for every network of that form with that schedule.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import combinations_with_replacement, product, repeat

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from dpm.bound import prior_kl
from dpm.distributions import Distribution, MultivariateNormal
from dpm.entropy import entropy_lower_bound, log_marginal_density
from dpm.errors import UserError
from dpm.forward import ForwardProcess, GaussianForward, sum_except_batch
from dpm.reverse import FinalStep, final_step, has_edge_step
from dpm.schedules import beta_from_alpha_bar, extract, shortest_paths

MAX_STATES = 2_000_000  #: the most states times points that `enumerate_ideal_K` visits at one timestep
SAMPLES_PER_POINT = 50  # of x^t, where x⁰ is one of a few points
LATTICE_SPACING = 1.6  # in widths of q(x^t|point); at 1 the sums of a round have five digits, at three times the work
LATTICE_REACH = 5  # widths around each point that the lattice covers
BLOCK = 400_000  # responsibilities, of some x^t for all points, that fit the caches of a CPU
LAST_LOG_SNR = -7  # of the last noise level of a schedule: 1−ᾱ_T = 0.999
NEGLIGIBLE = 1e-10  # weights of places that are left out


def in_blocks(moments: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A method moments(q, x^t, t) that takes as many rows of x^t at once as a block of responsibilities has."""

    @wraps(moments)
    def of_all_rows(p: "IdealReverse", q: ForwardProcess, xt: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        rows = p.block_rows
        steps = repeat(t) if isinstance(t, int) else t.split(rows)
        blocks = [moments(p, q, x, step) for x, step in zip(xt.split(rows), steps, strict=False)]
        first, second = (torch.cat(values) for values in zip(*blocks, strict=True))
        return first, second

    return of_all_rows


class IdealReverse:
    """The ideal reverse model for x⁰ uniform over `points` [M, D], or with probabilities `weights` [M].

    Called like any reverse model: f_b*, or f_μ* and the diagonal f_Σ*.
    """

    variance = 0.0  #: of x⁰ around its point

    def __init__(self, points: Tensor, weights: Tensor | None = None, final_step: FinalStep | None = None):
        uniform = torch.full((len(points),), 1 / len(points), dtype=torch.float64, device=points.device)
        self.points, self.weights, self.final_step = points, uniform if weights is None else weights, final_step

    @property
    def block_rows(self) -> int:
        """How many x^t are in a block."""
        return max(1, BLOCK // len(self.points))

    def responsibilities(self, log_likelihood: Tensor) -> Tensor:
        """P(point | x^t) from log q(x^t | point): [B, M] → [B, M]."""
        return torch.softmax(log_likelihood + self.weights.to(log_likelihood).log(), dim=1)

    @in_blocks
    def predict_x0(self, q: ForwardProcess, xt: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each entry of x⁰ given x^t, [B, D]."""
        points = self.points.to(xt)
        responsibilities = self.responsibilities(q.log_likelihood(xt, points, t))
        mean = responsibilities @ points
        return mean, responsibilities @ points.square() - mean.square()

    def __call__(self, q: ForwardProcess, xt: Tensor, t: int | Tensor) -> Distribution:
        return q.posterior_from_moments(xt, *self.predict_x0(q, xt, t), t)

    def x0_spectrum(self, q: ForwardProcess, xt: Tensor, t: int | Tensor) -> Tensor:
        """The eigenvalues of the covariance of x⁰ given x^t that p can express, [B, D]: here its diagonal."""
        return self.predict_x0(q, xt, t)[1]

    def log_marginal(self, q: ForwardProcess, xt: Tensor, t: int) -> Tensor:
        """log q(x^t), [B] nats."""
        return log_marginal_density(q, self.points.to(xt), xt, t, self.variance, self.weights.to(xt))

    def sample_marginal(self, q: ForwardProcess, t: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Samples x^t [n, D] of q(x^t), as many from each point, and their weights [n] of sum 1."""
        x0 = self.points.to(q.beta).repeat(SAMPLES_PER_POINT, 1)
        xt = q.marginal(x0, t).reparameterize(q.sample_noise(x0, generator))
        return xt, self.weights.to(xt).repeat(SAMPLES_PER_POINT) / SAMPLES_PER_POINT

    def log_prob(self, x0: Tensor) -> Tensor:
        """log q(x⁰), [B] nats; −∞ for what is none of the points."""
        is_point = (x0[:, None] == self.points.to(x0)).all(-1)
        return (is_point.to(x0.dtype) @ self.weights.to(x0)).log()


class IdealMixtureReverse(IdealReverse):
    """The ideal reverse model for x⁰ = a point + N(0, variance · I): a mixture of Gaussians, f_μ* and diagonal f_Σ*.

    With points along a curve, closer than their width, the sum is quadrature and the data have a smooth density.
    """

    def __init__(
        self,
        points: Tensor,
        variance: float,
        weights: Tensor | None = None,
        final_step: FinalStep | None = None,
    ):
        super().__init__(points, weights, final_step)
        self.variance = variance

    def component_posterior(
        self, q: GaussianForward, xt: Tensor, t: int | Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Responsibilities [B, M] of the components; and a, b, v of x⁰ | x^t, component ~ N(a · point + b · x^t, v)."""
        alpha_bar, noise_variance = extract(q.alpha_bar, t, xt), extract(q.noise_variance, t, xt)
        responsibilities = self.responsibilities(q.log_likelihood(xt, self.points.to(xt), t, self.variance))
        total_variance = alpha_bar * self.variance + noise_variance  # Var(x^t | point)
        gain = alpha_bar.sqrt() * self.variance / total_variance
        return responsibilities, 1 - alpha_bar.sqrt() * gain, gain, self.variance * noise_variance / total_variance

    @in_blocks
    def predict_x0(self, q: GaussianForward, xt: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Mean and variance of each entry of x⁰ given x^t, [B, D]."""
        points = self.points.to(xt)
        responsibilities, point_weight, gain, component_variance = self.component_posterior(q, xt, t)
        mean_point = responsibilities @ points
        point_variance = responsibilities @ points.square() - mean_point.square()
        return point_weight * mean_point + gain * xt, point_weight**2 * point_variance + component_variance

    def log_marginal(self, q: GaussianForward, xt: Tensor, t: int) -> Tensor:  # type: ignore[override]
        """log q(x^t), [B] nats."""
        points, log_weights = self.points.to(xt), self.weights.to(xt).log()
        variance = q.blurred_marginal(points, self.variance, t).variance
        constant = xt.square().sum(1) / (2 * variance) + xt.shape[1] / 2 * torch.log(2 * math.pi * variance)
        log_likelihoods = (q.log_likelihood(x, points, t, self.variance) for x in xt.split(self.block_rows))
        return torch.cat([torch.logsumexp(values + log_weights, dim=1) for values in log_likelihoods]) - constant

    def sample_marginal(self, q: GaussianForward, t: int, generator: Generator) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The places x^t [n, D] of a lattice around the points, shifted at random, and weights [n] ∝ q(x^t) of sum 1.

        A weighted mean is a mean over q(x^t) by the trapezoidal rule. Its error falls faster than any power of the
        spacing, since q(x^t) is as smooth as its narrowest component; other shifts show how large it is.
        """
        marginal = q.blurred_marginal(self.points.to(q.beta), self.variance, t)
        dimensions, width = marginal.mean.shape[1], float(marginal.variance.sqrt())
        spacing, reach = LATTICE_SPACING * width, math.ceil(LATTICE_REACH / LATTICE_SPACING - 0.5)
        shift = torch.rand(dimensions, generator=generator, dtype=torch.float64, device=generator.device)
        steps = torch.cartesian_prod(*[torch.arange(-reach, reach + 1, device=shift.device)] * dimensions)
        near = (marginal.mean / spacing - shift).round().long().unique(dim=0)
        index = (near[:, None] + steps.view(-1, dimensions)).flatten(0, 1).unique(dim=0)
        xt = (index + shift) * spacing
        weights = self.log_marginal(q, xt, t).softmax(0)
        matters = weights > NEGLIGIBLE
        return xt[matters], weights[matters]

    def log_prob(self, x0: Tensor) -> Tensor:
        """log q(x⁰), [B] nats."""
        squared = torch.cdist(x0, self.points.to(x0), compute_mode="donot_use_mm_for_euclid_dist").square()
        log_norm = x0.shape[1] / 2 * math.log(2 * math.pi * self.variance)
        return torch.logsumexp(self.weights.to(x0).log() - squared / (2 * self.variance), dim=1) - log_norm


class IdealFullCovarianceReverse(IdealMixtureReverse):
    """f_μ* with the full covariance Σ*: shows what the paper's kernel gives away by independent coordinates."""

    @in_blocks
    def predict_x0_covariance(self, q: GaussianForward, xt: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, D] and covariance [B, D, D] of x⁰ given x^t: that within a component, plus that between them."""
        points = self.points.to(xt)
        responsibilities, point_weight, gain, component_variance = self.component_posterior(q, xt, t)
        mean_point = responsibilities @ points
        second_moment = torch.einsum("bm,mi,mj->bij", responsibilities, points, points)
        between = second_moment - mean_point[:, :, None] * mean_point[:, None]
        within = torch.diag_embed(component_variance.expand_as(xt))
        return point_weight * mean_point + gain * xt, within + point_weight[..., None] ** 2 * between

    def __call__(self, q: GaussianForward, xt: Tensor, t: int | Tensor) -> MultivariateNormal:  # type: ignore[override]
        """The normal with mean and covariance of q(x^{t−1}|x^t)."""
        return q.posterior_from_covariance(xt, *self.predict_x0_covariance(q, xt, t), t)

    def x0_spectrum(self, q: GaussianForward, xt: Tensor, t: int | Tensor) -> Tensor:  # type: ignore[override]
        """The eigenvalues of Cov(x⁰|x^t), [B, D]."""
        return torch.linalg.eigvalsh(self.predict_x0_covariance(q, xt, t)[1])


@torch.no_grad()
def ideal_K(p: IdealReverse, q: ForwardProcess, x0: Tensor, generator: Generator) -> Tensor:
    """K*, the K of the ideal p, estimated on x⁰ [B, D] drawn as the data: [B] nats.

    Each KL of (14) is averaged over q(x⁰|x^t). Since p has the moments of q(x^{t−1}|x^t), this average is
    H[p(x^{t−1}|x^t)] − H_q(X^{t−1}|X^t,X⁰), which is free of the sampling noise of x⁰ given x^t.
    """
    if has_edge_step(p, q):
        at_T, at_1, prior = q.entropy_constants(x0)
        K = at_T - at_1 - prior
    else:
        x1 = q.marginal(x0, 1).reparameterize(q.sample_noise(x0, generator))
        K = -prior_kl(q, x0) - sum_except_batch(final_step(p, q, x1).entropy())
    for t in range(2, q.T + 1):
        xt = q.marginal(x0, t).reparameterize(q.sample_noise(x0, generator))
        K += entropy_lower_bound(q, x0, t) - sum_except_batch(p(q, xt, t).entropy())
    return K


def enumerate_ideal_K(p: IdealReverse, q: ForwardProcess) -> Tensor | None:
    """K* of discrete x⁰ in nats, exactly, by enumeration of every state of x^t; None for real or too many states.

    Differentiable in β. Bits that agree in every point are interchangeable, so that only how many of them are in which
    state matters; and of groups of bits that the data let change places only one order is visited.
    """
    states = _enumerate_states(p, q)
    if states is None:
        return None
    points, counts, log_multiplicity = states
    if has_edge_step(p, q):
        at_T, at_1, prior = torch.stack(q.entropy_constants(p.points)) @ p.weights
        total, first = at_T - at_1 - prior, 2
    else:
        total, first = -(prior_kl(q, p.points) @ p.weights), 1
    for t in range(first, q.T + 1):
        log_joint = _log_joint(q, points, counts, t) + p.weights.log()  # [S, M]
        possible = log_joint.detach().logsumexp(1) > -math.inf
        log_joint, counts_t = log_joint[possible], counts[possible]
        probability = (log_joint.logsumexp(1) + log_multiplicity[possible]).exp()
        responsibilities = torch.softmax(log_joint, dim=1)
        mean = responsibilities @ points  # of x⁰ | x^t, for each group: [S, G]
        variance = responsibilities @ points.square() - mean.square()
        steps = [q.posterior_from_moments(torch.full_like(mean, state), mean, variance, t) for state in _states(q)]
        total = total + entropy_lower_bound(q, p.points, t) @ p.weights
        total = total - probability @ torch.stack([step.entropy() for step in steps], dim=-1).mul(counts_t).sum((1, 2))
    return total


@torch.no_grad()
def enumerate_entropy(p: IdealReverse, q: ForwardProcess, t: int) -> Tensor | None:
    """H_q(X^t) of discrete x⁰ in nats, exactly, by the same enumeration; None where that is None."""
    states = _enumerate_states(p, q)
    if states is None:
        return None
    points, counts, log_multiplicity = states
    log_q = (_log_joint(q, points, counts, t) + p.weights.log()).logsumexp(1)
    return -torch.xlogy((log_q + log_multiplicity).exp(), log_q.exp()).sum()


def _enumerate_states(p: IdealReverse, q: ForwardProcess) -> tuple[Tensor, Tensor, Tensor] | None:
    """The points [M, G], a bit a group; of every state that q can reach the counts [S, G, states]; and the log of how
    many states of the chain it stands for, [S]. None for real numbers, and where they are too many."""
    if q.states is None:
        return None
    groups, sizes = p.points.T.unique(dim=0, return_counts=True)  # [G, M]: the bit of each group in every point
    if len(groups) * groups.numel() > MAX_STATES:
        return None
    classes = _interchangeable_groups(groups, sizes, p.weights)
    n_group_states = [math.comb(int(sizes[g[0]]) + len(q.states) - 1, len(q.states) - 1) for g in classes]
    n_states = math.prod(math.comb(len(g) + n - 1, len(g)) for g, n in zip(classes, n_group_states, strict=True))
    if n_states * len(p.points) > MAX_STATES:
        return None
    counts, log_multiplicity = _enumerate_counts(classes, sizes, len(q.states))
    points = groups.T.contiguous()
    with torch.no_grad():  # what neither the first step nor the last can make, no step between them can
        possible = sum((_log_joint(q, points, counts, t) > -math.inf).any(1) for t in {1, q.T}) > 0
    return points, counts[possible], log_multiplicity[possible]


def _states(q: ForwardProcess) -> list[float]:
    """The values that an entry of x^t can take."""
    assert q.states is not None
    return q.states.tolist()


def _log_joint(q: ForwardProcess, points: Tensor, counts: Tensor, t: int) -> Tensor:
    """log q(x^t | point) of every state, from the number of bits of each group in each state: [S, M]."""
    marginal = q.marginal(points, t)
    log_joint = counts.new_zeros(len(counts), len(points))
    for k, state in enumerate(_states(q)):
        prob = marginal.log_prob(torch.full_like(points, state)).exp()  # [M, G]
        log_joint = log_joint + torch.xlogy(counts[:, None, :, k], prob).sum(2)
    return log_joint


def _interchangeable_groups(groups: Tensor, sizes: Tensor, weights: Tensor) -> list[list[int]]:
    """Classes of groups [G, M] of one size, any two of which the data would let change places."""

    def weighted_points(order: list[int]) -> Counter:
        found: Counter = Counter()
        for bits, weight in zip(groups[order].T.tolist(), weights.tolist(), strict=True):
            found[tuple(bits)] += round(weight, 12)
        return found

    order, classes = list(range(len(groups))), list[list[int]]()
    for g in order:
        for members in classes:
            swapped = [members[0] if k == g else g if k == members[0] else k for k in order]
            if sizes[g] == sizes[members[0]] and weighted_points(swapped) == weighted_points(order):
                members.append(g)
                break
        else:
            classes.append([g])
    return classes


def _compositions(n: int, k: int) -> Iterator[tuple[int, ...]]:
    """All ways to distribute n bits over k states: tuples of k counts that add up to n."""
    if k == 1:
        yield (n,)
        return
    for first in range(n + 1):
        for rest in _compositions(n - first, k - 1):
            yield (first, *rest)


def _enumerate_counts(classes: list[list[int]], sizes: Tensor, n_states: int) -> tuple[Tensor, Tensor]:
    """How many bits of each group are in each state, one order per class, [S, G, n_states]; and the log of how many
    states of the chain each of them stands for, [S]."""
    choices = [
        list(combinations_with_replacement(_compositions(int(sizes[members[0]]), n_states), len(members)))
        for members in classes
    ]
    orders = [
        [
            math.lgamma(len(members) + 1) - sum(math.lgamma(n + 1) for n in Counter(choice).values())
            for choice in choices_of_class
        ]
        for members, choices_of_class in zip(classes, choices, strict=True)
    ]
    place = torch.tensor([g for members in classes for g in members]).argsort()
    counts = torch.tensor([sum(choice, ()) for choice in product(*choices)], dtype=torch.float64)[:, place]
    log_orders = torch.tensor([sum(values) for values in product(*orders)], dtype=torch.float64)
    log_multinomial = (sizes.double() + 1).lgamma() - (counts + 1).lgamma().sum(2)
    return counts, log_orders + log_multinomial.sum(1)


@torch.no_grad()
def best_schedule(
    p: IdealReverse, T: int, beta_1: float, x0: Tensor, generator: Generator, n_levels: int = 300
) -> Tensor:
    """The schedule of T steps, β_1 given, that makes K* of Gaussian diffusion the highest: [T+1]. x⁰ [n, D] is data.

    A step from signal-to-noise ratio s down to r < s costs E ½ Σ_i log(1 + (s − r) λ_i), where λ are the variances of
    x⁰ given x^t, or the eigenvalues of its covariance where p has a full one. It depends on no other step: so the best
    path through `n_levels` noise levels is a shortest path. UserError when T > n_levels.
    """
    if n_levels < T:
        raise UserError(f"{T} steps find no place among {n_levels} noise levels; take {n_levels} or fewer")
    log_snr = torch.linspace(math.log(1 / beta_1 - 1), LAST_LOG_SNR, n_levels, dtype=torch.float64, device=x0.device)
    alpha_bar, snr = torch.sigmoid(log_snr), log_snr.exp()
    q = GaussianForward(beta_from_alpha_bar(alpha_bar))  # level k is its timestep k+1
    frozen = q.sample_noise(x0, generator)  # the same for all levels, or the path would seek out lucky draws
    loss = torch.full((n_levels, n_levels), math.inf, dtype=torch.float64, device=x0.device)
    for k in range(1, n_levels):
        xt = q.marginal(x0, k + 1).reparameterize(frozen)
        spectrum = p.x0_spectrum(q, xt, k + 1)
        loss[:k, k] = 0.5 * torch.log1p((snr[:k] - snr[k])[:, None, None] * spectrum).sum(2).mean(1)
    cost, path = shortest_paths(loss, T - 1)  # to every level: [n_levels], [n_levels, T]
    total = cost - x0.shape[1] / 2 * torch.log(-torch.expm1(logsigmoid(log_snr)))  # less H_q(X^T|X⁰) of (14)
    return beta_from_alpha_bar(alpha_bar[path[total.argmin()]])
