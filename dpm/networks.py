"""The networks of Appendix D, as plain modules.

A network of the paper's own form maps x [B, D] and t [B] to [B, outputs]; it knows nothing of diffusion but a step's
number. A denoiser, our own form, sees the chain q as well, and returns the mean and variance of x⁰ given x^t.
"""

import torch
from torch import Tensor, nn

from dpm.forward import Binomial, Gaussian, at_time


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
        self.register_buffer("bumps", bumps(len(start) - 1, ties), persistent=False)
        self.shared = nn.Parameter(torch.zeros(ties, start[0].numel()))

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        steps, place = t.unique(return_inverse=True)
        shared = (self.bumps[steps] @ self.shared).view(-1, *self.start.shape[1:])
        weight = self.start[steps] + self.scale * self.own.index_select(0, steps) + shared
        h = torch.cat([h, torch.ones_like(h[:, :1])], dim=1)
        return torch.bmm(h[:, None], weight.index_select(0, place))[:, 0]


def bumps(T: int, count: int) -> Tensor:
    """Normalised bumps g_j(t), equation (63), spaced evenly in log t/(T−t+1), so dense near 0 and T. [T+1, count]"""
    if count == 0:
        return torch.zeros(T + 1, 0)
    t = torch.arange(T + 1).clamp(min=1)
    u = (t / (T - t + 1)).log()
    centres = torch.linspace(float(u[0]), float(u[-1]), count)
    width = centres[1] - centres[0]
    return torch.softmax(-(u[:, None] - centres).square() / (2 * width**2), dim=1)


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
        start[1:, range(inputs), range(inputs)] = slope.float()
        start[1:, -1] = (off - slope * low).float()
        return start


def copying_layer(fan_in: int, width: int, copies: int, gain: float = 8.0) -> nn.Linear:
    """A linear layer whose first units, through a sigmoid, repeat its first inputs where those are near 0 or 1."""
    layer = nn.Linear(fan_in, width)
    nn.init.xavier_normal_(layer.weight, gain=4)
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight[:copies] = gain * torch.eye(copies, fan_in)
        layer.bias[:copies] = -gain / 2
    return layer


def mlp(inputs: int, width: int, layers: int, outputs: int) -> nn.Sequential:
    """Smooth hidden layers and a last linear map that starts at zero."""
    modules: list[nn.Module] = []
    for fan_in in [inputs] + [width] * (layers - 1):
        modules += [nn.Linear(fan_in, width), nn.SiLU()]
    last = nn.Linear(width, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*modules, last)


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
        x, level = xt.float(), (signal / noise).log().float() / 4
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
