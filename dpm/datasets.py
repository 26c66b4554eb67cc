"""The data of Section 3 and Appendix D, drawn fresh from a generator, in float64."""

import math
from dataclasses import dataclass
from functools import cache

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


@dataclass(frozen=True)
class Images:
    """Images of whole grey levels, and the one shift and one scale, in levels, that bring them to variance 1 (App. D).

    x⁰ = (level + u − shift)/scale with u uniform on [0, 1): noise of exactly one level, fresh in every draw.
    """

    train: Tensor  # [n, C, H, W], integers
    test: Tensor  # held out
    shift: float
    scale: float

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Training images, each equally likely, in float64: [n, C, H, W]."""
        index = torch.randint(len(self.train), (n,), generator=generator, device=generator.device)
        return self.blurred(self.train[index.to(self.train.device)], generator)

    def held_out(self, generator: Generator) -> Tensor:
        """Every held-out image, in order, with noise from the generator."""
        return self.blurred(self.test, generator)

    def blurred(self, images: Tensor, generator: Generator) -> Tensor:
        """x⁰ of these images, with fresh noise."""
        noise = torch.rand(images.shape, generator=generator, dtype=torch.float64, device=generator.device)
        return (images.to(generator.device) + noise - self.shift) / self.scale

    def levels(self, x: Tensor) -> Tensor:
        """The grey levels that x falls in; those of a model's samples may lie outside the data's."""
        return (x * self.scale + self.shift).floor().long()


def scaled(train: Tensor, test: Tensor) -> Images:
    """Shift and scale from all of `train`, to mean 0 and variance 1 with the noise, which adds ½ and 1/12."""
    counts = torch.bincount(train.flatten()).double()
    level = torch.arange(len(counts), dtype=torch.float64, device=counts.device)
    mean = float(counts @ level / counts.sum())
    variance = float(counts @ (level - mean).square() / counts.sum())
    return Images(train, test, mean + 1 / 2, math.sqrt(variance + 1 / 12))


@cache
def digits(device: torch.device | str = "cpu") -> Images:
    """The 8×8 handwritten digits that scikit-learn bundles, levels 0…16: 1100 to train, the last 697 held out."""
    from sklearn.datasets import load_digits  # here, since it takes a second to import

    images = torch.tensor(load_digits().images).to(device, torch.uint8)[:, None]
    return scaled(images[:1100], images[1100:])


def power_law(u: Tensor, power: int, smallest: float, largest: float) -> Tensor:
    """Radii of density ∝ r^(−power) between two cut-offs, by inversion of u uniform on [0, 1)."""
    if power == 1:
        return smallest * (largest / smallest) ** u
    a, b = smallest ** (1 - power), largest ** (1 - power)
    return (a + u * (b - a)) ** (1 / (1 - power))


def falling_disks(shape: tuple[int, ...], size: int, smallest: float, largest: float, generator: Generator) -> Tensor:
    """Radius and centre (r, y, x) of disks of density ∝ r⁻³ a unit of plane that can touch the window: [3, *shape].

    A disk of radius r can touch only from a square of side size + 2r: the density of those is ∝ r⁻³ (size + 2r)², a
    mixture of three power laws.
    """
    which, u, *place = torch.rand(4, *shape, generator=generator, dtype=torch.float64, device=generator.device)
    cubic = size**2 * (smallest**-2 - largest**-2) / 2
    square = 4 * size * (1 / smallest - 1 / largest)
    which = which * (cubic + square + 4 * math.log(largest / smallest))
    three, two, one = (power_law(u, power, smallest, largest) for power in (3, 2, 1))
    r = torch.where(which < cubic, three, torch.where(which < cubic + square, two, one))
    return torch.stack([r, *(v * (size + 2 * r) - r for v in place)])


def dead_leaves(
    n: int, size: int, generator: Generator, smallest: float = 1.0, largest: float = 64.0, noise: float = 0.0
) -> Tensor:
    """Dead leaves, Table 2: opaque disks of one uniform grey each, radius density ∝ r⁻³; [n, 1, size, size], uint8.

    Exact samples: disks are laid front to back, eight at once, each seen where no pixel has one yet, until no pixel is
    empty. `noise` is the standard deviation, in levels, of normal noise added before rounding to 0…255. Lengths are in
    pixels.
    """
    grey = torch.empty(n * size**2, device=generator.device)
    empty = torch.arange(n * size**2, device=generator.device)
    while len(empty):
        r, cy, cx = falling_disks((n, 8), size, smallest, largest, generator).float()
        leaves = torch.randint(256, (n, 8), generator=generator, device=generator.device).float()
        image, y, x = empty // size**2, empty // size % size + 0.5, empty % size + 0.5
        under = (y[:, None] - cy[image]).square() + (x[:, None] - cx[image]).square() < r.square()[image]
        seen = under.any(1)
        grey[empty[seen]] = leaves[image[seen], under[seen].byte().argmax(1)]  # the first of those above a pixel
        empty = empty[~seen]
    grey += noise * torch.randn(grey.shape, generator=generator, device=generator.device)
    return grey.round().clamp(0, 255).to(torch.uint8).view(n, 1, size, size)
