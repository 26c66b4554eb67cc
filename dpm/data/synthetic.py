"""Synthetic data, drawn fresh from a generator: the swiss roll and the heartbeat of Appendix D.1, dead leaves."""

import math

import torch
from torch import Generator, Tensor

ROLL_NOISE = 0.02  #: standard deviation around the curve, where that of the data is 1; the paper gives none


def swiss_roll_curve(u: Tensor) -> Tensor:
    """The curve of the swiss roll, D.1.1, at places u in [0, 1]: [n] → [n, 2].

    The spiral (θ cos θ, θ sin θ), θ = (3π/2)(1+2u), as in scikit-learn; shifted, and scaled by one constant, to mean 0
    and, averaged over the two coordinates, mean square 1, for uniform u.
    """
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
    """The swiss roll, D.1.1, [n, 2]: √(1−noise²) · curve(u) + N(0, noise²), u uniform on [0, 1]."""
    u = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
    blur = torch.randn(n, 2, generator=generator, dtype=torch.float64, device=generator.device)
    return math.sqrt(1 - noise**2) * swiss_roll_curve(u) + noise * blur


def swiss_roll_points(n: int, noise: float = ROLL_NOISE) -> Tensor:
    """Evenly spaced points of the noiseless curve of `swiss_roll`, the midpoints of a quadrature over u: [n, 2]."""
    return math.sqrt(1 - noise**2) * swiss_roll_curve((torch.arange(n, dtype=torch.float64) + 0.5) / n)


LENGTH = 20  #: bits of the paper's heartbeat
PERIOD = 5  #: bits from one 1 to the next


def heartbeat(n: int, generator: Generator, length: int = LENGTH, period: int = PERIOD) -> Tensor:
    """The binary heartbeat, D.1.2: a 1 in every `period`-th bin, with uniform phase. [n, length] of 0 and 1."""
    phase = torch.randint(period, (n,), generator=generator, device=generator.device)
    return heartbeat_sequences(length, period).to(generator.device)[phase]


def heartbeat_sequences(length: int = LENGTH, period: int = PERIOD) -> Tensor:
    """All sequences that `heartbeat` can draw, equally likely: [period, length]."""
    return (torch.arange(length) % period == torch.arange(period)[:, None]).double()


def power_law_radii(u: Tensor, power: int, smallest: float, largest: float) -> Tensor:
    """Radii of density ∝ r^(−power) between two cut-offs, by inversion of u uniform on [0, 1)."""
    if power == 1:
        return smallest * (largest / smallest) ** u
    a, b = smallest ** (1 - power), largest ** (1 - power)
    return (a + u * (b - a)) ** (1 / (1 - power))


def sample_disks(shape: tuple[int, ...], size: int, smallest: float, largest: float, generator: Generator) -> Tensor:
    """Radius and centre (r, y, x) of disks whose bounding squares touch a window [size, size]: [3, *shape].

    Every disk that touches the window is among them; the others cover no pixel. Per unit of area the radii have density
    ∝ r⁻³. Such a centre lies in a square of side size + 2r, so the radii have density ∝ r⁻³ (size + 2r)²: a mixture of
    three power laws.
    """
    component, u, *centre = torch.rand(4, *shape, generator=generator, dtype=torch.float64, device=generator.device)
    cubic = size**2 * (smallest**-2 - largest**-2) / 2
    square = 4 * size * (1 / smallest - 1 / largest)
    component = component * (cubic + square + 4 * math.log(largest / smallest))
    cubic_r, square_r, inverse_r = (power_law_radii(u, power, smallest, largest) for power in (3, 2, 1))
    r = torch.where(component < cubic, cubic_r, torch.where(component < cubic + square, square_r, inverse_r))
    return torch.stack([r, *(v * (size + 2 * r) - r for v in centre)])


def dead_leaves(
    n: int, size: int, generator: Generator, smallest: float = 1.0, largest: float = 64.0, noise: float = 0.0
) -> Tensor:
    """Exact samples of dead leaves, Table 2: opaque disks, radius density ∝ r⁻³. [n, 1, size, size], uint8.

    Each disk has one uniform grey. Disks are laid from front to back, eight at a time, each visible where no earlier
    one is, until every pixel is covered. `noise` is the standard deviation, in grey levels, of normal noise added
    before rounding to 0…255. Lengths are in pixels.
    """
    grey = torch.empty(n * size**2, dtype=torch.float32, device=generator.device)
    empty = torch.arange(n * size**2, device=generator.device)
    while len(empty):
        r, cy, cx = sample_disks((n, 8), size, smallest, largest, generator).float()
        leaves = torch.randint(256, (n, 8), generator=generator, device=generator.device).float()
        image, y, x = empty // size**2, empty // size % size + 0.5, empty % size + 0.5
        covered = (y[:, None] - cy[image]).square() + (x[:, None] - cx[image]).square() < r.square()[image]
        visible = covered.any(1)
        grey[empty[visible]] = leaves[
            image[visible], covered[visible].byte().argmax(1)
        ]  # the foremost disk of each pixel
        empty = empty[~visible]
    grey += noise * torch.randn(grey.shape, generator=generator, dtype=grey.dtype, device=generator.device)
    return grey.round().clamp(0, 255).to(torch.uint8).view(n, 1, size, size)
