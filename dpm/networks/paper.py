"""The paper's networks, Appendix D: they map x [B, D…] and a timestep t to outputs, and know nothing else of diffusion.

RBFNetwork is the swiss roll's, SigmoidMLP the heartbeat's, PaperImageNetwork that of all pictures (Figure D.1).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from dpm.forward import BernoulliForward
from dpm.networks.layers import (
    MultiScaleSum,
    channels_last,
    identity_init,
    log_odds_rbf,
    tanh_layers,
    time_rbf,
)


class PerTimestepLinear(nn.Module):
    """A linear layer of its own for every timestep (D.1.1, D.1.2): h [B, inputs], t → [B, outputs].

    Its weights are init_t + scale · w_t + Σ_j g_j(t) V_j, [inputs+1, outputs], the last input being the constant 1.
    `init` [T+1, inputs+1, outputs] is fixed, w_t is learned for each t alone, and the V_j (`n_shared` of them) are
    learned in common, since one timestep sees too few samples to learn 1000 weights alone. g_j: `log_odds_rbf`.
    """

    init: Tensor
    basis: Tensor

    def __init__(self, init: Tensor, n_shared: int = 0, scale: float = 1.0):
        super().__init__()
        self.scale = scale  # of per_timestep alone, see `weights`
        self.register_buffer("init", init, persistent=False)
        self.register_buffer("basis", log_odds_rbf(len(init) - 1, n_shared), persistent=False)
        self.per_timestep = nn.Parameter(torch.zeros_like(init))
        self.shared = nn.Parameter(torch.zeros(n_shared, init[0].numel()))

    def weights(self, timesteps: Tensor) -> Tensor:
        """The layers of these timesteps [n]: [n, inputs+1, outputs]."""
        shared = (self.basis[timesteps] @ self.shared).view(-1, *self.init.shape[1:])
        return self.init[timesteps] + self.scale * self.per_timestep.index_select(0, timesteps) + shared

    def forward(self, h: Tensor, t: int | Tensor) -> Tensor:
        """Each sample through the layer of its timestep."""
        h = torch.cat([h, torch.ones_like(h[:, :1])], dim=1)
        if not isinstance(t, Tensor):
            return h @ self.weights(torch.tensor([t], device=h.device))[0]
        timesteps, index = t.unique(return_inverse=True)
        return torch.bmm(h[:, None], self.weights(timesteps).index_select(0, index))[:, 0]


class RBFNetwork(nn.Module):
    """D.1.1: normalised radial basis functions, shared by all t, then a linear readout per timestep."""

    def __init__(self, T: int, inputs: int, n_units: int, outputs: int):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(n_units, inputs))
        self.log_width = nn.Parameter(torch.zeros(n_units))
        self.readout = PerTimestepLinear(torch.zeros(T + 1, n_units + 1, outputs))

    def activations(self, x: Tensor) -> Tensor:
        """[B, inputs] → [B, n_units], positive, rows of sum 1."""
        squared = (x[:, None] - self.centres).square().sum(-1)
        return torch.softmax(-squared / (2 * (2 * self.log_width).exp()), dim=1)

    def forward(self, x: Tensor, t: int | Tensor) -> Tensor:
        """[B, inputs], t → [B, outputs]."""
        return self.readout(self.activations(x), t)


class SigmoidMLP(nn.Module):
    """D.1.2: hidden layers of sigmoid units, shared by all t, then a linear readout per timestep.

    The paper names no initialisation. In ours the first units of each layer copy the input bits, and the readouts turn
    those copies into the forward kernel, which under π is its own reversal: training starts at K = L_null. From the
    usual small weights three sigmoid layers would pass on almost nothing of x.
    """

    def __init__(self, q: BernoulliForward, inputs: int, width: int, n_layers: int, n_shared: int):
        super().__init__()
        fan_ins = [inputs] + [width] * (n_layers - 1)
        self.hidden = nn.ModuleList(copying_layer(fan_in, width, n_copies=inputs) for fan_in in fan_ins)
        # per-timestep weights learn fifty times more slowly than shared ones, since each sees 1/T of the samples
        self.readout = PerTimestepLinear(self.forward_kernel_readout(q, inputs, width), n_shared, scale=0.02)

    def activations(self, x: Tensor) -> Tensor:
        """[B, inputs] → [B, width], between −½ and ½."""
        for layer in self.hidden:
            x = torch.sigmoid(layer(x))
        return x - 0.5

    def forward(self, x: Tensor, t: int | Tensor) -> Tensor:
        """[B, inputs], t → logits [B, inputs]."""
        return self.readout(self.activations(x), t)

    @torch.no_grad()
    def forward_kernel_readout(self, q: BernoulliForward, inputs: int, width: int) -> Tensor:
        """Readouts that make p(x^{t−1}|x^t) the forward kernel: [T+1, width+1, inputs]."""
        t = torch.arange(1, q.T + 1)
        zero, one = (q.transition(torch.full((q.T, 1), bit, dtype=torch.float64), t).logits for bit in (0.0, 1.0))
        low, high = (float(self.activations(torch.full((1, inputs), bit))[0, 0]) for bit in (0.0, 1.0))
        slope = (one - zero) / (high - low)
        readout = torch.zeros(q.T + 1, width + 1, inputs)
        readout[1:, range(inputs), range(inputs)] = slope.to(readout.dtype)
        readout[1:, -1] = (zero - slope * low).to(readout.dtype)
        return readout


COPY_GAIN = 8.0  # weight of a copied bit: sigmoid(8x − 4) is near 0 at x = 0 and near 1 at x = 1


def copying_layer(fan_in: int, width: int, n_copies: int) -> nn.Linear:
    """A linear layer whose first units, after a sigmoid, repeat its first inputs where those are near 0 or 1."""
    layer = nn.Linear(fan_in, width)
    nn.init.xavier_normal_(layer.weight, gain=4)  # the slope of a sigmoid is at most 1/4
    nn.init.zeros_(layer.bias)
    identity_init(layer, n_copies, COPY_GAIN)
    nn.init.constant_(layer.bias[:n_copies], -COPY_GAIN / 2)
    return layer


# Pictures, D.2.1: x is [B, C, H, W]

SOFTPLUS_MEAN, SOFTPLUS_VARIANCE = 0.8060592, 0.2715145  # of log(1 + e^a) for a ~ N(0, 1)


class MultiScaleConv(MultiScaleSum):
    """D.2.1's multi-scale convolution layer: the sum over scales, then a softplus."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] → [B, outputs, H, W]."""
        return softplus(super().forward(x))  # super: the sum over scales


