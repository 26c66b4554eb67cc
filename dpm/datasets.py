"""The data of Section 3 and Appendix D, drawn fresh from a generator, in float64."""

import io
import math
import tarfile
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from dpm.fetch import fetch, gunzipped, local, mending, read, refuse_other, unzipped, whole
from dpm.files import UserError

CPU = torch.device("cpu")
ROLL_NOISE = 0.02  #: standard deviation around the curve, in units of the data's own; the paper gives none


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

    train: Tensor  #: [n, C, H, W], integers
    test: Tensor  #: held out
    shift: float  #: levels
    scale: float  #: levels that one unit of x spans
    label: str = ""  #: what every report must say of numbers measured on these

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


def scaled(train: Tensor, test: Tensor, label: str = "") -> Images:
    """Shift and scale from all of `train`, to mean 0 and variance 1 with the noise, which adds ½ and 1/12."""
    counts = torch.bincount(train.flatten()).double()
    level = torch.arange(len(counts), dtype=torch.float64, device=counts.device)
    mean = float(counts @ level / counts.sum())
    variance = float(counts @ (level - mean).square() / counts.sum())
    return Images(train, test, mean + 1 / 2, math.sqrt(variance + 1 / 12), label)


@cache
def digits(device: torch.device = CPU) -> Images:
    """The 8×8 handwritten digits that scikit-learn bundles, levels 0…16: 1100 to train, the last 697 held out."""
    from sklearn.datasets import load_digits  # here, since it takes a second to import

    images = torch.tensor(load_digits().images).to(device, torch.uint8)[:, None]
    return scaled(images[:1100], images[1100:])


MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_TRAIN = "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"  # SHA-256 of the unpacked files
MNIST_TEST = "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"


def mnist_file(part: str, sha256: str) -> Tensor:
    """All images of an IDX file, "train" or "t10k": [n, 1, 28, 28] behind a header of 16 bytes."""
    name = f"{part}-images-idx3-ubyte.gz"
    (content,) = fetch(f"mnist/{name}", MNIST + name, gunzipped, sha256)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=16).view(-1, 1, 28, 28)


@cache
def mnist(device: torch.device) -> Images:
    """MNIST, Table 2: the first 50 000 training images and the test set's 10 000, [n, 1, 28, 28], uint8."""
    train, test = mnist_file("train", MNIST_TRAIN)[:50_000], mnist_file("t10k", MNIST_TEST)
    return scaled(train.to(device), test.to(device))


@cache
def mnist_validation(device: torch.device) -> Tensor:
    """The last 10 000 training images, which `mnist` leaves out: a Parzen window's width is chosen on them."""
    return mnist_file("train", MNIST_TRAIN)[50_000:].to(device)


CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_PACKED = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"  # of the archive, as published
MIRROR_TRAIN = "e88678367f5af1161c9ee360dc684dbd5c4dbc001d3745c3398b4ed2b3769c87"  # of the JPEGs in `unzipped`'s order
MIRROR_TEST = "ff06663bf9bea872b36759de020bc3648f3b2d270b2af789728c820daf2748aa"
MIRROR = "JPEG mirror, not comparable"


@cache
def cifar10(device: torch.device) -> Images:
    """CIFAR-10, Table 1: 50 000 and 10 000 colour images [n, 3, 32, 32], uint8, one shift and scale for all three.

    Where DPM_DATA holds a folder cifar10-jpeg and not the archive, they are a copy compressed as JPEG, which took
    detail away: `label` says so.
    """
    name = "cifar10/cifar-10-binary.tar.gz"
    mirror = None if local(name) else local("cifar10-jpeg")
    if mirror:
        files = [("train.zip", MIRROR_TRAIN), ("test.zip", MIRROR_TEST)]
        train, test = (decoded(read(mirror / file, unzipped, sha256), "RGB") for file, sha256 in files)
    else:
        (packed,) = fetch(name, CIFAR10, whole, CIFAR10_PACKED)
        train, test = cifar10_records(packed)
    return scaled(train.to(device), test.to(device), MIRROR if mirror else "")


