"""Tables 1 and 2 as settings: for each row its data, its models, and the paper's numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from dpm import datasets
from dpm.datasets import Images
from dpm.files import UserError, load_into, read_tensors, take
from dpm.forward import Binomial, Chain, Gaussian
from dpm.networks import (
    BinomialDenoiser,
    Blocks,
    Convolutions,
    Dense,
    GaussianDenoiser,
    ImageDenoiser,
    ImageNetwork,
    Parted,
    ScaleBlock,
    StepMLP,
    StepRBF,
    u_net,
)
from dpm.optimum import BlurredOptimum, Optimum
from dpm.reverse import BinomialStep, Denoise, Diffusion, GaussianStep
from dpm.schedules import Fixed, Learned, erase_evenly, geometric

DATA = Path(__file__).parent.parent / "data"


@dataclass(frozen=True)
class Setting:
    """One way to train an experiment: the model, and how long and how fast to climb."""

    build: Callable[[], Diffusion]
    batch: int
    steps: int
    rate: float
    precision: torch.dtype = torch.float32  # of the networks' products in training; K is measured in float32


@dataclass(frozen=True)
class Experiment:
    """A row of Table 1: `draw` makes training data, `held_out` data for evaluation, `chain` the untrained forward chain
    of any T. Where it can be had, `optimum` is the best reverse model; where data are pictures, `images` loads them."""

    name: str
    unit: str
    shape: tuple[int, ...]  # of one sample
    draw: Callable[[int, Generator], Tensor]
    held_out: Callable[[Generator], Tensor]
    chain: Callable[[int], Chain]
    T: int
    paper: dict[str, float]
    settings: dict[str, Setting]
    optimum: Optimum | None = None
    images: Callable[[torch.device], Images] | None = None
    whole: Callable[[Generator], Tensor] | None = None  # held-out pictures to restore, where K is of patches

    @property
    def pixels(self) -> int:
        """The numbers K is shared among: 1 for a point or a sequence."""
        return math.prod(self.shape[1:])


BETA_1 = 1e-4  # fixed, Section 2.4.1; below the roll's noise variance 4e-4, so that the edge step blurs less than it
RATE = 0.2  # of ones under π, D.1.2: the heartbeat's own


def roll_schedule(T: int) -> Tensor:
    """The roll's rates before learning: β_1 as stated, half a percent of signal variance left at T."""
    return geometric(T, BETA_1, 0.995)


def roll_paper() -> Diffusion:
    """D.1.1: 16 normalised RBF units, a readout for each t, diagonal Σ through a sigmoid; β_2…T learned."""
    return Diffusion(Learned(roll_schedule(40)), Gaussian, GaussianStep(StepRBF(40, 2, 16, 4)))


def roll_ours() -> Diffusion:
    """A denoiser in the place of f_μ and f_Σ; the rates that make K* the highest, as `dpm schedule` recorded them."""
    beta = torch.tensor(json.loads(schedule_path("swiss_roll").read_text())["beta"], dtype=torch.float64)
    return Diffusion(Fixed(beta), Gaussian, Denoise(GaussianDenoiser(2, width=128, layers=3, octaves=4)))


heartbeat_chain = partial(Binomial, rate=RATE)


def heartbeat_paper() -> Diffusion:
    """D.1.2: three hidden layers of 50 sigmoid units, a readout for each t, sigmoid output."""
    q = heartbeat_chain(erase_evenly(2000))
    return Diffusion(Fixed(q.beta), heartbeat_chain, BinomialStep(StepMLP(q, 20, width=50, layers=3, ties=64)))


def heartbeat_ours() -> Diffusion:
    """A denoiser in the place of f_b."""
    return Diffusion(Fixed(erase_evenly(2000)), heartbeat_chain, Denoise(BinomialDenoiser(20, width=128, layers=2)))


def image_schedule(T: int, beta_1: float, *between: float) -> Tensor:
    """Rates of an image experiment. β_1 is small against one grey level, so that the edge step blurs none."""
    return geometric(T, beta_1, *between, 0.999)


class Sketch(NamedTuple):
    """One way to train an experiment of pictures: its p, and how long and how fast to climb."""

    p: Callable[[], nn.Module]
    batch: int
    steps: int
    rate: float
    precision: torch.dtype = torch.bfloat16  # pictures of 8×8 gain nothing from it
    between: tuple[float, ...] = ()  # noise levels of its schedule, as many steps from one to the next


