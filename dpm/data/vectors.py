"""Vectors of a fixed set: points, each coordinate brought to mean 0 and mean square 1, or bits, left as they are."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from dpm.errors import UserError

CONSTANT_BELOW = 1e-12  # standard deviation of a coordinate that rounding alone moves, as a share of its largest value
SMALLEST_EIGENVALUE = 1e-9  # of the correlations of points, as a share of the largest, where they have a density


@dataclass(frozen=True)
class VectorDataset:
    """Vectors with one shift and one scale per coordinate: x⁰ = (x − shift)/scale. Bits have shift 0 and scale 1."""

    train: Tensor  #: [n, D], floats or bool
    test: Tensor  #: held out
    shift: Tensor  #: [D], in the data's own units; one number for bits
    scale: Tensor  #: [D], own units that one unit of x⁰ spans; one number for bits

    def draw(self, n: int, generator: Generator) -> Tensor:
        """n training vectors drawn uniformly, standardised, in float64: [n, D]."""
        index = torch.randint(len(self.train), (n,), generator=generator, device=generator.device)
        return self.standardize(self.train[index.to(self.train.device)]).to(generator.device)

    def held_out_data(self, generator: Generator) -> Tensor:
        """All held-out vectors in order, standardised, on the generator's device."""
        return self.standardize(self.test).to(generator.device)

    def standardize(self, x: Tensor) -> Tensor:
        """x⁰ of vectors in their own units, in float64."""
        return (x.double() - self.shift) / self.scale

    def to_data(self, x0: Tensor) -> Tensor:
        """Vectors in their own units and type, of x⁰."""
        return (x0 * self.scale + self.shift).to(self.train.dtype)

    @property
    def scale_bits(self) -> float:
        """Σ log₂ scale: K of x⁰ minus this is K of x in its own units, by the change of variables."""
        return float(self.scale.log().sum()) / math.log(2)


def standardize_points(train: Tensor, name: str = "the data") -> tuple[Tensor, Tensor]:
    """Shift and scale [D] that give every coordinate of `train` mean 0 and mean square 1.

    UserError where the points fill no volume, so that they have no density: a coordinate that is constant, or one that
    follows linearly from others.
    """
    shift, scale = train.mean(0), train.std(0, correction=0)
    constant = (scale <= CONSTANT_BELOW * train.abs().amax(0)).nonzero()
    if len(constant):
        raise UserError(f"coordinate {int(constant[0])} of {name} is constant; leave it out")
    correlations = ((train - shift) / scale).T.cov(correction=0).view(len(shift), len(shift))
    rank = int(torch.linalg.matrix_rank(correlations, hermitian=True, rtol=SMALLEST_EIGENVALUE))
    if rank < len(shift):
        raise UserError(
            f"the points of {name} to train on span {rank} of {len(shift)} dimensions; "
            "leave out coordinates that follow from others, or give more points"
        )
    return shift, scale