def cifar10_records(packed: bytes) -> tuple[Tensor, Tensor]:
    """Training and test images of the binary archive: records of one byte of class, 3·32·32 of image."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:

        def images(name: str) -> Tensor:
            file = archive.extractfile(f"cifar-10-batches-bin/{name}.bin")
            assert file, name  # the archive's checksum has passed
            records = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).view(-1, 1 + 3 * 32 * 32)
            return records[:, 1:].reshape(-1, 3, 32, 32)

        return torch.cat([images(f"data_batch_{i}") for i in range(1, 6)]), images("test_batch")


def decoded(files: list[bytes], mode: str) -> Tensor:
    """JPEGs of one size, "RGB" or grey as "L": [n, C, H, W], uint8."""
    pictures = np.stack([np.atleast_3d(np.asarray(Image.open(io.BytesIO(file)).convert(mode))) for file in files])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


BARK = ["cananga_odorata", "persea", "terminalia_catappa", "wrightia"]  # four of BarkVN-50's species
BARK_SHA256 = "1ce2b509b2f6229dcfa0f6cd4b80d79569f5c9101a6d20b05469e344d3a813b3"  # of its JPEGs, by folder and name
BARK_SOURCE = "Truong Hoang (2020), BarkVN-50, doi 10.17632/gbt4tdmttn.1, CC BY 4.0"


@cache
def bark_photographs(device: torch.device) -> tuple[Tensor, Tensor]:
    """Grey photographs of bark to train on and held out: uint8, [333, 1, 404, 303] and [81, 1, 404, 303].

    They stand in for the textures T01-T04 of the paper. Grey is 0.299 R + 0.587 G + 0.114 B (ITU-R 601), rounded. The
    last fifth of each species, in order of file name, is held out: neighbours in that order often show the same tree.
    """
    folder = local("bark")
    if folder is None:
        raise UserError(
            f"no photographs of bark; set DPM_DATA to a folder that holds bark/{BARK[0]} … from {BARK_SOURCE}"
        )
    with mending(f"cannot use {folder}", f"put whole copies of {', '.join(BARK)} there, from {BARK_SOURCE}"):
        species = [[path.read_bytes() for path in sorted((folder / name).glob("*.JPG"))] for name in BARK]
        refuse_other([file for files in species for file in files], BARK_SHA256)
    train = [file for files in species for file in files[: -(len(files) // 5)]]
    test = [file for files in species for file in files[-(len(files) // 5) :]]
    return decoded(train, "L").to(device), decoded(test, "L").to(device)


def patches(images: Tensor, size: int) -> Tensor:
    """The squares of a grid on the middle of each image, in order: [n, C, H, W] → [m, C, size, size]."""
    rows, columns = images.shape[2] // size, images.shape[3] // size
    top, left = (images.shape[2] - rows * size) // 2, (images.shape[3] - columns * size) // 2
    middle = images[:, :, top : top + rows * size, left : left + columns * size]
    squares = middle.unfold(2, size, size).unfold(3, size, size)  # [n, C, rows, columns, size, size]
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


@cache
def bark(device: torch.device) -> Images:
    """Bark, Table 1: 24 patches of 64×64 that do not overlap from each photograph; uint8, 7992 and 1944 of them."""
    train, test = bark_photographs(device)
    return scaled(patches(train, 64), patches(test, 64))


def bark_squares(generator: Generator, size: int) -> Tensor:
    """x⁰ of the middle square of each held-out photograph, in order: [81, 1, size, size]."""
    _, photographs = bark_photographs(generator.device)
    return bark(generator.device).blurred(patches(photographs, size), generator)


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
    grey = torch.empty(n * size**2, dtype=torch.float32, device=generator.device)
    empty = torch.arange(n * size**2, device=generator.device)
    while len(empty):
        r, cy, cx = falling_disks((n, 8), size, smallest, largest, generator).float()
        leaves = torch.randint(256, (n, 8), generator=generator, device=generator.device).float()
        image, y, x = empty // size**2, empty // size % size + 0.5, empty % size + 0.5
        under = (y[:, None] - cy[image]).square() + (x[:, None] - cx[image]).square() < r.square()[image]
        seen = under.any(1)
        grey[empty[seen]] = leaves[image[seen], under[seen].byte().argmax(1)]  # the first of those above a pixel
        empty = empty[~seen]
    grey += noise * torch.randn(grey.shape, generator=generator, dtype=grey.dtype, device=generator.device)
    return grey.round().clamp(0, 255).to(torch.uint8).view(n, 1, size, size)


@cache
def leaves(device: torch.device = CPU) -> Images:
    """The dead leaves of this book: 64×64, disks of radius 1 to 128 pixels, noise of 3.6 levels; frozen.

    The set of 2012 behind Table 2 is not to be had. Noise and radii are chosen so that an MCGSM scores on these leaves
    what it scored on those, 1.244 bits a pixel; so only differences between models mean anything. They fall on the CPU,
    whatever the device that they are for: a GPU draws other numbers from the same seed.
    """
    train, test = (
        dead_leaves(1500, 64, Generator().manual_seed(seed), smallest=1, largest=128, noise=3.6).to(device)
        for seed in (0, 1)
    )
    return scaled(train, test)
