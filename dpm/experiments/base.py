"""What an experiment is: data, a forward process, the paper's numbers, and the configurations that it is trained in."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from dpm.bound import Loss
from dpm.data.images import ImageDataset
from dpm.data.vectors import VectorDataset
from dpm.forward import ForwardProcess, GaussianForward
from dpm.ideal import IdealReverse
from dpm.networks.denoisers import ImageDenoiser
from dpm.networks.paper import ConvPathway, DensePathway, PaperImageNetwork
from dpm.networks.unet import ConditionalSequential, MultiScaleBlock
from dpm.reverse import DiffusionModel, KernelPerturbation, VPrediction
from dpm.schedules import FixedSchedule, log_snr_linear

Yardsticks = Callable[[Tensor, Generator], dict[str, Tensor]]  #: (x⁰, generator) → rivals' log densities, [B] by name


@dataclass(frozen=True)
class TrainConfig:
    """One way to train an experiment: the model, and how it is optimised."""

    build: Callable[[], DiffusionModel]  #: a fresh model, initialised from torch's global random state
    batch: int  #: samples per step
    n_steps: int  #: optimiser steps
    learning_rate: float  #: its peak
    precision: torch.dtype = torch.float32  #: of the networks' products in training; K is measured in float32
    loss: Loss | None = None  #: an estimator of −K for training, where not `bound_loss`
    ideal: IdealReverse | None = None  #: the ideal reverse model of this form, where it is not that of the paper's


@dataclass(frozen=True)
class Experiment:
    """A row of Table 1, an experiment of our own, or one on a user's data."""

    name: str
    unit: str  #: of K
    shape: tuple[int, ...]  #: of one sample
    draw: Callable[[int, Generator], Tensor]  #: (n, generator) → training data
    held_out_data: Callable[[Generator], Tensor]  #: data for evaluation
    forward_process: Callable[[int], ForwardProcess]  #: the untrained forward process of T steps
    T: int  #: the paper's number of steps
    paper: dict[str, float]  #: the paper's numbers
    settings: dict[str, TrainConfig]  #: "paper" as published, "best" at the paper's bound, "beyond"
    ideal: IdealReverse | None = None  #: the ideal reverse model, where it can be computed
    images: Callable[[torch.device], ImageDataset] | None = None  #: loads the data, where they are pictures
    whole_images: Callable[[Generator], Tensor] | None = None  #: held-out pictures to restore, where K is of patches
    vectors: VectorDataset | None = None  #: the data, where they are points or bits of a fixed set
    yardsticks: Yardsticks | None = None  #: rival density models of x⁰, in nats per `unit`

    @property
    def kind(self) -> str:
        """What the data are: "pictures", "points" or "bits"."""
        if len(self.shape) == 3:
            return "pictures"
        return "points" if self.forward_process(2).states is None else "bits"

    @property
    def n_pixels(self) -> int:
        """The number of pixels that K is shared among: 1 for a point or a sequence."""
        return math.prod(self.shape[1:])


# Experiments of pictures


def image_schedule(T: int, beta_1: float, *between: float) -> Tensor:
    """The schedule of a picture experiment: linear in log-SNR from β_1 to 1−ᾱ_T = 0.999, by way of levels between.

    √β_1 is far below one grey level, so that the final step (44) keeps levels apart.
    """
    return log_snr_linear(T, beta_1, *between, 0.999)


def image_config(
    T: int,
    beta_1: float,
    p: Callable[[], nn.Module],
    batch: int,
    n_steps: int,
    learning_rate: float,
    precision: torch.dtype = torch.bfloat16,
    between: tuple[float, ...] = (),
) -> TrainConfig:
    """One way to train an experiment of pictures: a reverse model, on a fixed schedule that passes levels between."""

    def build() -> DiffusionModel:
        return DiffusionModel(FixedSchedule(image_schedule(T, beta_1, *between)), GaussianForward, p())

    return TrainConfig(build, batch, n_steps, learning_rate, precision)


def image_experiment(
    name: str,
    shape: tuple[int, int, int],
    images: Callable[[torch.device], ImageDataset],
    T: int,
    beta_1: float,
    settings: dict[str, TrainConfig],
    paper: dict[str, float],
    whole_images: Callable[[Generator], Tensor] | None = None,
) -> Experiment:
    """A row of Table 1 whose data are pictures."""
    return Experiment(
        name=name,
        unit="bits/pixel",
        shape=shape,
        draw=lambda n, generator: images(generator.device).draw(n, generator),
        held_out_data=lambda generator: images(generator.device).held_out_data(generator),
        forward_process=lambda T: GaussianForward(image_schedule(T, beta_1)),
        T=T,
        paper=paper,
        settings=settings,
        images=images,
        whole_images=whole_images,
    )


N_BUMPS = 10  # J of (62), as in the authors' code; the paper gives none


def paper_reverse(
    T: int, channels: int, pathways: Sequence[DensePathway | ConvPathway], width: int, n_layers: int
) -> KernelPerturbation:
    """D.2.1's network, as a perturbation of the forward kernel, (64)."""
    return KernelPerturbation(PaperImageNetwork(T, channels, pathways, width, n_layers, N_BUMPS))


def multi_scale_reverse(channels: int, width: int, depth: int) -> VPrediction:
    """v-prediction by a denoiser that two cores can train: residual blocks that sum over three scales, as in D.2.1."""
    blocks = ConditionalSequential(MultiScaleBlock(width, n_scales=3) for _ in range(depth))
    return VPrediction(ImageDenoiser(channels, width, blocks, n_frequencies=0))
