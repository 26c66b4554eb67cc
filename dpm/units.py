"""Units of likelihood: nats, bits, bits per pixel, bits per dimension; a mean and its standard error.

A pixel has `channels` numbers. `scale` is how many grey levels one unit of x spans: x = (level + noise)/scale.
"""

import math

from torch import Tensor


def to_bits(nats: Tensor) -> Tensor:
    """Nats as bits."""
    return nats / math.log(2)


def mean_and_stderr(values: Tensor) -> tuple[float, float]:
    """The mean of independent values, and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def bits_per_dimension(K: float, channels: int, scale: float) -> float:
    """Table 1's K, bits per pixel, as bits per dimension, in which others report: an upper bound, smaller is better.

    log₂(scale) − K/C bounds −log₂ P(level) where x holds uniform noise of exactly one level.
    """
    return math.log2(scale) - K / channels


def bits_per_pixel(bits: float, channels: int, scale: float) -> float:
    """Bits per dimension as Table 1's K, bits per pixel: the inverse of `bits_per_dimension`."""
    return channels * (math.log2(scale) - bits)


def null_bits(channels: int) -> float:
    """L_null of Table 1 for data of mean square 1, bits per pixel: −½ log₂(2πe) per channel."""
    return -channels / 2 * math.log2(2 * math.pi * math.e)


def edge_ceiling(beta_1: float, channels: int) -> float:
    """The most that (14) can reach with the edge step (44): −H_q(X¹|X⁰), bits per pixel of a Gaussian chain."""
    return -channels / 2 * math.log2(2 * math.pi * math.e * beta_1)