class ConvPathway(nn.Sequential):
    """The convolutional pathway of D.2.1: multi-scale layers in sequence, [B, channels, H, W] → [B, outputs, H, W].

    Each layer is initialised for the mean and variance that the softplus before it gives a normal variable; otherwise
    each would pass on a quarter of the variance.
    """

    def __init__(self, channels: int, outputs: int, n_layers: int, kernel: int, n_scales: int):
        first = MultiScaleConv(channels, outputs, kernel, n_scales)
        rest = (
            MultiScaleConv(outputs, outputs, kernel, n_scales, SOFTPLUS_MEAN, SOFTPLUS_VARIANCE)
            for _ in range(n_layers - 1)
        )
        super().__init__(first, *rest)
        self.outputs = outputs


class DensePathway(nn.Sequential):
    """The dense pathway of D.2.1: tanh layers, [B, channels, size, size] → [B, outputs, size, size].

    The paper names neither widths nor an initialisation. Layers at least as wide as the picture start as the identity
    but for a factor of 1/4, since to remove the noise of a pixel the layers above must see the pixel.
    """

    def __init__(self, channels: int, size: int, width: int, n_layers: int, outputs: int):
        inputs = channels * size**2
        sizes = [inputs] + [width] * n_layers + [outputs * size**2]
        linear = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        super().__init__(nn.Flatten(), *tanh_layers(linear), nn.Unflatten(1, (outputs, size, size)))
        self.outputs = outputs
        if width >= inputs:
            for k, layer in enumerate(linear):
                identity_init(layer, inputs, gain=1 / 4 if k == 0 else 1)  # so small, tanh is nearly linear


class BumpReadout(nn.Module):
    """(62): z_i = Σ_j y_ij g_j(t), y_ij linear in the features of pixel i: h [B, F, H, W] → [B, outputs, H, W].

    Summed in the other order: the weights at t are Σ_j g_j(t) V_j, so that no y_ij is ever stored. All start at zero.
    """

    basis: Tensor

    def __init__(self, T: int, inputs: int, outputs: int, J: int):
        super().__init__()
        self.register_buffer("basis", time_rbf(T, J), persistent=False)
        self.weight = nn.Parameter(torch.zeros(J, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(J, outputs))

    def forward(self, h: Tensor, t: int | Tensor) -> Tensor:
        """Features and a timestep → z^μ and z^Σ, [B, outputs, H, W]."""
        g = self.basis.index_select(0, t) if isinstance(t, Tensor) else self.basis[t].expand(len(h), -1)
        weight = torch.einsum("bj,jof->bof", g, self.weight)
        return torch.einsum("bof,bfhw->bohw", weight, h) + (g @ self.bias)[:, :, None, None]


class PaperImageNetwork(nn.Module):
    """D.2.1, Figure D.1: pathways in parallel, 1×1 tanh layers on both, the readout in t: x, t → [B, 2C, H, W].

    The halves are z^μ and z^Σ of (62), both zero at the start. MNIST has a `DensePathway`, CIFAR-10 both, bark and dead
    leaves a `ConvPathway`, which takes pictures of any size.
    """

    def __init__(
        self, T: int, channels: int, pathways: Sequence[DensePathway | ConvPathway], width: int, n_layers: int, J: int
    ):
        super().__init__()
        self.pathways = nn.ModuleList(pathways)
        sizes = [sum(pathway.outputs for pathway in pathways)] + [width] * n_layers
        self.top = nn.Sequential(*tanh_layers([nn.Conv2d(a, b, 1) for a, b in pairwise(sizes)]))
        self.readout = BumpReadout(T, sizes[-1], 2 * channels, J)

    def forward(self, x: Tensor, t: int | Tensor) -> Tensor:
        """[B, C, H, W], t → z^μ and z^Σ, [B, 2C, H, W]."""
        h = channels_last(torch.cat([pathway(x) for pathway in self.pathways], dim=1))
        return self.readout(self.top(h), t)
