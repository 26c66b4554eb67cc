"""Pictures of whole grey levels, brought to mean 0 and variance 1 by one shift and one scale (Appendix D)."""

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor


@dataclass(frozen=True)
class ImageDataset:
    """Pictures of whole grey levels, with the one shift and one scale, in levels, that standardise them (Appendix D).

    x⁰ = (level + u − shift)/scale, u uniform on [0, 1): dequantised by noise of exactly one level, fresh in every draw.
    """

    train: Tensor  #: [n, C, H, W], integers
    test: Tensor  #: held out
    shift: float  #: levels
    scale: float  #: levels that one unit of x spans
    label: str = ""  #: a caveat that every report of numbers on these data must carry
    patches_per_photograph: int = 1  #: consecutive pictures of `test` that are cut from one, and so score alike

    def draw(self, n: int, generator: Generator) -> Tensor:
        """n training pictures drawn uniformly, dequantised, in float64: [n, C, H, W]."""
        index = torch.randint(len(self.train), (n,), generator=generator, device=generator.device)
        return self.dequantize(self.train[index.to(self.train.device)], generator)

    def held_out_data(self, generator: Generator) -> Tensor:
        """All held-out pictures in order, dequantised with noise from the generator."""
        return self.dequantize(self.test, generator)

    def dequantize(self, images: Tensor, generator: Generator) -> Tensor:
        """x⁰ of pictures of grey levels: uniform noise of one level added, then standardised."""
        noise = torch.rand(images.shape, generator=generator, dtype=torch.float64, device=generator.device)
        return (images.to(generator.device) + noise - self.shift) / self.scale

    def mean_per_photograph(self, scores: Tensor) -> Tensor:
        """Scores of all held-out pictures [n], averaged over each photograph, whose patches score alike."""
        return scores.view(-1, self.patches_per_photograph).mean(1)

    def to_levels(self, x: Tensor) -> Tensor:
        """The grey levels whose bins x falls into; those of a model's samples may lie outside the data's range."""
        return (x * self.scale + self.shift).floor().long()


def standardize(train: Tensor, test: Tensor, label: str = "") -> ImageDataset:
    """The dataset whose shift and scale give all of `train` mean 0 and variance 1, dequantisation noise included.

    That noise adds ½ to the mean and 1/12 to the variance, in levels.
    """
    counts = torch.bincount(train.flatten()).double()
    level = torch.arange(len(counts), dtype=torch.float64, device=counts.device)
    mean = float(counts @ level / counts.sum())
    variance = float(counts @ (level - mean).square() / counts.sum())
    return ImageDataset(train, test, mean + 1 / 2, math.sqrt(variance + 1 / 12), label)


def decode_pictures(files: list[bytes], mode: str) -> Tensor:
    """Decode JPEGs of one size as "RGB", or as grey "L": [n, C, H, W], uint8."""
    pictures = np.stack([np.atleast_3d(np.asarray(Image.open(io.BytesIO(file)).convert(mode))) for file in files])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def extract_patches(images: Tensor, size: int) -> Tensor:
    """Non-overlapping square patches of a grid centred on each picture, in order: [n, C, H, W] → [m, C, size, size]."""
    n_rows, n_columns = images.shape[2] // size, images.shape[3] // size
    top, left = (images.shape[2] - n_rows * size) // 2, (images.shape[3] - n_columns * size) // 2
    middle = images[:, :, top : top + n_rows * size, left : left + n_columns * size]
    squares = middle.unfold(2, size, size).unfold(3, size, size)  # [n, C, n_rows, n_columns, size, size]
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
