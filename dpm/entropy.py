"""Bounds on the entropy of a reverse step, Section 2.6 and Appendix A, and its exact value where that can be computed.

The bounds are per x⁰, [B] nats summed over the entries of x; averaged over the data they are the two sides of (24).
The exact values are for x⁰ drawn uniformly from `points` [M, D], blurred by N(0, variance · I) where x is real.
"""

import math

import torch
from torch import Generator, Tensor
from torch.special import entr

from dpm.forward import ForwardProcess, sum_except_batch


def entropy_upper_bound(q: ForwardProcess, x0: Tensor, t: int | Tensor) -> Tensor:
    """H_q(X^t|X^{t−1}) given x⁰, [B] nats: the right side of (24) and (36), at least H_q(X^{t−1}|X^t) by (28)-(30)."""
    return q.transition_entropy(x0, t)


def entropy_lower_bound(q: ForwardProcess, x0: Tensor, t: int | Tensor) -> Tensor:
    """H_q(X^t|X^{t−1}) + H_q(X^{t−1}|X⁰) − H_q(X^t|X⁰) given x⁰, [B] nats: the left side of (24) and (36).

    By (31)-(35) it is H_q(X^{t−1}|X^t,X⁰). At t = 1, where x⁰ is given, it is 0 for bits and −∞ for real numbers.
    """
    previous, present = (sum_except_batch(q.marginal(x0, s).entropy()) for s in (t - 1, t))
    return entropy_upper_bound(q, x0, t) + previous - present


def prior_cross_entropy_gap_of_step(q: ForwardProcess, x0: Tensor, t: int | Tensor) -> Tensor:
    """E log π(x^t) − E log π(x^{t−1}) given x⁰, [B] nats: the term that (28) takes for zero. Ours.

    It is zero on average for data that have the prior's mean square, or mean activity. With it added,
    `entropy_upper_bound` holds for all data.
    """
    previous, present = (q.marginal(x0, s).cross_entropy(q.prior(x0)) for s in (t - 1, t))
    return sum_except_batch(previous - present)


def log_marginal_density(
    q: ForwardProcess, points: Tensor, xt: Tensor, t: int, variance: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """log q(x^t), a mixture of q(x^t|x⁰) over all points, uniform or by weights [M]: x^t [B, D] → [B] nats."""
    log_prob = q.blurred_marginal(points, variance, t).log_prob(xt[:, None]).sum(-1)
    return torch.logsumexp(log_prob + (-math.log(len(points)) if weights is None else weights.log()), dim=1)


def marginal_entropy(
    q: ForwardProcess, points: Tensor, t: int, grid: Tensor, cell: Tensor | float = 1.0, variance: float = 0.0
) -> Tensor:
    """H_q(X^t) as a sum over `grid` [G, D]: all states of short sequences, or places on the line, `cell` apart.

    States that q cannot tell apart may share a place of the grid; then `cell` [G] counts them.
    """
    return (cell * entr(log_marginal_density(q, points, grid, t, variance).exp())).sum()


def entropy_exact(
    q: ForwardProcess, points: Tensor, t: int, grid: Tensor, cell: Tensor | float = 1.0, variance: float = 0.0
) -> Tensor:
    """H_q(X^{t−1}|X^t) by (25)-(27), nats; grid and cell as in `marginal_entropy`."""
    previous, present = (marginal_entropy(q, points, s, grid, cell, variance) for s in (t - 1, t))
    return entropy_upper_bound(q, points, t).mean() + previous - present


def entropy_sampled(
    q: ForwardProcess, points: Tensor, x0: Tensor, t: int, generator: Generator, variance: float = 0.0
) -> Tensor:
    """−log q(x^{t−1}|x^t) by Bayes' rule at one sampled transition per x⁰: [B] nats, whose mean is (27)."""
    previous = q.marginal(x0, t - 1).reparameterize(q.sample_noise(x0, generator))
    transition = q.transition(previous, t)
    xt = transition.reparameterize(q.sample_noise(x0, generator))
    log_ratio = log_marginal_density(q, points, xt, t, variance) - log_marginal_density(
        q, points, previous, t - 1, variance
    )
    return log_ratio - sum_except_batch(transition.log_prob(xt))
