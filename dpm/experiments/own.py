"""Experiments on a user's own data: pictures, points or bits, with a model of the kind that suits them.

`Choices` is all that rebuilds such an experiment, one small JSON value in the header of its weights: so samples need no
data, and other data than those of training are noticed.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from dpm.baselines import fit_full_gaussian, independent_bits_log_prob, picture_baselines
from dpm.data.folder import read_data
from dpm.data.images import ImageDataset, standardize
from dpm.data.vectors import VectorDataset, standardize_points
from dpm.errors import UserError
from dpm.experiments.base import Experiment, TrainConfig, image_experiment, image_schedule, paper_reverse
from dpm.files import read_tensors
from dpm.forward import BernoulliForward, ForwardProcess, GaussianForward
from dpm.networks.denoisers import FourierMLP, ImageDenoiser
from dpm.networks.layers import mlp
from dpm.networks.paper import ConvPathway, RBFNetwork, SigmoidMLP
from dpm.networks.unet import u_net
from dpm.reverse import BitX0Prediction, DiffusionModel, KernelPerturbation, LogitPrediction, VPrediction
from dpm.schedules import FixedSchedule, LearnedSchedule, linear_alpha_bar, log_snr_linear

MIN_SAMPLES = 10  #: the fewest that are split into some to train on and some to hold out
SPLIT_SEED = 0  #: of the order in which the first fifth is held out, whatever the seed of training
HELD_OUT_EVERY = 5  #: one sample in five is held out
MOST_PASSES = 500  #: over the training data where no number of steps is named: more would be learned by heart
BETA_1 = 1e-5  #: of points: finer detail than √β_1, in standard deviations of the data, is blurred by the final step
BLUR = 1 / 40  #: √β_1 of pictures, in grey levels
LAST_NOISE_VARIANCE = 0.999  # 1−ᾱ_T of points
BASELINE_PIXELS = 200_000  # of training pictures that the rival models of pictures are fitted to


@dataclass(frozen=True)
class Choices:
    """What rebuilds an experiment of a user's own data and its model."""

    name: str  #: of the file or folder
    kind: str  #: "pictures", "points" or "bits"
    n: int  #: samples, held-out ones included
    shape: tuple[int, ...]  #: of one sample
    size: int | None  #: to which pictures were reduced
    sha256: str  #: of all samples as they were read
    split_seed: int  #: of the order in which a fifth is held out
    shift: list[float]  #: x⁰ = (x − shift)/scale: a number per coordinate of points, one for pictures and for bits
    scale: list[float]  #: in the data's own units
    prior_prob: float  #: π(1) of bits, the mean of those to train on; ½ for other kinds, which do not use it
    network: str  #: one of `RECIPES`
    T: int  #: number of timesteps
    batch: int  #: samples per step
    learning_rate: float  #: its peak


@dataclass(frozen=True)
class Recipe:
    """A model for a kind of data, and how it is trained where nothing else is said."""

    build: Callable[[Choices], DiffusionModel]  #: a fresh model
    T: int  #: number of timesteps
    batch: int  #: samples per step
    n_steps: int  #: optimiser steps at most
    learning_rate: float  #: its peak
    precision: torch.dtype = torch.float32  #: of the network's products in training


# Models


def beta_1(choices: Choices) -> float:
    """β_1 of pictures: a blur that is small against one grey level."""
    return (BLUR / choices.scale[0]) ** 2


def forward_process(choices: Choices, T: int) -> ForwardProcess:
    """The untrained forward process of T steps."""
    if choices.kind == "bits":
        return BernoulliForward(linear_alpha_bar(T), choices.prior_prob)
    if choices.kind == "pictures":
        return GaussianForward(image_schedule(T, beta_1(choices)))
    return GaussianForward(log_snr_linear(T, BETA_1, LAST_NOISE_VARIANCE))


def n_scales(shape: tuple[int, ...], most: int) -> int:
    """How many sizes, each half of the last and none below 4 pixels, pictures of a shape can be pooled to."""
    height, width = shape[1:]
    halvings = range(1, most)
    return 1 + sum(height % 2**k == width % 2**k == 0 and min(height, width) >= 4 * 2**k for k in halvings)


def gaussian_model(choices: Choices, p: torch.nn.Module) -> DiffusionModel:
    """Real numbers on their fixed schedule, with a reverse model."""
    return DiffusionModel(FixedSchedule(forward_process(choices, choices.T).beta), GaussianForward, p)


def u_net_pictures(choices: Choices) -> DiffusionModel:
    """v-prediction by a U-Net of up to four sizes that sees Fourier features of the grey levels."""
    scales, channels = n_scales(choices.shape, most=4), choices.shape[0]
    widths, depths = (32, 64, 128, 128)[:scales], (1, 2, 2, 2)[:scales]
    p = VPrediction(ImageDenoiser(channels, widths[0], u_net(widths, depths), n_frequencies=5))
    return gaussian_model(choices, p)


