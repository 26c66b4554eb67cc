"""The exact optimum, the yardstick for data whose q(x⁰|x^t) is a finite sum. Ours, not the paper's.

Of all reverse kernels of the paper's form the best has the moments of q(x^{t−1}|x^t). Put into (14) it gives K*, and
K ≤ K* ≤ −H(X⁰) for every network of that form with that schedule.
"""

import math

import torch
from torch import Tensor

from dpm.forward import Chain, Gaussian, Law, Normal, at_time


class Optimum:
    """f_b*, or f_μ* and diagonal f_Σ*, for x⁰ drawn evenly from `points` [M, D]; called like any reverse model."""

    def __init__(self, points: Tensor):
        self.points = points

    def __call__(self, q: Chain, xt: Tensor, t: Tensor) -> Law:
        points = self.points.to(xt)
        weight = torch.softmax(q.log_likelihood(xt, points, t), dim=1)
        mean = weight @ points
        return q.average(xt, mean, weight @ points.square() - mean.square(), t)

    def log_probability(self, x0: Tensor) -> Tensor:
        """log q(x⁰), [B] nats: −log M for each x⁰ among the points, −∞ for any other."""
        among = (x0[:, None] == self.points.to(x0)).all(-1).any(-1)
        return among.to(x0.dtype).log() - math.log(len(self.points))


class BlurredOptimum:
    """f_μ*, f_Σ* for x⁰ = one of `points` [M, D], drawn evenly, plus N(0, variance·I).

    With points closer than their width along a curve the sum is quadrature, and the data a smooth density.
    """

    def __init__(self, points: Tensor, variance: float):
        self.points, self.variance = points, variance

    def __call__(self, q: Gaussian, xt: Tensor, t: Tensor) -> Normal:
        points, signal, noise = self.points.to(xt), at_time(q.alpha_bar, t, xt), at_time(q.noise_level, t, xt)
        weight = torch.softmax(q.log_likelihood(xt, points, t, self.variance), dim=1)
        point = weight @ points
        spread = weight @ points.square() - point.square()
        total = signal * self.variance + noise  # Var(x^t | point)
        gain = signal.sqrt() * self.variance / total  # of x⁰ on x^t, given the point
        rest = 1 - signal.sqrt() * gain
        return q.average(xt, rest * point + gain * xt, rest**2 * spread + self.variance * noise / total, t)

    def log_probability(self, x0: Tensor) -> Tensor:
        """log q(x⁰), [B] nats."""
        squared = torch.cdist(x0, self.points.to(x0), compute_mode="donot_use_mm_for_euclid_dist").square()
        size = math.log(len(self.points)) + x0.shape[1] / 2 * math.log(2 * math.pi * self.variance)
        return torch.logsumexp(-squared / (2 * self.variance), dim=1) - size
