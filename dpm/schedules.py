"""Diffusion rates of Section 2.4.1: how fast each step destroys structure.

Every schedule is a float64 tensor of T+1 slots, so that an index is the paper's t; slot 0 holds 0, "no noise".
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


def erase_evenly(T: int) -> Tensor:
    """β_t = 1/(T−t+1), Section 2.4.1: every step erases the same share 1/T of the first signal, so ᾱ_t = 1 − t/T.

    Returns [T+1] in float64; β_T = 1, the chain forgets its start exactly.
    """
    t = torch.arange(1, T + 1, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), 1 / (T - t + 1)])


def geometric(T: int, *levels: float) -> Tensor:
    """Noise whose odds (1−ᾱ_t)/ᾱ_t grow by one factor a step, from the first level = β_1 to the last, 1−ᾱ_T.

    With more levels they are passed in turn, as many steps from each to the next. Returns [T+1] rates β in float64. Our
    own; the paper learns its Gaussian rates, or takes those of `erase_evenly`.
    """
    log_odds = torch.tensor(levels, dtype=torch.float64).logit()
    passed = torch.linspace(0, T - 1, len(levels), dtype=torch.float64).round().long().tolist()
    ways = [
        torch.linspace(a, b, t - s + 1, dtype=torch.float64)[1:]
        for (a, b), (s, t) in zip(pairwise(log_odds.tolist()), pairwise(passed), strict=True)
    ]
    return from_alpha_bar(torch.sigmoid(-torch.cat([log_odds[:1], *ways])))


def from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """The rates β_1…T that leave the signal shares ᾱ_1…T: β_t = 1 − ᾱ_t/ᾱ_{t−1}. Shapes [T] → [T+1]."""
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return torch.cat([alpha_bar.new_zeros(1), (before - alpha_bar) / before])


def log_alpha_bar(beta: Tensor) -> Tensor:
    """log ᾱ_t = Σ_{s≤t} log(1−β_s), shape [T+1]; −∞ once some β is 1."""
    return torch.log1p(-beta).cumsum(0)


def shortest_paths(loss: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The cheapest way from place 0 to each place in so many steps, step j → k costing loss[j, k], ∞ if barred.

    loss [G, G] → costs [G] and places visited [G, steps+1]. Dynamic programming: exact, in G² a step.
    """
    cost = torch.full_like(loss[0], math.inf)
    cost[0] = 0
    path = torch.arange(len(loss), device=loss.device)[:, None]
    for _ in range(steps):
        cost, before = (cost[:, None] + loss).min(0)
        path = torch.cat([path[before], torch.arange(len(loss), device=loss.device)[:, None]], dim=1)
    return cost, path


class Fixed(nn.Module):
    """A schedule that training leaves alone; calling it returns β, shape [T+1]."""

    beta: Tensor

    def __init__(self, beta: Tensor):
        super().__init__()
        self.register_buffer("beta", beta)

    def forward(self) -> Tensor:
        return self.beta


class Learned(nn.Module):
    """β_2…T learned by ascent on K, β_1 fixed against overfitting (Section 2.4.1); calling it returns β, [T+1].

    The free parameters are the log odds of each rate, so that every step of an optimiser leaves 0 < β < 1.
    """

    head: Tensor

    def __init__(self, beta: Tensor):
        super().__init__()
        self.register_buffer("head", beta[:2].clone())
        self.log_odds = nn.Parameter(beta[2:].logit())

    def forward(self) -> Tensor:
        return torch.cat([self.head, torch.sigmoid(self.log_odds)])