def paper_pictures(choices: Choices) -> DiffusionModel:
    """D.2.1 with the convolutional pathway alone, as for bark and dead leaves."""
    pathway = ConvPathway(choices.shape[0], 100, n_layers=6, kernel=3, n_scales=n_scales(choices.shape, most=4))
    p = paper_reverse(choices.T, choices.shape[0], [pathway], width=100, n_layers=4)
    return gaussian_model(choices, p)


def mlp_points(choices: Choices) -> DiffusionModel:
    """v-prediction by an MLP on Fourier features."""
    (dimensions,) = choices.shape
    p = VPrediction(FourierMLP(dimensions, width=max(128, 2 * dimensions), n_layers=3, n_frequencies=4))
    return gaussian_model(choices, p)


def paper_points(choices: Choices) -> DiffusionModel:
    """D.1.1: 16 normalised RBF units, a readout per timestep; β_2…T learned."""
    (dimensions,) = choices.shape
    p = KernelPerturbation(RBFNetwork(choices.T, dimensions, n_units=16, outputs=2 * dimensions))
    return DiffusionModel(LearnedSchedule(forward_process(choices, choices.T).beta), GaussianForward, p)


def bit_model(choices: Choices, p: torch.nn.Module) -> DiffusionModel:
    """Bits whose β_t is 1/(T−t+1), with a reverse model."""
    return DiffusionModel(
        FixedSchedule(linear_alpha_bar(choices.T)), partial(BernoulliForward, prior_prob=choices.prior_prob), p
    )


def mlp_bits(choices: Choices) -> DiffusionModel:
    """x⁰-prediction by an MLP."""
    (length,) = choices.shape
    return bit_model(choices, BitX0Prediction(mlp(1 + length, max(128, 2 * length), n_layers=2, outputs=length)))


def paper_bits(choices: Choices) -> DiffusionModel:
    """D.1.2: three hidden layers of sigmoid units, as many as there are bits or 50; a readout per timestep."""
    (length,) = choices.shape
    q = BernoulliForward(linear_alpha_bar(choices.T), choices.prior_prob)
    return bit_model(choices, LogitPrediction(SigmoidMLP(q, length, max(50, length), n_layers=3, n_shared=64)))


#: models by kind of data and name; the first of a kind is the one taken where none is named
RECIPES: dict[str, dict[str, Recipe]] = {
    "pictures": {
        "unet": Recipe(u_net_pictures, 1000, 64, 20_000, 1e-3, torch.bfloat16),
        "paper": Recipe(paper_pictures, 1000, 64, 50_000, 1e-3, torch.bfloat16),
    },
    "points": {
        "mlp": Recipe(mlp_points, 200, 1000, 10_000, 2e-3),
        "paper": Recipe(paper_points, 40, 1000, 40_000, 1e-2),
    },
    "bits": {
        "mlp": Recipe(mlp_bits, 500, 1000, 10_000, 2e-3),
        "paper": Recipe(paper_bits, 1000, 2000, 40_000, 5e-3),
    },
}


# From data to choices, and back


def choose(
    path: Path,
    size: int | None = None,
    network: str | None = None,
    T: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
) -> tuple[Choices, Tensor]:
    """Read a user's data and choose a model for them: what is None takes the recipe's value. Returns the data too."""
    kind, data = read_data(path, size)
    if len(data) < MIN_SAMPLES:
        raise UserError(f"{path} has {len(data)} samples; give {MIN_SAMPLES} or more, a fifth of which is held out")
    recipes = RECIPES[kind]
    network = network or next(iter(recipes))
    if network not in recipes:
        raise UserError(f"{path} holds {kind}, for which there is no network {network!r}, but {' and '.join(recipes)}")
    recipe = recipes[network]
    train, _ = split(data, SPLIT_SEED)
    shift, scale, prior_prob = moments(kind, train, path)
    return Choices(
        name=path.resolve().name if path.is_dir() else path.stem,
        kind=kind,
        n=len(data),
        shape=tuple(data.shape[1:]),
        size=size,
        sha256=fingerprint(data),
        split_seed=SPLIT_SEED,
        shift=shift,
        scale=scale,
        prior_prob=prior_prob,
        network=network,
        T=T or recipe.T,
        batch=batch or recipe.batch,
        learning_rate=learning_rate or recipe.learning_rate,
    ), data


