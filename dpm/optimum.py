"""The exact optimum, the yardstick for data whose q(x⁰|x^t) is a finite sum. Ours, not the paper's.

Of all reverse kernels of the paper's form the best has the moments of q(x^{t−1}|x^t). Put into (14) it gives K*, and
K ≤ K* ≤ −H(X⁰) for every network of that form with that schedule.
"""

import math
from collections import Counter
from itertools import combinations_with_replacement, product

import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal, kl_divergence, register_kl
from torch.nn.functional import logsigmoid

from dpm.bound import per_sample
from dpm.entropy import lower
from dpm.files import UserError
from dpm.forward import Binomial, Chain, Gaussian, Law, Normal, at_time, everywhere
from dpm.schedules import from_alpha_bar, shortest_paths

STATES = 2_000_000  #: the most states times points that `exact_K` visits at every t, or compares beforehand


class Optimum:
    """f_b*, or f_μ* and diagonal f_Σ*, for x⁰ one of `points` [M, D], drawn by their `weights` [M] or else evenly.

    Called like any reverse model.
    """

    variance = 0.0  #: of x⁰ around its point

    def __init__(self, points: Tensor, weights: Tensor | None = None):
        self.points = points
        even = torch.full((len(points),), 1 / len(points), dtype=torch.float64, device=points.device)
        self.weights = even if weights is None else weights

    def which(self, log_likelihood: Tensor) -> Tensor:
        """The chance of each point given x^t, from log q(x^t|point): [B, M] → [B, M]."""
        return torch.softmax(log_likelihood + self.weights.to(log_likelihood).log(), dim=1)

    def moments(self, q: Chain, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each entry of x⁰ given x^t, [B, D]."""
        points = self.points.to(xt)
        weight = self.which(q.log_likelihood(xt, points, t))
        mean = weight @ points
        return mean, weight @ points.square() - mean.square()

    def __call__(self, q: Chain, xt: Tensor, t: Tensor) -> Law:
        return q.average(xt, *self.moments(q, xt, t), t)

    def log_probability(self, x0: Tensor) -> Tensor:
        """log q(x⁰), [B] nats: −∞ for x⁰ that is none of the points."""
        same = (x0[:, None] == self.points.to(x0)).all(-1)
        return (same.to(x0.dtype) @ self.weights.to(x0)).log()


class BlurredOptimum(Optimum):
    """f_μ*, f_Σ* for x⁰ = one of `points` plus N(0, variance·I): a mixture of Gaussians.

    With points closer than their width along a curve the sum is quadrature, and the data a smooth density.
    """

    def __init__(self, points: Tensor, variance: float, weights: Tensor | None = None):
        super().__init__(points, weights)
        self.variance = variance

    def known(self, q: Chain, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of x⁰ given x^t: the chance of each point; given the point too, its weight and that of x^t in the mean, and
        the variance left."""
        signal, noise = at_time(q.alpha_bar, t, xt), at_time(q.noise_level, t, xt)
        weight = self.which(q.log_likelihood(xt, self.points.to(xt), t, self.variance))  # type: ignore[call-arg]
        total = signal * self.variance + noise  # Var(x^t | point)
        gain = signal.sqrt() * self.variance / total
        return weight, 1 - signal.sqrt() * gain, gain, self.variance * noise / total

    def moments(self, q: Chain, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each entry of x⁰ given x^t, [B, D]."""
        points = self.points.to(xt)
        weight, from_point, gain, left = self.known(q, xt, t)
        point = weight @ points
        spread = weight @ points.square() - point.square()
        return from_point * point + gain * xt, from_point**2 * spread + left

    def log_probability(self, x0: Tensor) -> Tensor:
        """log q(x⁰), [B] nats."""
        squared = torch.cdist(x0, self.points.to(x0), compute_mode="donot_use_mm_for_euclid_dist").square()
        size = x0.shape[1] / 2 * math.log(2 * math.pi * self.variance)
        return torch.logsumexp(self.weights.to(x0).log() - squared / (2 * self.variance), dim=1) - size


class FullOptimum(BlurredOptimum):
    """f_μ* with all of Σ*, not its diagonal alone: what the paper's kernel gives away by independent coordinates."""

    def __call__(self, q: Chain, xt: Tensor, t: Tensor) -> MultivariateNormal:  # type: ignore[override]
        points = self.points.to(xt)
        weight, from_point, gain, left = self.known(q, xt, t)
        point = weight @ points
        spread = torch.einsum("bm,mi,mj->bij", weight, points, points) - point[:, :, None] * point[:, None]
        given_point = q.average(xt, from_point * point + gain * xt, left.expand_as(xt), t)
        carried = (q.given(xt, t)[0] * from_point)[..., None] ** 2
        return MultivariateNormal(given_point.mean, torch.diag_embed(given_point.variance) + carried * spread)


@register_kl(Normal, MultivariateNormal)
def _kl_full(p: Normal, q: MultivariateNormal) -> Tensor:
    return kl_divergence(MultivariateNormal(p.mean, torch.diag_embed(p.variance)), q)


@torch.no_grad()
def best_K(p: Optimum, q: Chain, x0: Tensor, generator: Generator) -> Tensor:
    """K* from x⁰ drawn as the data, [B] nats: (14) with each KL averaged over all x⁰ that explain its x^t.

    f* has the moments of q(x^{t−1}|x^t), so that mean is H[f*] − H_q(X^{t−1}|X^t,X⁰): no noise of x⁰ is left in it.
    """
    at_T, at_1, prior = q.entropies(x0)
    K = at_T - at_1 - prior
    for t in range(2, q.T + 1):
        steps = everywhere(t, x0)
        xt = q.marginal(x0, steps).at(q.noise(x0, generator))
        K += lower(q, x0, steps) - per_sample(p(q, xt, steps).entropy())
    return K


def exact_K(p: Optimum, q: Binomial) -> Tensor | None:
    """K* of bits in nats, every state of the chain counted, so with its slope in β; None where they are too many.

    Bits that agree in every point are alike, so x^t matters by its number of ones among each group of them; groups that
    the data would let change places need be counted in one order only.
    """
    groups, sizes = p.points.T.unique(dim=0, return_counts=True)  # [G, M]: a bit of each group, in every point
    if len(groups) * groups.numel() > STATES:
        return None
    classes = interchangeable(groups, sizes, p.weights)
    if math.prod(math.comb(len(one) + int(sizes[one[0]]), len(one)) for one in classes) * len(p.points) > STATES:
        return None
    ones, log_ways = counts(classes, sizes)
    points = groups.T.contiguous()
    K = torch.stack(q.entropies(p.points)) @ p.weights
    total = K[0] - K[1] - K[2]
    for t in range(2, q.T + 1):
        steps = everywhere(t, points)
        law = q.marginal(points, steps)
        joint = torch.xlogy(ones[:, None], law.probs).sum(2) + torch.xlogy((sizes - ones)[:, None], law.off).sum(2)
        joint = joint + p.weights.log()
        chance = (joint.logsumexp(1) + log_ways).exp()
        mean = torch.softmax(joint, dim=1) @ points
        after = [q.average(torch.full_like(mean, bit), mean, mean, everywhere(t, mean)).entropy() for bit in (0.0, 1.0)]
        total += lower(q, p.points, everywhere(t, p.points)) @ p.weights
        total -= chance @ ((sizes - ones) * after[0] + ones * after[1]).sum(1)
    return total


@torch.no_grad()
def best_schedule(p: Optimum, T: int, first: float, x0: Tensor, generator: Generator, places: int = 300) -> Tensor:
    """The rates of T steps, β_1 = `first`, that make K* of reals the highest: [T+1]. x⁰ [n, D] are samples of the data.

    A step from signal-to-noise s down to r < s costs E ½ Σ_i log(1 + (s − r) Var(x⁰_i|x^t)), which depends on no other
    step; so the best of all ways through `places` noise levels is a shortest path. UserError when T steps are more.
    """
    if places < T:
        raise UserError(f"{T} steps find no place among {places} noise levels; give --T {places} or fewer")
    log_odds = torch.linspace(math.log(1 / first - 1), -7, places, dtype=torch.float64, device=x0.device)
    alpha_bar, snr = torch.sigmoid(log_odds), log_odds.exp()
    q = Gaussian(from_alpha_bar(alpha_bar))  # place k is its t = k+1
    frozen = q.noise(x0, generator)  # one for all places, or the path would seek out the lucky ones
    loss = torch.full((places, places), math.inf, dtype=torch.float64, device=x0.device)
    for k in range(1, places):
        steps = everywhere(k + 1, x0)
        variance = p.moments(q, q.marginal(x0, steps).at(frozen), steps)[1]
        loss[:k, k] = 0.5 * torch.log1p((snr[:k] - snr[k])[:, None, None] * variance).sum(2).mean(1)
    cost, path = shortest_paths(loss, T - 1)
    ends = cost - x0.shape[1] / 2 * torch.log(-torch.expm1(logsigmoid(log_odds)))  # the rest of (14) that T changes
    return from_alpha_bar(alpha_bar[path[ends.argmin()]])


def interchangeable(groups: Tensor, sizes: Tensor, weights: Tensor) -> list[list[int]]:
    """Classes of groups [G, M] of one size, any two of which the data would let change places."""

    def data(order: list[int]) -> Counter:
        rows: Counter = Counter()
        for row, weight in zip(groups[order].T.tolist(), weights.tolist(), strict=True):
            rows[tuple(row)] += round(weight, 12)
        return rows

    order, classes = list(range(len(groups))), list[list[int]]()
    for g in order:
        for one in classes:
            swapped = [one[0] if k == g else g if k == one[0] else k for k in order]
            if sizes[g] == sizes[one[0]] and data(swapped) == data(order):
                one.append(g)
                break
        else:
            classes.append([g])
    return classes


def counts(classes: list[list[int]], sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of ones in each group, each class in one order, [S, G], and log of how many states each stands for."""
    choices = [list(combinations_with_replacement(range(int(sizes[one[0]]) + 1), len(one))) for one in classes]
    orders = [
        [math.lgamma(len(one) + 1) - sum(math.lgamma(n + 1) for n in Counter(some).values()) for some in choice]
        for one, choice in zip(classes, choices, strict=True)
    ]
    place = torch.tensor([g for one in classes for g in one]).argsort()
    ones = torch.tensor([sum(some, ()) for some in product(*choices)], dtype=torch.float64)[:, place]
    log_orders = torch.tensor([sum(some) for some in product(*orders)], dtype=torch.float64)
    bits = sizes.double()
    choose = (bits + 1).lgamma() - (ones + 1).lgamma() - (bits - ones + 1).lgamma()
    return ones, log_orders + choose.sum(1)
