"""The data of Section 3 and Appendix D, drawn fresh from a generator, in float64."""

import math

import torch
from torch import Generator, Tensor

ROLL_NOISE = 0.02  # standard deviation around the curve, in units of the data's own; the paper gives none


def roll_curve(u: Tensor) -> Tensor:
    """The curve of the swiss roll, D.1.1: the spiral (θ cos θ, θ sin θ), θ = (3π/2)(1+2u), as scikit-learn rolls it,
    moved and scaled by one constant to mean 0 and variance 1 for u uniform on [0, 1]. [n] → [n, 2]."""
    theta = 1.5 * math.pi * (1 + 2 * u)
    mean, scale = _spiral_moments()
    return (theta[:, None] * torch.stack([theta.cos(), theta.sin()], dim=1) - mean.to(u.device)) / scale


def _spiral_moments() -> tuple[Tensor, float]:
    """Mean and scale of the raw spiral, by antiderivatives between its ends a and b."""
    a, b = 1.5 * math.pi, 4.5 * math.pi
    x = (b * math.sin(b) + math.cos(b)) - (a * math.sin(a) + math.cos(a))  # ∫ θ cos θ
    y = (math.sin(b) - b * math.cos(b)) - (math.sin(a) - a * math.cos(a))  # ∫ θ sin θ
    mean = torch.tensor([x, y], dtype=torch.float64) / (b - a)
    square = (b**3 - a**3) / 3 / (b - a)  # E θ², the two coordinates together
    return mean, math.sqrt((square - float(mean.square().sum())) / 2)


def swiss_roll(n: int, generator: Generator, noise: float = ROLL_NOISE) -> Tensor:
    """Swiss roll, D.1.1, of variance 1: the curve at a uniform place plus N(0, noise²). Returns [n, 2]."""
    u = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
    blur = torch.randn(n, 2, generator=generator, dtype=torch.float64, device=generator.device)
    return math.sqrt(1 - noise**2) * roll_curve(u) + noise * blur


def roll_points(count: int, noise: float = ROLL_NOISE) -> Tensor:
    """Evenly spaced places on the curve inside `swiss_roll`, midpoints for quadrature over u. [count, 2]."""
    return math.sqrt(1 - noise**2) * roll_curve((torch.arange(count, dtype=torch.float64) + 0.5) / count)


def heartbeat(n: int, generator: Generator, length: int = 20, period: int = 5) -> Tensor:
    """Binary heartbeat, D.1.2: a 1 every `period`-th bin, its phase uniform. Returns [n, length] of 0 and 1."""
    phase = torch.randint(period, (n,), generator=generator, device=generator.device)
    return heartbeat_sequences(length, period).to(generator.device)[phase]


def heartbeat_sequences(length: int = 20, period: int = 5) -> Tensor:
    """Every sequence that `heartbeat` can draw, equally likely: [period, length]."""
    return (torch.arange(length) % period == torch.arange(period)[:, None]).double()