def split(data: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Samples to train on and held-out ones, a fifth, in an order that the seed fixes."""
    order = torch.randperm(len(data), generator=Generator().manual_seed(seed))
    n_held_out = len(data) // HELD_OUT_EVERY
    return data[order[n_held_out:]], data[order[:n_held_out]]


def moments(kind: str, train: Tensor, path: Path) -> tuple[list[float], list[float], float]:
    """Shift, scale and π(1) of the samples to train on. UserError where they do not vary."""
    if bool((train == train.flatten()[0]).all()):
        raise UserError(f"all numbers of {path} are the same; there is nothing to learn")
    if kind == "pictures":
        images = standardize(train, train[:0])
        return [images.shift], [images.scale], 0.5
    if kind == "bits":
        return [0.0], [1.0], float(train.double().mean())
    shift, scale = standardize_points(train, str(path))
    return shift.tolist(), scale.tolist(), 0.5


def fingerprint(data: Tensor) -> str:
    """SHA-256 of the shape and the numbers."""
    digest = hashlib.sha256(str(tuple(data.shape)).encode())
    digest.update(data.contiguous().numpy().data)
    return digest.hexdigest()


def dump_choices(choices: Choices) -> str:
    """The choices as JSON."""
    return json.dumps(asdict(choices))


def read_choices(path: Path) -> Choices:
    """The choices in the header of weights or of a checkpoint. UserError where they are of a named experiment."""
    _, metadata = read_tensors(path)
    if "data" not in metadata:
        raise UserError(
            f"{path} holds weights of {metadata.get('experiment', 'a named experiment')}, not of data of your own; "
            "name that experiment, or weights that were trained on your data"
        )
    try:
        fields = json.loads(metadata["data"])
        choices = Choices(**fields | {"shape": tuple(fields["shape"])})
        RECIPES[choices.kind][choices.network]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} was written by another version of dpm ({error}); train anew") from None
    return choices


def read_same_data(path: Path, choices: Choices, checkpoint: Path) -> Tensor:
    """The data at a path, read as `choices` say. UserError unless they are those that the checkpoint was trained on."""
    kind, data = read_data(path, choices.size)
    if kind != choices.kind or fingerprint(data) != choices.sha256:
        what = f"{choices.n} {choices.kind} of {'×'.join(map(str, choices.shape))}"
        raise UserError(f"{checkpoint} was trained on other data than {path}: on {what}, from {choices.name!r}")
    return data


# Experiments


def own_experiment(choices: Choices, data: Tensor | None = None) -> Experiment:
    """The experiment of these choices; without its data it can sample, and neither train nor evaluate."""
    recipe = RECIPES[choices.kind][choices.network]
    n_train = choices.n - choices.n // HELD_OUT_EVERY
    n_steps = min(recipe.n_steps, math.ceil(MOST_PASSES * n_train / choices.batch))
    config = TrainConfig(
        partial(recipe.build, choices), choices.batch, n_steps, choices.learning_rate, recipe.precision
    )
    build = own_pictures if choices.kind == "pictures" else own_vectors
    return build(choices, {choices.network: config}, data)


def own_pictures(choices: Choices, settings: dict[str, TrainConfig], data: Tensor | None) -> Experiment:
    """Pictures of a user."""
    empty = torch.empty(0, *choices.shape, dtype=torch.uint8)
    train, test = (empty, empty) if data is None else split(data, choices.split_seed)
    channels, height, width = choices.shape
    (shift,), (scale,) = choices.shift, choices.scale

    @cache
    def images(device: torch.device) -> ImageDataset:
        return ImageDataset(train.to(device), test.to(device), shift, scale)

    def yardsticks(x0: Tensor, generator: Generator) -> dict[str, Tensor]:
        n_fitted = math.ceil(BASELINE_PIXELS / train[0, 0].numel())
        fitted = images(generator.device).dequantize(train[:n_fitted], generator)
        return picture_baselines(fitted, x0, generator)

    shape = (channels, height, width)
    experiment = image_experiment(choices.name, shape, images, choices.T, beta_1(choices), settings, paper={})
    return replace(experiment, yardsticks=yardsticks)


def own_vectors(choices: Choices, settings: dict[str, TrainConfig], data: Tensor | None) -> Experiment:
    """Points or bits of a user."""
    is_bits = choices.kind == "bits"
    empty = torch.empty(0, *choices.shape, dtype=torch.bool if is_bits else torch.float64)
    train, test = (empty, empty) if data is None else split(data, choices.split_seed)
    vectors = VectorDataset(train, test, torch.tensor(choices.shift).double(), torch.tensor(choices.scale).double())

    def yardsticks(x0: Tensor, generator: Generator) -> dict[str, Tensor]:
        x = vectors.standardize(train).to(x0)
        if is_bits:
            return {"independent": independent_bits_log_prob(x, x0)}
        return {"gaussian": fit_full_gaussian(x).log_prob(x0)}

    return Experiment(
        name=choices.name,
        unit="bits/sample",
        shape=choices.shape,
        draw=vectors.draw,
        held_out_data=vectors.held_out_data,
        forward_process=partial(forward_process, choices),
        T=choices.T,
        paper={},
        settings=settings,
        vectors=vectors,
        yardsticks=yardsticks,
    )
