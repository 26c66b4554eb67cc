"""Bits per dimension of pictures under any reverse model of a Gaussian process: an upper bound, in parts.

A picture of whole grey levels has a probability, and log₂ of it is what others report. K bounds it from below in three
parts: the prior, the KL terms, the final step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from dpm.bound import prior_kl, reconstruction_loss, step_kl
from dpm.distributions import Distribution
from dpm.errors import UserError
from dpm.evaluation import image_batch_size
from dpm.forward import ForwardProcess
from dpm.reverse import DiscretizedFinalStep, ReverseModel, learned_final_step
from dpm.units import mean_and_stderr, to_bits


@dataclass(frozen=True)
class Levels:
    """How grey levels become numbers: level 0 is `low`, level n − 1 is `high`, and the others lie evenly between."""

    n: int = 256
    low: float = -1.0
    high: float = 1.0

    @property
    def bin_width(self) -> float:
        """From one level to the next; n levels have n − 1 such gaps."""
        return (self.high - self.low) / (self.n - 1)

    def check(self, images: Tensor) -> None:
        """UserError where a level is too high."""
        if (highest := int(images.max())) >= self.n:
            raise UserError(
                f"the pictures hold level {highest}, and {self.n} levels end at {self.n - 1}; give more levels"
            )

    def to_x(self, images: Tensor) -> Tensor:
        """x⁰ of pictures of levels, float64."""
        return self.low + self.bin_width * images.double()

    def dequantize(self, images: Tensor, generator: Generator) -> Tensor:
        """x⁰ with uniform noise of exactly one level, half of it on either side."""
        noise = torch.rand(images.shape, generator=generator, dtype=torch.float64, device=images.device)
        return self.to_x(images) + self.bin_width * (noise - 0.5)


@dataclass(frozen=True)
class BitsPerDimension:
    """An upper bound on −log₂ P(picture) for each of n pictures, in bits per dimension (C·H·W of them), in parts.

    Smaller is better.
    """

    prior: Tensor  #: KL( q(x^T|x⁰) ‖ π ), [n]
    kl: Tensor  #: KL( q(x^{t−1}|x^t,x⁰) ‖ p(x^{t−1}|x^t) ) of (14) at each t, [n, T+1]; slots 0 and 1 are 0
    final: Tensor  #: −log₂ P(levels|x¹), [n]

    @property
    def total(self) -> Tensor:
        """The bound, [n]."""
        return self.prior + self.kl.sum(1) + self.final

    @property
    def parts(self) -> dict[str, Tensor]:
        """The three parts by name, [n] each, with the KL terms summed."""
        return {"prior": self.prior, "kl": self.kl.sum(1), "final": self.final}

    @property
    def mean_and_stderr(self) -> tuple[float, float]:
        """The bound's mean over the pictures, and its standard error as an estimate for all pictures of their kind."""
        return mean_and_stderr(self.total)


# Final steps


def edge_step(p: ReverseModel, q: ForwardProcess, x1: Tensor) -> Distribution:
    """p(x⁰|x¹) of (44): the forward process's own, whatever the model's."""
    return q.final_step(p, x1)


#: p(x⁰|x¹) by name: of levels by the model's own Gaussian, of dequantised x⁰ by the same, of dequantised x⁰ by (44)
FINAL_STEPS: dict[str, Callable[[Levels], Callable]] = {
    "discretized": lambda levels: DiscretizedFinalStep(levels.bin_width, levels.low, levels.high),
    "dequantized": lambda levels: learned_final_step,
    "edge": lambda levels: edge_step,
}


class WithFinalStep:
    """A reverse model with another final step."""

    def __init__(self, p: ReverseModel, final_step: Callable):
        self.p, self.final_step = p, final_step

    def __call__(self, q: ForwardProcess, xt: Tensor, t: int | Tensor) -> Distribution:
        return self.p(q, xt, t)


# The bound


@torch.no_grad()
def score_pictures(
    p: ReverseModel,
    q: ForwardProcess,
    images: Tensor,
    levels: Levels,
    generator: Generator,
    final_step: str = "discretized",
    progress: bool = False,
) -> BitsPerDimension:
    """Bits per dimension of pictures of levels [n, C, H, W] at every timestep, each with its own draw of x^t.

    `final_step` is a name of `FINAL_STEPS`. "discretized" scores the levels as they are; the other two score densities,
    so uniform noise of one level is added first. The network runs n·T times. UserError where a level is `levels.n` or
    more, or `final_step` is none of the names.
    """
    if final_step not in FINAL_STEPS:
        raise UserError(f"no final step is named {final_step!r}; name one of {', '.join(FINAL_STEPS)}")
    levels.check(images)
    p, dequantize = WithFinalStep(p, FINAL_STEPS[final_step](levels)), final_step != "discretized"
    batches, parts = images.to(generator.device).split(image_batch_size(images)), []
    with tqdm(total=len(batches) * q.T, unit="step", disable=not progress) as bar:
        for batch in batches:
            x0 = levels.dequantize(batch, generator) if dequantize else levels.to_x(batch)
            kl = x0.new_zeros(len(x0), q.T + 1)
            for t in range(q.T, 1, -1):
                kl[:, t] = step_kl(p, q, x0, t, q.sample_noise(x0, generator))
                bar.update()
            final = reconstruction_loss(p, q, x0, q.sample_noise(x0, generator))
            if dequantize:  # a density times the volume of a level
                final -= x0[0].numel() * math.log(levels.bin_width)
            parts.append((prior_kl(q, x0), kl, final))
            bar.update()
    return BitsPerDimension(*(to_bits(torch.cat(part)) / images[0].numel() for part in zip(*parts, strict=True)))
