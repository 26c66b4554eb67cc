"""Layers that several networks share: initialisers, basis functions, Fourier features, FiLM, sums over scales."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

Layer = TypeVar("Layer", bound=nn.Module)  #: any module


def zero_init(layer: Layer) -> Layer:
    """The layer with all its parameters set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@torch.no_grad()
def identity_init(layer: nn.Linear, n_copies: int, gain: float) -> None:
    """Let each of the first `n_copies` units of a layer see one of its first inputs, times a gain, and nothing else."""
    layer.weight[:n_copies] = gain * torch.eye(n_copies, layer.in_features)


def channels_last(x: Tensor) -> Tensor:
    """Pictures or convolution kernels in the memory layout that convolutions prefer; other tensors as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def mlp(inputs: int, width: int, n_layers: int, outputs: int) -> nn.Sequential:
    """SiLU hidden layers and a last linear layer that starts at zero."""
    modules: list[nn.Module] = []
    for fan_in in [inputs] + [width] * (n_layers - 1):
        modules += [nn.Linear(fan_in, width), nn.SiLU()]
    return nn.Sequential(*modules, zero_init(nn.Linear(width, outputs)))


def tanh_layers(linear: Sequence[nn.Linear | nn.Conv2d]) -> list[nn.Module]:
    """Each layer followed by a tanh, initialised so that the variance stays (Kaiming, gain 5/3), biases at zero."""
    modules: list[nn.Module] = []
    for layer in linear:
        nn.init.kaiming_normal_(zero_init(layer).weight, nonlinearity="tanh")
        modules += [layer, nn.Tanh()]
    return modules


# Features of a timestep, a noise level, a pixel


def rbf(x: Tensor, centres: Tensor, width: Tensor | float) -> Tensor:
    """Normalised radial basis functions g_j, equation (63), at x [n] around `centres` [J]: [n, J], rows of sum 1."""
    return torch.softmax(-(x[:, None] - centres).square() / (2 * width**2), dim=1)


def time_rbf(T: int, J: int) -> Tensor:
    """The paper's "bump functions" of (63), D.2.1, for t = 0…T: [T+1, J].

    τ_j lies in the middle of the j-th of J equal parts of (0, T); w is their spacing. The authors' code takes half of
    that w, and puts the first and last τ_j at the ends.
    """
    spacing = T / J
    return rbf(torch.arange(T + 1.0), (torch.arange(J) + 0.5) * spacing, spacing)


def log_odds_rbf(T: int, J: int) -> Tensor:
    """Basis functions of log t/(T−t+1), dense near t = 1 and t = T, as wide as their spacing: [T+1, J]. Ours."""
    if J == 0:
        return torch.zeros(T + 1, 0)
    t = torch.arange(T + 1).clamp(min=1)
    log_odds = (t / (T - t + 1)).log()
    centres = torch.linspace(float(log_odds[0]), float(log_odds[-1]), J)
    return rbf(log_odds, centres, centres[1] - centres[0])


EMBEDDING_SIZE = 16  # basis functions that embed a noise level
LOWEST_LOG_SNR, HIGHEST_LOG_SNR = -8, 16  # the range in which they tell noise levels apart


def noise_embedding(log_snr: Tensor) -> Tensor:
    """Embed log-SNRs, a number or [B, 1, …], by radial basis functions: [1 or B, EMBEDDING_SIZE]."""
    centres = torch.linspace(
        LOWEST_LOG_SNR, HIGHEST_LOG_SNR, EMBEDDING_SIZE, dtype=log_snr.dtype, device=log_snr.device
    )
    return rbf(log_snr.flatten(), centres, centres[1] - centres[0])


def fourier_features(x: Tensor, frequencies: Sequence[float]) -> list[Tensor]:
    """sin(fx) and cos(fx) of each entry of x, for each angular frequency f: tensors shaped like x."""
    return [wave(frequency * x) for frequency in frequencies for wave in (torch.sin, torch.cos)]


def damped_fourier_features(x: Tensor, noise_variance: Tensor, n_frequencies: int) -> list[Tensor]:
    """Fourier features of noisy pixels x [B, C, H, W], each damped to its mean over normal noise of x's noise variance.

    They let a network tell grey levels apart (Kingma et al. 2021, VDM). The damping is ours: it silences the waves that
    the noise has made meaningless. The first wave has one period per unit of x, each further one half that period.
    """
    frequencies = [2 * math.pi * 2**k for k in range(n_frequencies)]
    damping = [(-(frequency**2) * noise_variance / 2).exp() for frequency in frequencies for _ in ("sin", "cos")]
    return [factor * wave for factor, wave in zip(damping, fourier_features(x, frequencies), strict=True)]


# Layers of pictures, x [B, C, H, W]


def film(h: Tensor, scale_and_shift: Tensor) -> Tensor:
    """FiLM: SiLU of h [B, width, H, W], scaled and shifted per channel by [B or 1, 2·width]."""
    scale, shift = scale_and_shift[:, :, None, None].chunk(2, dim=1)
    return silu(h * (1 + scale) + shift)


def check_poolable(x: Tensor, n_scales: int) -> None:
    """ValueError unless pictures can be pooled by 2^(n_scales−1)."""
    height, width = x.shape[-2:]
    largest = 2 ** (n_scales - 1)
    if height % largest or width % largest:
        raise ValueError(
            f"images of {height}×{width} do not pool to {n_scales} scales; "
            f"crop or pad them to multiples of {largest}, or take fewer scales"
        )


class MultiScaleSum(nn.Module):
    """Steps 1 to 3 of D.2.1's layer: mean-pool to `n_scales` sizes, each half the last; convolve; upsample; sum.

    [B, inputs, H, W] → [B, outputs, H, W]. The sum goes from coarse to fine, so that each scale is upsampled once.
    Initialised so that inputs of this mean and variance, half of it white noise and half a smooth picture, give outputs
    of mean 0 and variance 1: pooling quarters the variance of noise and keeps that of a smooth picture. The mean is
    subtracted first, so that zero padding makes no edge.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, n_scales: int, mean: float = 0.0, variance: float = 1.0):
        super().__init__()
        layers = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False) for _ in range(n_scales)]
        smooth, noisy = n_scales, sum(4**-k for k in range(n_scales))  # variances of the pooled pictures, summed
        for layer in layers:
            nn.init.normal_(layer.weight, std=(inputs * kernel**2 * variance * (smooth + noisy) / 2) ** -0.5)
        self.mean, self.convolutions, self.bias = mean, nn.ModuleList(layers), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Pool, convolve, upsample and sum."""
        check_poolable(x, len(self.convolutions))
        pooled = [x - self.mean]
        while len(pooled) < len(self.convolutions):
            pooled.append(avg_pool2d(pooled[-1], 2))
        total = self.convolutions[-1](pooled[-1])
        for k in reversed(range(len(pooled) - 1)):
            total = self.convolutions[k](pooled[k]) + interpolate(total, scale_factor=2.0)
        return channels_last(total) + self.bias.to(total.dtype)[:, None, None]
