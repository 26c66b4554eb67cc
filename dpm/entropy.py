"""Bounds on the entropy of a reverse step, Section 2.6 and Appendix A, and the exact value where it can be had.

The bounds come for each x⁰, as [B] nats summed over the entries of x; averaged over the data they are the two sides
of (24). The exact values are for x⁰ drawn evenly from `points` [M, D] and, on the line, blurred by N(0, variance).
"""

import math

import torch
from torch import Generator, Tensor
from torch.special import entr

from dpm.bound import per_sample
from dpm.forward import Bits, Chain, Law, Normal, everywhere


def upper(q: Chain, x0: Tensor, t: Tensor) -> Tensor:
    """H_q(X^t|X^{t−1}), right side of (24) and (36), by (28)-(30), given x⁰. x⁰ [B, D], t [B] in 1…T → [B] nats.

    A step's entropy is a constant for reals, and for a bit linear in x^{t−1}: its mean asks only for that of x^{t−1}.
    """
    zero, one = (q.step(torch.full_like(x0, b), t).entropy() for b in (0.0, 1.0))
    return per_sample(zero + (one - zero) * q.marginal(x0, t - 1).mean)


def lower(q: Chain, x0: Tensor, t: Tensor) -> Tensor:
    """H_q(X^t|X^{t−1}) + H_q(X^{t−1}|X⁰) − H_q(X^t|X⁰), left side of (24) and (36), given x⁰ [B, D]; → [B] nats.

    By (31)-(35). It is H_q(X^{t−1}|X^t,X⁰). At t = 1 nothing is open: 0 for bits, −∞ for reals.
    """
    before, after = (per_sample(q.marginal(x0, s).entropy()) for s in (t - 1, t))
    return upper(q, x0, t) + before - after


def mismatch(q: Chain, x0: Tensor, t: Tensor) -> Tensor:
    """E log π(x^t) − E log π(x^{t−1}) given x⁰, [B] nats: 0 on average for data that look to π like its own. Ours.

    `upper` + `mismatch` bounds the step from above for all data; (28) takes the second for zero.
    """
    before, after = (_log_prior(q, q.marginal(x0, s)) for s in (t - 1, t))
    return per_sample(after - before)


def log_density(q: Chain, points: Tensor, xt: Tensor, t: int, variance: float = 0.0) -> Tensor:
    """log q(x^t), a mixture of M laws q(x^t|x⁰): x^t [B, D] → [B] nats."""
    law = q.marginal(points, everywhere(t, points))
    if isinstance(law, Normal):
        law = Normal(law.loc, law.variance + q.alpha_bar[t] * variance)
    return torch.logsumexp(law.log_prob(xt[:, None]).sum(-1), dim=1) - math.log(len(points))


def state_entropy(
    q: Chain, points: Tensor, t: int, grid: Tensor, cell: Tensor | float = 1.0, variance: float = 0.0
) -> Tensor:
    """H_q(X^t) as a sum over `grid` [G, D]: all states of short sequences, or places on the line, `cell` apart.

    States that q cannot tell apart may share one place, whose cell, [G], then counts them.
    """
    return (cell * entr(log_density(q, points, grid, t, variance).exp())).sum()


def exact(q: Chain, points: Tensor, t: int, grid: Tensor, cell: Tensor | float = 1.0, variance: float = 0.0) -> Tensor:
    """H_q(X^{t−1}|X^t) by (25)-(27), in nats; grid and cell as in `state_entropy`."""
    before, after = (state_entropy(q, points, s, grid, cell, variance) for s in (t - 1, t))
    return upper(q, points, everywhere(t, points)).mean() + before - after


def sampled(q: Chain, points: Tensor, x0: Tensor, t: int, generator: Generator, variance: float = 0.0) -> Tensor:
    """−log q(x^{t−1}|x^t) by Bayes' rule on one step of the chain from each x⁰: [B] nats, whose mean is (27)."""
    steps = everywhere(t, x0)
    before = q.marginal(x0, steps - 1).at(q.noise(x0, generator))
    kernel = q.step(before, steps)
    after = kernel.at(q.noise(x0, generator))
    gained = log_density(q, points, after, t, variance) - log_density(q, points, before, t - 1, variance)
    return gained - per_sample(kernel.log_prob(after))


def _log_prior(q: Chain, law: Law) -> Tensor:
    """E log π over a law, entry by entry."""
    prior = q.prior(law.mean)
    if isinstance(prior, Bits):
        on, off = prior.logs()
        return law.mean * on + (1 - law.mean) * off
    return prior.log_prob(law.mean) - law.variance / 2