def image_experiment(
    name: str,
    shape: tuple[int, int, int],
    images: Callable[[torch.device], Images],
    T: int,
    beta_1: float,
    models: dict[str, Sketch],
    paper: dict[str, float],
    whole: Callable[[Generator], Tensor] | None = None,
) -> Experiment:
    """A row of Table 1 that shows pictures: all settings share T, β_1 and, but for levels between, its schedule."""

    def diffusion(one: Sketch) -> Diffusion:
        return Diffusion(Fixed(image_schedule(T, beta_1, *one.between)), Gaussian, one.p())

    return Experiment(
        name=name,
        unit="bits/pixel",
        shape=shape,
        draw=lambda n, generator: images(generator.device).draw(n, generator),
        held_out=lambda generator: images(generator.device).held_out(generator),
        chain=lambda T: Gaussian(image_schedule(T, beta_1)),
        T=T,
        paper=paper,
        settings={
            setting: Setting(partial(diffusion, one), one.batch, one.steps, one.rate, one.precision)
            for setting, one in models.items()
        },
        images=images,
        whole=whole,
    )


def paper_step(
    T: int, channels: int, pathways: Sequence[Dense | Convolutions], width: int, layers: int
) -> GaussianStep:
    """D.2.1's network, then (64); of ten bumps, as in the authors' code."""
    return GaussianStep(ImageNetwork(T, channels, pathways, width, layers, J=10))


def our_step(channels: int, width: int, depth: int) -> Denoise:
    """A denoiser in the place of f_μ and f_Σ, small enough for two cores: D.2.1's sums over three scales."""
    blocks = Blocks(ScaleBlock(width, scales=3) for _ in range(depth))
    return Denoise(ImageDenoiser(channels, width, blocks, octaves=0))


NOISY = 0.73  # noise level above which a denoiser of its own answers: there a digit takes shape


def our_u_steps(channels: int, widths: Sequence[int], depths: Sequence[int]) -> Denoise:
    """Two denoisers for shapes in few grey levels, parted at NOISY: U-Nets, which see waves of grey levels."""
    noisy, clear = (ImageDenoiser(channels, widths[0], u_net(widths, depths), octaves=5) for _ in range(2))
    return Denoise(Parted(noisy, clear, at=NOISY))


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            name="swiss_roll",
            unit="bits",
            shape=(2,),
            draw=datasets.swiss_roll,
            chain=lambda T: Gaussian(roll_schedule(T)),
            T=40,
            optimum=BlurredOptimum(datasets.roll_points(2000), datasets.ROLL_NOISE**2),
            held_out=lambda generator: datasets.swiss_roll(60_000, generator),
            paper={"K": 2.35, "K_minus_L_null": 6.45},
            settings={
                "paper": Setting(roll_paper, batch=39 * 25, steps=40_000, rate=1e-2),
                "ours": Setting(roll_ours, batch=39 * 50, steps=15_000, rate=2e-3),
            },
        ),
        Experiment(
            name="heartbeat",
            unit="bits/seq",
            shape=(20,),
            draw=datasets.heartbeat,
            chain=lambda T: heartbeat_chain(erase_evenly(T)),
            T=2000,
            optimum=Optimum(datasets.heartbeat_sequences()),
            held_out=lambda generator: datasets.heartbeat(4_000, generator),
            paper={"K": -2.414, "K_minus_L_null": 12.024},
            settings={
                "paper": Setting(heartbeat_paper, batch=1999 * 2, steps=40_000, rate=5e-3),
                "ours": Setting(heartbeat_ours, batch=1000, steps=20_000, rate=2e-3),
            },
        ),
        image_experiment(
            "digits",
            (1, 8, 8),
            datasets.digits,
            T=1000,
            beta_1=1e-5,
            models={
                "paper": Sketch(
                    lambda: paper_step(1000, 1, [Dense(1, 8, 256, 2, 2), Convolutions(1, 20, 3, 3, 3)], 32, 2),
                    batch=128,
                    steps=2_000,
                    rate=3e-3,
                    precision=torch.float32,
                ),
                "ours": Sketch(lambda: our_step(1, 32, 3), batch=128, steps=4_000, rate=4e-3, precision=torch.float32),
            },
            paper={},
        ),
        image_experiment(
            "mnist",
            (1, 28, 28),
            datasets.mnist,
            T=1000,
            beta_1=1e-7,
            models={
                "paper": Sketch(
                    lambda: paper_step(1000, 1, [Dense(1, 28, 900, 3, 2)], 20, 2), batch=512, steps=50_000, rate=1e-3
                ),
                "cpu": Sketch(
                    lambda: our_u_steps(1, (16, 64, 128), (1, 2, 3)),
                    batch=128,
                    steps=26_000,
                    rate=2e-3,
                    between=(NOISY,),
                ),
            },
            paper={"parzen_bits": 317},
        ),
        image_experiment(
            "bark",
            (1, 64, 64),
            datasets.bark,
            T=500,
            beta_1=1e-6,
            models={
                "paper": Sketch(
                    lambda: paper_step(500, 1, [Convolutions(1, 100, 6, 3, 3)], 100, 4),  # 300 is no multiple of 8
                    batch=64,
                    steps=50_000,
                    rate=1e-3,
                ),
                "cpu": Sketch(lambda: our_step(1, 64, 4), batch=12, steps=6_000, rate=2e-3),
            },
            paper={"K": -0.55, "K_minus_L_null": 1.5},
            whole=lambda generator: datasets.bark_squares(generator, 300),
        ),
        image_experiment(
            "dead_leaves",
            (1, 64, 64),
            datasets.leaves,
            T=1000,
            beta_1=1e-6,
            models={
                "paper": Sketch(
                    lambda: paper_step(1000, 1, [Convolutions(1, 100, 6, 3, 4)], 100, 4),
                    batch=64,
                    steps=50_000,
                    rate=1e-3,
                ),
                "cpu": Sketch(lambda: our_step(1, 64, 4), batch=12, steps=8_000, rate=2e-3),
            },
            paper={"K": 1.489, "K_minus_L_null": 3.536},
        ),
        image_experiment(
            "cifar10",
            (3, 32, 32),
            datasets.cifar10,
            T=1000,
            beta_1=1e-6,
            models={
                "paper": Sketch(
                    lambda: paper_step(1000, 3, [Dense(3, 32, 1000, 6, 5), Convolutions(3, 100, 6, 3, 3)], 100, 4),
                    batch=200,
                    steps=100_000,
                    rate=1e-3,
                ),
                "cpu": Sketch(lambda: our_step(3, 64, 3), batch=48, steps=8_000, rate=2e-3),
            },
            paper={"K": 5.4, "K_minus_L_null": 11.5},
        ),
    )
}


