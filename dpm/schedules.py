"""Noise schedules β_1…T, Section 2.4.1: how fast each forward step destroys structure.

Every schedule is a float64 tensor of T+1 slots, so that the index is the paper's t; slot 0 holds 0, "no noise".
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from dpm.errors import UserError


def linear_alpha_bar(T: int) -> Tensor:
    """β_t = 1/(T−t+1), Section 2.4.1, so that ᾱ_t = 1 − t/T: each step erases a share 1/T of the original signal.

    Returns [T+1] in float64. β_T = 1: the last step forgets x⁰ exactly.
    """
    t = torch.arange(1, T + 1, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), 1 / (T - t + 1)])


def power_alpha_bar(T: int, power: float) -> Tensor:
    """ᾱ_t = (1 − t/T)^power: at 1 `linear_alpha_bar`, above it with shorter steps where little signal is left.

    Returns β [T+1] in float64. Ours.
    """
    left = 1 - torch.arange(1, T + 1, dtype=torch.float64) / T
    return beta_from_alpha_bar(left**power)


def log_snr_linear(T: int, *noise_variances: float) -> Tensor:
    """A schedule whose log signal-to-noise ratio log ᾱ_t/(1−ᾱ_t) falls linearly in t.

    1−ᾱ_t goes from the first of `noise_variances`, which is β_1, to the last. Further values between them are passed
    on the way, with the same number of steps from each to the next. Returns β [T+1] in float64. Ours: the paper learns
    its Gaussian schedule, or takes `linear_alpha_bar`.
    """
    log_odds = torch.tensor(noise_variances, dtype=torch.float64).logit()
    knots = torch.linspace(0, T - 1, len(noise_variances), dtype=torch.float64).round().long().tolist()
    segments = [
        torch.linspace(a, b, t - s + 1, dtype=torch.float64)[1:]
        for (a, b), (s, t) in zip(pairwise(log_odds.tolist()), pairwise(knots), strict=True)
    ]
    return beta_from_alpha_bar(torch.sigmoid(-torch.cat([log_odds[:1], *segments])))


def linear_beta(T: int) -> Tensor:
    """The rates of Ho et al. 2020: β_t rises linearly, from 0.1/T to 20/T. Returns [T+1] in float64.

    They take T = 1000; here another T shares out the same noise. ValueError where β_T would exceed 1, for T < 20.
    """
    if T < 20:
        raise ValueError(f"with T = {T} the last rate would be 20/{T}, more than 1; give 20 steps or more")
    return pad(torch.linspace(0.1, 20, T, dtype=torch.float64) / T, (1, 0))


def cosine_alpha_bar(T: int) -> Tensor:
    """The cosine of Nichol and Dhariwal 2021: ᾱ_t falls as cos² of an angle linear in t. Returns β [T+1] in float64.

    Its β_T is 1. They cut the rates at 0.999; here nothing is cut.
    """
    angle = (torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * math.pi / 2
    alpha_bar = angle.cos().square() / angle[0].cos().square()
    return beta_from_alpha_bar(torch.cat([alpha_bar[1:-1], alpha_bar.new_zeros(1)]))  # cos(π/2) rounds to 6e-17


def beta_from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """The schedule β_t = 1 − ᾱ_t/ᾱ_{t−1} of given ᾱ_1…T. Shapes [T] → [T+1]."""
    previous = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return torch.cat([alpha_bar.new_zeros(1), (previous - alpha_bar) / previous])


def check_schedule(beta: Tensor, source: object) -> Tensor:
    """β [T+1] that was read from `source`. UserError unless β_0 = 0, 0 < β_t < 1 for t < T, and 0 < β_T ≤ 1."""
    is_schedule = beta.dim() == 1 and len(beta) > 2 and beta[0] == 0 and (beta[1:] > 0).all() and beta[-1] <= 1
    if not (is_schedule and (beta[1:-1] < 1).all()):
        raise UserError(
            f"{source} holds no noise schedule: a β_t is not between 0 and 1; copy it anew, or name another"
        )
    return beta


def log_alpha_bar(beta: Tensor) -> Tensor:
    """log ᾱ_t = Σ_{s≤t} log(1−β_s), [T+1]; −∞ from the first β that is 1."""
    return torch.log1p(-beta).cumsum(0)


def extract(table: Tensor, t: int | Tensor, x: Tensor) -> Tensor:
    """table[t] in the dtype of x, shaped to broadcast with x [B, …].

    A table [T+1] gives a number for an int t, and [B, 1, …] for a LongTensor t [B].
    """
    if not isinstance(t, Tensor):
        return table[t].to(x.dtype)
    return table.index_select(0, t).to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def shortest_paths(loss: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
    """The cheapest path of exactly `n_steps` steps from node 0 to every node, by dynamic programming.

    loss [G, G] holds the cost of a step from node j to node k, ∞ where it is barred. Returns costs [G] and the nodes
    of the paths [G, n_steps+1]. Exact; G² operations per step.
    """
    cost = torch.full_like(loss[0], math.inf)
    cost[0] = 0
    nodes = torch.arange(len(loss), device=loss.device)[:, None]
    path = nodes
    for _ in range(n_steps):
        cost, previous = (cost[:, None] + loss).min(0)
        path = torch.cat([path[previous], nodes], dim=1)
    return cost, path


class FixedSchedule(nn.Module):
    """A schedule that training does not change. Calling it returns β, [T+1]."""

    beta: Tensor

    def __init__(self, beta: Tensor):
        super().__init__()
        self.register_buffer("beta", beta)

    def forward(self) -> Tensor:
        """β, [T+1]."""
        return self.beta


class LearnedSchedule(nn.Module):
    """β_2…T learned by gradient ascent on K, β_1 fixed against overfitting (Section 2.4.1).

    Calling it returns β, [T+1]. The parameters are the logits of β_2…T, so that every optimiser step keeps 0 < β < 1.
    """

    first_betas: Tensor

    def __init__(self, beta: Tensor):
        super().__init__()
        self.register_buffer("first_betas", beta[:2].clone())  # slot 0 and β_1
        self.logits = nn.Parameter(beta[2:].logit())

    def forward(self) -> Tensor:
        """β, [T+1], differentiable in the logits."""
        return torch.cat([self.first_betas, torch.sigmoid(self.logits)])
