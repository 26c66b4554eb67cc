"""The networks of Appendix D, as plain modules.

A network of the paper's own form maps x [B, D] and t [B] to [B, outputs]; it knows nothing of diffusion but a step's
number. A denoiser, our own form, sees the chain q as well, and returns the mean and variance of x⁰ given x^t.
"""

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import avg_pool2d, interpolate, silu, softplus
from torch.utils.flop_counter import FlopCounterMode

from dpm.forward import Binomial, Gaussian, at_time, look_up


class StepReadout(nn.Module):
    """A linear layer of its own for every t (D.1.1, D.1.2): h [B, inputs], t [B] → [B, outputs].

    `start` [T+1, inputs+1, outputs] holds the first weights, the last input being the constant 1. With `ties` > 0 the
    layers also share a part that is smooth in t, Σ_j g_j(t) V_j, and learn what is left on a scale of their own: one
    step sees too few samples to learn 1000 weights alone.
    """

    start: Tensor
    bumps: Tensor

    def __init__(self, start: Tensor, ties: int = 0, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.register_buffer("start", start, persistent=False)
        self.own = nn.Parameter(torch.zeros_like(start))
        self.register_buffer("bumps", odds_bumps(len(start) - 1, ties), persistent=False)
        self.shared = nn.Parameter(torch.zeros(ties, start[0].numel()))

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        steps, place = t.unique(return_inverse=True)
        shared = (self.bumps[steps] @ self.shared).view(-1, *self.start.shape[1:])
        weight = self.start[steps] + self.scale * self.own.index_select(0, steps) + shared
        h = torch.cat([h, torch.ones_like(h[:, :1])], dim=1)
        return torch.bmm(h[:, None], weight.index_select(0, place))[:, 0]


def bumps(places: Tensor, centres: Tensor, width: Tensor | float) -> Tensor:
    """Normalised bumps g_j, equation (63), at `places` [n] around `centres` [J]: [n, J], each row of sum 1."""
    return torch.softmax(-(places[:, None] - centres).square() / (2 * width**2), dim=1)


def odds_bumps(T: int, count: int) -> Tensor:
    """Bumps spaced evenly in log t/(T−t+1), so dense near 0 and T, as wide as their spacing: [T+1, count]. Ours."""
    if count == 0:
        return torch.zeros(T + 1, 0)
    t = torch.arange(T + 1).clamp(min=1)
    u = (t / (T - t + 1)).log()
    centres = torch.linspace(float(u[0]), float(u[-1]), count)
    return bumps(u, centres, centres[1] - centres[0])


def time_bumps(T: int, J: int) -> Tensor:
    """Bumps of (63), D.2.1: τ_j in the middle of J equal parts of (0, T), w their spacing. [T+1, J]

    The authors' code takes half of that w, and puts the first and last τ_j at the ends.
    """
    spacing = T / J
    return bumps(torch.arange(T + 1.0), (torch.arange(J) + 0.5) * spacing, spacing)


class StepRBF(nn.Module):
    """D.1.1: normalised radial basis functions, shared by all t, then a readout for each t, which starts at zero."""

    def __init__(self, T: int, inputs: int, units: int, outputs: int):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(units, inputs))
        self.log_width = nn.Parameter(torch.zeros(units))
        self.readout = StepReadout(torch.zeros(T + 1, units + 1, outputs))

    def activations(self, x: Tensor) -> Tensor:
        """[B, inputs] → [B, units], positive, each row of sum 1."""
        squared = (x[:, None] - self.centres).square().sum(-1)
        return torch.softmax(-squared / (2 * (2 * self.log_width).exp()), dim=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.readout(self.activations(x), t)


class StepMLP(nn.Module):
    """D.1.2: hidden layers of sigmoid units, shared by all t, then a readout for each t.

    The paper names no start. In ours the first units of each layer copy the input bits, and the readouts turn those
    copies into the reversal that keeps π: training starts at K = L_null. From the usual small weights, three sigmoid
    layers pass on almost nothing of x.
    """

    def __init__(self, q: Binomial, inputs: int, width: int, layers: int, ties: int):
        super().__init__()
        self.hidden = nn.ModuleList(
            copying_layer(fan_in, width, copies=inputs) for fan_in in [inputs] + [width] * (layers - 1)
        )
        self.readout = StepReadout(self.keeping_prior(q, inputs, width), ties, scale=0.02)

    def activations(self, x: Tensor) -> Tensor:
        """[B, inputs] → [B, width] in (−½, ½)."""
        for layer in self.hidden:
            x = torch.sigmoid(layer(x))
        return x - 0.5

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.readout(self.activations(x), t)

    @torch.no_grad()
    def keeping_prior(self, q: Binomial, inputs: int, width: int) -> Tensor:
        """Readouts that make p(x^{t−1}|x^t) the forward kernel, which is its own reversal under π."""
        t = torch.arange(1, q.T + 1)
        off, on = (q.step(torch.full((q.T, 1), b, dtype=torch.float64), t).logits for b in (0.0, 1.0))
        low, high = (float(self.activations(torch.full((1, inputs), b))[0, 0]) for b in (0.0, 1.0))
        slope = (on - off) / (high - low)
        start = torch.zeros(q.T + 1, width + 1, inputs)
        start[1:, range(inputs), range(inputs)] = slope.to(start.dtype)
        start[1:, -1] = (off - slope * low).to(start.dtype)
        return start


def copying_layer(fan_in: int, width: int, copies: int) -> nn.Linear:
    """A linear layer whose first units, through a sigmoid, repeat its first inputs where those are near 0 or 1."""
    layer, gain = nn.Linear(fan_in, width), 8.0
    nn.init.xavier_normal_(layer.weight, gain=4)
    nn.init.zeros_(layer.bias)
    pass_on(layer, copies, gain)
    nn.init.constant_(layer.bias[:copies], -gain / 2)
    return layer


@torch.no_grad()
def pass_on(layer: nn.Linear, copies: int, gain: float) -> None:
    """Let the first units of a layer see one of its first inputs each, times a gain, and nothing else."""
    layer.weight[:copies] = gain * torch.eye(copies, layer.in_features)


Layer = TypeVar("Layer", bound=nn.Module)  #: any module


def mlp(inputs: int, width: int, layers: int, outputs: int) -> nn.Sequential:
    """Smooth hidden layers and a last linear map that starts at zero."""
    modules: list[nn.Module] = []
    for fan_in in [inputs] + [width] * (layers - 1):
        modules += [nn.Linear(fan_in, width), nn.SiLU()]
    return nn.Sequential(*modules, zeroed(nn.Linear(width, outputs)))


def zeroed(layer: Layer) -> Layer:
    """The layer, starting at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def log_snr(signal: Tensor, noise: Tensor) -> Tensor:
    """log ᾱ/(1−ᾱ) in float32, for networks to hear: kept finite where β_T = 1 leaves no signal."""
    return (signal / noise).log().float().clamp(min=-99)


class GaussianDenoiser(nn.Module):
    """Ours: (q, x^t, t) → mean and variance of x⁰ given x^t, each [B, D], from x^t and its signal level.

    Starts at the exact answer for x⁰ ~ N(0, I): mean √ᾱ x^t, variance 1−ᾱ. Sines and cosines of x^t let a small
    network see a fine curve.
    """

    def __init__(self, dimensions: int, width: int, layers: int, octaves: int):
        super().__init__()
        self.octaves = octaves
        self.mlp = mlp(1 + dimensions * (1 + 2 * octaves), width, layers, 2 * dimensions)

    def forward(self, q: Gaussian, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        signal, noise = at_time(q.alpha_bar, t, xt), at_time(q.noise_level, t, xt)
        x, level = xt.float(), log_snr(signal, noise) / 4
        waves = [wave(1.5 * 2**k * x) for k in range(self.octaves) for wave in (torch.sin, torch.cos)]
        shift, spread = self.mlp(torch.cat([x, level.expand(len(x), 1), *waves], dim=1)).to(xt.dtype).chunk(2, dim=1)
        return signal.sqrt() * xt + noise.sqrt() * shift, noise * spread.exp()


class BinomialDenoiser(nn.Module):
    """Ours: (q, x^t, t) → mean and variance of x⁰ given x^t, each [B, D], from the evidence of each bit of x^t.

    Starts at the exact answer for independent bits of the prior's rate; the network adds what the bits say of each
    other.
    """

    def __init__(self, bits: int, width: int, layers: int):
        super().__init__()
        self.mlp = mlp(1 + bits, width, layers, bits)

    def forward(self, q: Binomial, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        evidence = q.evidence(xt, t)
        level = at_time(q.alpha_bar, t, xt)
        others = self.mlp(torch.cat([evidence / 4, level.expand(len(xt), 1)], dim=1).float()).to(xt.dtype)
        mean = torch.sigmoid(q.prior(xt).logits + evidence + others)
        return mean, mean * (1 - mean)


# The networks of images, D.2.1: x is [B, C, H, W]

LEVELS = 16  # bumps through which our denoiser of images hears a noise level
SOFTPLUS_MEAN, SOFTPLUS_VARIANCE = 0.8060592, 0.2715145  # of log(1 + e^a) for a ~ N(0, 1)


def channels_last(x: Tensor) -> Tensor:
    """Pictures, or the kernels that convolve them, laid out in memory as convolutions like it; others as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


class ScaleSum(nn.Module):
    """Steps 1 to 3 of D.2.1's layer: mean-pool to `scales` sizes, each half the last; convolve; upsample; sum.

    [B, inputs, H, W] → [B, outputs, H, W]. The sum goes from coarse to fine, which saves bringing every scale up alone.
    Start: inputs of this mean and variance, half of it noise and half a smooth picture, give outputs of mean 0 and
    variance 1; pooling quarters the variance of noise and keeps that of a smooth picture. The mean is taken off first,
    so that the zeros beyond the borders are no edge.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, scales: int, mean: float = 0.0, variance: float = 1.0):
        super().__init__()
        layers = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False) for _ in range(scales)]
        smooth, noisy = scales, sum(4**-k for k in range(scales))  # variances of the pooled, summed
        for layer in layers:
            nn.init.normal_(layer.weight, std=(inputs * kernel**2 * variance * (smooth + noisy) / 2) ** -0.5)
        self.mean, self.convolutions, self.bias = mean, nn.ModuleList(layers), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        refuse_unpoolable(x, len(self.convolutions))
        pooled = [x - self.mean]
        while len(pooled) < len(self.convolutions):
            pooled.append(avg_pool2d(pooled[-1], 2))
        total = self.convolutions[-1](pooled[-1])
        for k in reversed(range(len(pooled) - 1)):
            total = self.convolutions[k](pooled[k]) + interpolate(total, scale_factor=2.0)
        return channels_last(total) + self.bias.to(total.dtype)[:, None, None]


def refuse_unpoolable(x: Tensor, scales: int) -> None:
    """ValueError where the largest pooling, 2^(scales−1), does not divide the image."""
    height, width = x.shape[-2:]
    largest = 2 ** (scales - 1)
    if height % largest or width % largest:
        raise ValueError(
            f"images of {height}×{width} do not pool to {scales} scales; "
            f"crop or pad them to multiples of {largest}, or take fewer scales"
        )


class MultiScaleConv(ScaleSum):
    """D.2.1's multi-scale convolution layer: the sum over scales, then one softplus."""

    def forward(self, x: Tensor) -> Tensor:
        return softplus(super().forward(x))


class Convolutions(nn.Sequential):
    """The convolutional pathway of D.2.1: multi-scale layers one after another, [B, C, H, W] → [B, outputs, H, W].

    Every layer is told what the softplus before it does to a normal variable; without that each would pass on a
    quarter of the variance.
    """

    def __init__(self, channels: int, outputs: int, layers: int, kernel: int, scales: int):
        first = MultiScaleConv(channels, outputs, kernel, scales)
        rest = (
            MultiScaleConv(outputs, outputs, kernel, scales, SOFTPLUS_MEAN, SOFTPLUS_VARIANCE)
            for _ in range(layers - 1)
        )
        super().__init__(first, *rest)
        self.outputs = outputs


class Dense(nn.Sequential):
    """The dense pathway of D.2.1: tanh layers over the whole image, [B, C, size, size] → [B, outputs, size, size].

    The paper names no width and no start. Layers as wide as the image start by passing it on, so that each pixel of the
    first outputs is that of the image: to take a pixel's noise away, the layers above must see the pixel.
    """

    def __init__(self, channels: int, size: int, width: int, layers: int, outputs: int):
        inputs = channels * size**2
        sizes = [inputs] + [width] * layers + [outputs * size**2]
        linear = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        super().__init__(nn.Flatten(), *tanh_layers(linear), nn.Unflatten(1, (outputs, size, size)))
        self.outputs = outputs
        if width >= inputs:
            for k, layer in enumerate(linear):
                pass_on(layer, inputs, gain=1 / 4 if k == 0 else 1)  # so small, tanh is nearly straight


def tanh_layers(linear: Sequence[nn.Linear | nn.Conv2d]) -> list[nn.Module]:
    """Linear, then tanh, over and over; weights start so that the variance stays (gain 5/3), biases at zero."""
    modules: list[nn.Module] = []
    for layer in linear:
        nn.init.kaiming_normal_(zeroed(layer).weight, nonlinearity="tanh")
        modules += [layer, nn.Tanh()]
    return modules


class BumpReadout(nn.Module):
    """(62): z_i = Σ_j y_ij g_j(t), y_ij linear in the features of pixel i: h [B, F, H, W] → [B, outputs, H, W].

    Summed in the other order: the weights at t are Σ_j g_j(t) V_j, so that no y_ij is ever stored. All start at zero.
    """

    bumps: Tensor

    def __init__(self, T: int, inputs: int, outputs: int, J: int):
        super().__init__()
        self.register_buffer("bumps", time_bumps(T, J), persistent=False)
        self.weight = nn.Parameter(torch.zeros(J, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(J, outputs))

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        g = self.bumps.index_select(0, t)
        weight = torch.einsum("bj,jof->bof", g, self.weight)
        return torch.einsum("bof,bfhw->bohw", weight, h) + (g @ self.bias)[:, :, None, None]


class ImageNetwork(nn.Module):
    """D.2.1, Figure D.1: pathways side by side, 1×1 tanh layers on both, the bump readout: x, t → [B, 2C, H, W].

    The halves are z^μ and z^Σ of (62), both zero at the start. MNIST has a `Dense` pathway, CIFAR-10 both, bark and
    dead leaves `Convolutions`, which take images of any size.
    """

    def __init__(
        self, T: int, channels: int, pathways: Sequence[Dense | Convolutions], width: int, layers: int, J: int
    ):
        super().__init__()
        self.pathways = nn.ModuleList(pathways)
        sizes = [sum(pathway.outputs for pathway in pathways)] + [width] * layers
        self.top = nn.Sequential(*tanh_layers([nn.Conv2d(a, b, 1) for a, b in pairwise(sizes)]))
        self.readout = BumpReadout(T, sizes[-1], 2 * channels, J)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = channels_last(torch.cat([pathway(x) for pathway in self.pathways], dim=1))
        return self.readout(self.top(h), t)


def faded_waves(x: Tensor, noise: Tensor, octaves: int) -> list[Tensor]:
    """Sines and cosines of pixels x [B, C, H, W], octave by octave, each times what an average over normal noise of
    variance `noise` leaves of it. They let a network tell grey levels apart (Kingma et al. 2021); the fading is ours.
    """
    turns = [2 * math.pi * 2**k for k in range(octaves)]
    return [(-(turn**2) * noise / 2).exp() * wave(turn * x) for turn in turns for wave in (torch.sin, torch.cos)]


def at_level(h: Tensor, told: Tensor) -> Tensor:
    """silu of h [B, width, H, W], scaled and shifted by what a layer told of its noise level, [B or 1, 2·width]."""
    scale, shift = told[:, :, None, None].chunk(2, dim=1)
    return silu(h * (1 + scale) + shift)


class ScaleBlock(nn.Module):
    """h + a change of it that starts at zero: D.2.1's sum over scales, scaled and shifted by the noise level."""

    def __init__(self, width: int, scales: int):
        super().__init__()
        self.sum = ScaleSum(width, width, kernel=3, scales=scales)
        self.level = zeroed(nn.Linear(LEVELS, 2 * width))
        self.change = zeroed(nn.Conv2d(width, width, 1))

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        return h + self.change(at_level(self.sum(h), self.level(level)))


class PairBlock(nn.Module):
    """h + a change of it that starts at zero: two convolutions, and between them a scale and shift by level."""

    def __init__(self, width: int):
        super().__init__()
        self.inward = nn.Conv2d(width, width, 3, padding=1)
        self.level = zeroed(nn.Linear(LEVELS, 2 * width))
        self.outward = zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        return h + self.outward(at_level(self.inward(silu(h)), self.level(level)))


class Halved(nn.Module):
    """h + what blocks of another width make of it at half the size."""

    def __init__(self, width: int, inside: int, blocks: nn.Module):
        super().__init__()
        self.inward, self.blocks, self.outward = nn.Conv2d(width, inside, 1), blocks, nn.Conv2d(inside, width, 1)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        refuse_unpoolable(h, scales=2)
        coarse = self.blocks(self.inward(avg_pool2d(h, 2)), level)
        return h + interpolate(self.outward(coarse), scale_factor=2.0)


class Blocks(nn.ModuleList):
    """Blocks one after another: h [B, width, H, W], noise levels [B or 1, LEVELS] → [B, width, H, W]."""

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        for block in self:
            h = block(h, level)
        return h


def u_net(widths: Sequence[int], depths: Sequence[int]) -> Blocks:
    """A U-Net (Ronneberger, Fischer, Brox 2015): `depths[0]` blocks of `widths[0]`; at half the size a U-Net of what is
    left of both; as many blocks again. What comes up is added, as D.2.1's scales are, and not laid beside."""
    width, *wider = widths
    before, after = ([PairBlock(width) for _ in range(depths[0])] for _ in range(2))
    return Blocks([*before, Halved(width, wider[0], u_net(wider, depths[1:])), *after] if wider else before)


class ImageDenoiser(nn.Module):
    """Ours: (q, x^t, t) → mean and variance of x⁰ given x^t, each [B, C, H, W], from x^t and its signal level.

    Starts, like `GaussianDenoiser`, at the exact answer for x⁰ ~ N(0, I). It hears the log of the signal-to-noise
    ratio, through bumps, and not t, so that a trained one serves any schedule; it takes pictures of any size that its
    blocks can halve. With `octaves` it sees waves of x^t as well.
    """

    centres: Tensor

    def __init__(self, channels: int, width: int, blocks: Blocks, octaves: int):
        super().__init__()
        self.octaves = octaves
        self.register_buffer("centres", torch.linspace(-8, 16, LEVELS), persistent=False)
        self.inward = nn.Conv2d(channels * (1 + 2 * octaves), width, 3, padding=1)
        self.blocks = blocks
        self.outward = zeroed(nn.Conv2d(width, 2 * channels, 1))

    def forward(self, q: Gaussian, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        signal, noise = at_time(q.alpha_bar, t, xt), at_time(q.noise_level, t, xt)
        level = log_snr(signal, noise).flatten()  # any far level is one bump
        heard = bumps(level, self.centres, self.centres[1] - self.centres[0])
        x = xt.float()
        seen = torch.cat([x, *faded_waves(x, noise.float(), self.octaves)], dim=1)
        h = self.blocks(channels_last(self.inward(seen)), heard)
        shift, spread = self.outward(silu(h)).to(xt.dtype).chunk(2, dim=1)
        return signal.sqrt() * xt + noise.sqrt() * shift, noise * spread.exp()


class Parted(nn.Module):
    """Ours: (q, x^t, t) → mean and variance of x⁰ given x^t, by a denoiser of its own where noise prevails.

    It is asked where the noise level 1−ᾱ_t is above `at`. That end has a hundredth of the bits of (14), so a network of
    all levels learns it last; and there it is decided what a picture shows (experts of Balaji et al. 2022).
    """

    def __init__(self, noisy: nn.Module, clear: nn.Module, at: float):
        super().__init__()
        self.noisy, self.clear, self.at = noisy, clear, at

    def forward(self, q: Gaussian, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        loud = look_up(q.noise_level, t) > self.at
        if t.stride(0) == 0:  # `everywhere` made the t
            return (self.noisy if loud else self.clear)(q, xt, t)
        mean, variance = torch.empty_like(xt), torch.empty_like(xt)
        for denoiser, its in ((self.noisy, loud), (self.clear, ~loud)):
            mean[its], variance[its] = denoiser(q, xt[its], t[its])  # of none too: DDP waits for both gradients
        return mean, variance


def peak(device: torch.device, precision: torch.dtype) -> float:
    """Multiply-adds a second in a product of matrices, the best of many: what the machine can do, measured."""
    side = 8192 if device.type == "cuda" else 512  # large enough to keep it busy, small enough not to be interrupted
    a = torch.ones(side, side, dtype=precision, device=device)

    def seconds() -> float:
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # asking for a number waits for a GPU
        return time.perf_counter() - started

    return side**3 / min(seconds() for _ in range(100))


def cost(network: nn.Module, *inputs: object) -> tuple[int, int]:
    """Multiply-adds of one call, and the bytes it keeps until its gradient is asked for, weights and tables apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*network.parameters(), *network.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = network(*inputs)  # held, so that no place in memory is counted twice
    del answer
    return counter.get_total_flops() // 2, sum(size for place, size in kept.items() if place not in own)
