"""The sets of pictures of Section 3: digits, MNIST, CIFAR-10, bark, and the dead leaves of this book."""

import io
import tarfile
from dataclasses import replace
from functools import cache

import torch
from torch import Generator, Tensor

from dpm.data.download import as_user_error, check_sha256, fetch, find_local, gunzip, no_unpacking, read_local, unzip
from dpm.data.images import ImageDataset, decode_pictures, extract_patches, standardize
from dpm.data.synthetic import dead_leaves
from dpm.errors import UserError

CPU = torch.device("cpu")


@cache
def load_digits(device: torch.device = CPU) -> ImageDataset:
    """The 8×8 handwritten digits that scikit-learn bundles, levels 0…16: 1100 to train, the last 697 held out."""
    from sklearn import datasets  # here, since it takes a second to import

    images = torch.tensor(datasets.load_digits().images).to(device, torch.uint8)[:, None]
    return standardize(images[:1100], images[1100:])


MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_TRAIN = "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"  # SHA-256 of the unpacked files
MNIST_TEST = "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"


def read_mnist_file(part: str, sha256: str) -> Tensor:
    """All images of an IDX file, "train" or "t10k": [n, 1, 28, 28] behind a header of 16 bytes."""
    name = f"{part}-images-idx3-ubyte.gz"
    (content,) = fetch(f"mnist/{name}", MNIST + name, gunzip, sha256)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=16).view(-1, 1, 28, 28)


@cache
def load_mnist(device: torch.device) -> ImageDataset:
    """MNIST, Table 2: the first 50 000 training images and the test set's 10 000, [n, 1, 28, 28], uint8."""
    train, test = read_mnist_file("train", MNIST_TRAIN)[:50_000], read_mnist_file("t10k", MNIST_TEST)
    return standardize(train.to(device), test.to(device))


@cache
def load_mnist_validation(device: torch.device) -> Tensor:
    """The last 10 000 training digits, which `load_mnist` leaves out: the Parzen bandwidth is chosen on them."""
    return read_mnist_file("train", MNIST_TRAIN)[50_000:].to(device)


CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_PACKED = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"  # of the archive, as published
MIRROR_TRAIN = (
    "e88678367f5af1161c9ee360dc684dbd5c4dbc001d3745c3398b4ed2b3769c87"  # of the JPEGs in the order of `unzip`
)
MIRROR_TEST = "ff06663bf9bea872b36759de020bc3648f3b2d270b2af789728c820daf2748aa"
MIRROR = "JPEG mirror, not comparable"


@cache
def load_cifar10(device: torch.device) -> ImageDataset:
    """CIFAR-10, Table 1: 50 000 and 10 000 colour images [n, 3, 32, 32], uint8, one shift and scale for all three.

    Where DPM_DATA holds a folder cifar10-jpeg and no archive, they are a copy recompressed as JPEG, which removed
    detail: `label` says so.
    """
    name = "cifar10/cifar-10-binary.tar.gz"
    mirror = None if find_local(name) else find_local("cifar10-jpeg")
    if mirror:
        files = [("train.zip", MIRROR_TRAIN), ("test.zip", MIRROR_TEST)]
        train, test = (decode_pictures(read_local(mirror / file, unzip, sha256), "RGB") for file, sha256 in files)
    else:
        (packed,) = fetch(name, CIFAR10, no_unpacking, CIFAR10_PACKED)
        train, test = parse_cifar10(packed)
    return standardize(train.to(device), test.to(device), MIRROR if mirror else "")


def parse_cifar10(packed: bytes) -> tuple[Tensor, Tensor]:
    """Training and test pictures of the binary archive: records of one byte of class and 3·32·32 bytes of picture."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:

        def images(name: str) -> Tensor:
            file = archive.extractfile(f"cifar-10-batches-bin/{name}.bin")
            assert file, name  # the archive's checksum has passed
            records = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).view(-1, 1 + 3 * 32 * 32)
            return records[:, 1:].reshape(-1, 3, 32, 32)

        return torch.cat([images(f"data_batch_{i}") for i in range(1, 6)]), images("test_batch")


BARK = ["cananga_odorata", "persea", "terminalia_catappa", "wrightia"]  # four of BarkVN-50's species
BARK_SHA256 = "1ce2b509b2f6229dcfa0f6cd4b80d79569f5c9101a6d20b05469e344d3a813b3"  # of its JPEGs, by folder and name
BARK_SOURCE = "Truong Hoang (2020), BarkVN-50, doi 10.17632/gbt4tdmttn.1, CC BY 4.0"


@cache
def load_bark_photographs(device: torch.device) -> tuple[Tensor, Tensor]:
    """Grey photographs of bark to train on and held out: uint8, [333, 1, 404, 303] and [81, 1, 404, 303].

    They stand in for the textures T01-T04 of the paper. Grey is 0.299 R + 0.587 G + 0.114 B (ITU-R 601), rounded. The
    last fifth of each species, in order of file name, is held out: neighbours in that order often show the same tree.
    """
    folder = find_local("bark")
    if folder is None:
        raise UserError(
            f"no photographs of bark; set DPM_DATA to a folder that holds bark/{BARK[0]} … from {BARK_SOURCE}"
        )
    with as_user_error(f"cannot use {folder}", f"put whole copies of {', '.join(BARK)} there, from {BARK_SOURCE}"):
        species = [[path.read_bytes() for path in sorted((folder / name).glob("*.JPG"))] for name in BARK]
        check_sha256([file for files in species for file in files], BARK_SHA256)
    train = [file for files in species for file in files[: -(len(files) // 5)]]
    test = [file for files in species for file in files[-(len(files) // 5) :]]
    return decode_pictures(train, "L").to(device), decode_pictures(test, "L").to(device)


@cache
def load_bark(device: torch.device) -> ImageDataset:
    """Bark, Table 1: 24 patches of 64×64 that do not overlap from each photograph; uint8, 7992 and 1944 of them."""
    train, test = (extract_patches(photographs, 64) for photographs in load_bark_photographs(device))
    return replace(standardize(train, test), patches_per_photograph=24)


def load_bark_squares(generator: Generator, size: int) -> Tensor:
    """x⁰ of the middle square of each held-out photograph, in order: [81, 1, size, size]."""
    _, photographs = load_bark_photographs(generator.device)
    return load_bark(generator.device).dequantize(extract_patches(photographs, size), generator)


@cache
def load_dead_leaves(device: torch.device = CPU) -> ImageDataset:
    """Our own dead leaves: 64×64, disks of radius 1 to 128 pixels, noise of 3.6 levels. Results rest on this recipe.

    The set of 2012 behind Table 2 is not to be had. Noise and radii are chosen so that an MCGSM scores on these leaves
    what it scored on those, 1.244 bits per pixel; so only differences between models mean anything. They are drawn on
    the CPU, whatever the device: a GPU draws other numbers from the same seed.
    """
    train, test = (
        dead_leaves(1500, 64, Generator().manual_seed(seed), smallest=1, largest=128, noise=3.6).to(device)
        for seed in (0, 1)
    )
    return standardize(train, test)