def choose(name: str, setting: str) -> tuple[Experiment, Setting]:
    """The experiment and setting of these names; UserError lists those there are."""
    if name not in EXPERIMENTS:
        raise UserError(f"no experiment named {name!r}; there are {', '.join(EXPERIMENTS)}")
    settings = EXPERIMENTS[name].settings
    if setting not in settings:
        raise UserError(f"{name} has no setting {setting!r}; it has {', '.join(settings)}")
    return EXPERIMENTS[name], settings[setting]


def build(setting: Setting, seed: int = 0) -> Diffusion:
    """A fresh model whose first weights depend on the seed alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):  # weights start on the CPU
        torch.default_generator.manual_seed(seed)
        model = setting.build()
    model.p.float()  # schedules are float64, networks float32, whatever the default type
    return model


def weights_path(name: str, setting: str) -> Path:
    """Where the repository ships the weights of an experiment's setting."""
    return DATA / "weights" / f"{name}-{setting}.safetensors"


def schedule_path(name: str) -> Path:
    """Where the repository ships the best rates of an experiment, as `dpm schedule` wrote them."""
    return DATA / "schedules" / f"{name}.json"


def recorded(name: str, setting: str) -> dict:
    """The result that the repository ships: what `dpm train` wrote when it made the shipped weights."""
    return json.loads((DATA / "results" / f"{name}-{setting}.json").read_text())


def load(name: str, setting: str, path: Path | None = None, device: torch.device | str = "cpu") -> Diffusion:
    """The trained model of a setting, from the shipped weights or from a file that `dpm train` wrote."""
    _, its = choose(name, setting)
    if path is None and not weights_path(name, setting).exists():
        shipped = [other for other in EXPERIMENTS[name].settings if weights_path(name, other).exists()]
        raise UserError(
            f"no weights of {name} --setting {setting} are shipped, only of {', '.join(shipped)}; "
            "`dpm train` makes them, --checkpoint names them"
        )
    path = path or weights_path(name, setting)
    tensors, _ = read_tensors(path)
    model = build(its)
    load_into(model, take(tensors, "average.module.") or tensors, path)
    return model.to(device).requires_grad_(False)
