"""Our own networks: they map x^t and its log-SNR to a prediction and a log variance, for `X0Prediction` and its kin.

`log_snr` is a number, or [B, 1, …] with one per sample. Trained by `VPrediction`, each starts at the exact answer for
x⁰ ~ N(0, I), since it returns zeros.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from dpm.networks.layers import (
    channels_last,
    damped_fourier_features,
    fourier_features,
    mlp,
    noise_embedding,
    zero_init,
)
from dpm.networks.unet import ConditionalSequential

LOWEST_FREQUENCY = 1.5  # radians per standard deviation of the data: half a wave over the width of a standard data set
LOG_SNR_SCALE = 4  # brings log-SNRs of −8 to 16 to the size of other inputs


class FourierMLP(nn.Module):
    """An MLP on x [B, D], Fourier features of x, and the log-SNR: → [B, outputs].

    The Fourier features, an octave apart, let a small network see a fine curve. The outputs, 2D unless another number
    is given, are the prediction and the log variance of each entry.
    """

    def __init__(self, dimensions: int, width: int, n_layers: int, n_frequencies: int, outputs: int | None = None):
        super().__init__()
        self.frequencies = [LOWEST_FREQUENCY * 2**k for k in range(n_frequencies)]
        inputs = 1 + dimensions * (1 + 2 * n_frequencies)
        self.mlp = mlp(inputs, width, n_layers, outputs or 2 * dimensions)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """x [B, D], log_snr a number or [B, 1] → [B, outputs]."""
        level = (log_snr / LOG_SNR_SCALE).expand(len(x), 1)
        return self.mlp(torch.cat([x, level, *fourier_features(x, self.frequencies)], dim=1))


class ImageDenoiser(nn.Module):
    """A convolutional network on pictures x [B, C, H, W], conditioned on the log-SNR by FiLM: → [B, 2C, H, W].

    `blocks` are a `u_net` or other blocks of that width. It takes pictures of any size that they can pool. With
    `n_frequencies` > 0 it sees Fourier features of x as well.
    """

    def __init__(self, channels: int, width: int, blocks: ConditionalSequential, n_frequencies: int):
        super().__init__()
        self.n_frequencies = n_frequencies
        self.conv_in = nn.Conv2d(channels * (1 + 2 * n_frequencies), width, 3, padding=1)
        self.blocks = blocks
        self.conv_out = zero_init(nn.Conv2d(width, 2 * channels, 1))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """x [B, C, H, W], log_snr a number or [B, 1, 1, 1] → prediction and log variance, [B, 2C, H, W]."""
        features = damped_fourier_features(x, torch.sigmoid(-log_snr), self.n_frequencies)
        h = self.conv_in(torch.cat([x, *features], dim=1))
        h = self.blocks(channels_last(h), noise_embedding(log_snr))
        return self.conv_out(silu(h))


class NoiseLevelExperts(nn.Module):
    """Two networks for two ranges of noise: `high` where 1−ᾱ_t is above the threshold, `low` elsewhere.

    The noisy end has a hundredth of the bits of (14), so a single network learns it last; yet it decides what a picture
    shows (experts, Balaji et al. 2022).
    """

    def __init__(self, high: nn.Module, low: nn.Module, threshold: float):
        super().__init__()
        self.high, self.low = high, low
        self.log_snr_threshold = math.log((1 - threshold) / threshold)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """x [B, …], log_snr a number or [B, 1, …] → what the expert of each sample returns."""
        is_noisy = log_snr.flatten() < self.log_snr_threshold
        if log_snr.ndim == 0:
            return (self.high if is_noisy else self.low)(x, log_snr)
        # either may get no samples, and is called all the same: DDP waits for both gradients
        high, low = self.high(x[is_noisy], log_snr[is_noisy]), self.low(x[~is_noisy], log_snr[~is_noisy])
        output = high.new_empty(len(x), *high.shape[1:])
        output[is_noisy], output[~is_noisy] = high, low
        return output
