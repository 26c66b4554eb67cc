"""The model's probability by annealed importance sampling over forward trajectories, Section 2.3."""

import math
from dataclasses import dataclass

from torch import Generator, Tensor

from dpm.bound import trajectory_K
from dpm.forward import ForwardProcess
from dpm.reverse import ReverseModel


@dataclass(frozen=True)
class ImportanceEstimate:
    """log p(x⁰) by equation (9), [B] each.

    Averaged over the data it is K for one trajectory and L of (10)-(11) for infinitely many; K ≤ L is (12)-(13).
    """

    log_p: Tensor  #: log of the mean weight, nats; its expectation is at most log p(x⁰)
    stderr: Tensor  #: standard error of log_p by the delta method, nats; nan for one trajectory
    effective_sample_size: Tensor  #: (Σw)²/Σw², from 1 to the number of trajectories


def log_weights(p: ReverseModel, q: ForwardProcess, x0: Tensor, n_trajectories: int, generator: Generator) -> Tensor:
    """log of the weights p(x^{0…T})/q(x^{1…T}|x⁰) of (7)-(9), [n_trajectories, B] nats."""
    repeated = x0.expand(n_trajectories, *x0.shape).flatten(0, 1)
    return trajectory_K(p, q, repeated, generator).reshape(n_trajectories, len(x0))


def importance_estimate(log_weight: Tensor) -> ImportanceEstimate:
    """The estimate (9) of log p(x⁰) from log weights [n_trajectories, B]."""
    n_trajectories = len(log_weight)
    log_p = log_weight.logsumexp(0) - math.log(n_trajectories)
    relative_variance = ((log_weight - log_p).exp() - 1).square().mean(0)
    stderr = (relative_variance / (n_trajectories - 1)).sqrt()
    return ImportanceEstimate(log_p, stderr, effective_sample_size(log_weight))


def effective_sample_size(log_weight: Tensor) -> Tensor:
    """(Σw)²/Σw² along the first axis: the number of equal weights worth as much. [n, …] → […], from 1 to n."""
    return (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp()
