"""Blocks of picture networks that are conditioned on a noise embedding: residual blocks, U-Net levels, a U-Net."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from dpm.networks.layers import EMBEDDING_SIZE, MultiScaleSum, check_poolable, film, zero_init


class MultiScaleBlock(nn.Module):
    """A residual block that starts as the identity: D.2.1's sum over scales, FiLM, a 1×1 convolution."""

    def __init__(self, width: int, n_scales: int):
        super().__init__()
        self.multi_scale = MultiScaleSum(width, width, kernel=3, n_scales=n_scales)
        self.film_layer = zero_init(nn.Linear(EMBEDDING_SIZE, 2 * width))
        self.conv_out = zero_init(nn.Conv2d(width, width, 1))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """h [B, width, H, W], embedding [B or 1, EMBEDDING_SIZE] → [B, width, H, W]."""
        return h + self.conv_out(film(self.multi_scale(h), self.film_layer(embedding)))


class ResidualBlock(nn.Module):
    """A residual block that starts as the identity: convolution, FiLM, convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.film_layer = zero_init(nn.Linear(EMBEDDING_SIZE, 2 * width))
        self.conv_out = zero_init(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """h [B, width, H, W], embedding [B or 1, EMBEDDING_SIZE] → [B, width, H, W]."""
        return h + self.conv_out(film(self.conv_in(silu(h)), self.film_layer(embedding)))


class UNetLevel(nn.Module):
    """A level of a U-Net: h plus what `blocks` of another width compute from it at half its size."""

    def __init__(self, width: int, inner_width: int, blocks: nn.Module):
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(width, inner_width, 1), nn.Conv2d(inner_width, width, 1)
        self.blocks = blocks

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """h [B, width, H, W], embedding [B or 1, EMBEDDING_SIZE] → [B, width, H, W]."""
        check_poolable(h, n_scales=2)
        coarse = self.blocks(self.conv_in(avg_pool2d(h, 2)), embedding)
        return h + interpolate(self.conv_out(coarse), scale_factor=2.0)


class ConditionalSequential(nn.ModuleList):
    """Blocks in sequence, each conditioned on the same noise embedding."""

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """h [B, width, H, W], embedding [B or 1, EMBEDDING_SIZE] → [B, width, H, W]."""
        for block in self:
            h = block(h, embedding)
        return h


def u_net(widths: Sequence[int], depths: Sequence[int]) -> ConditionalSequential:
    """The blocks of a U-Net (Ronneberger, Fischer, Brox 2015): at each size `depths[k]` residual blocks of `widths[k]`
    on the way down and as many on the way up. Skip connections are added, not concatenated."""
    width, *inner_widths = widths
    down, up = ([ResidualBlock(width) for _ in range(depths[0])] for _ in range(2))
    if not inner_widths:
        return ConditionalSequential(down)
    level = UNetLevel(width, inner_widths[0], u_net(inner_widths, depths[1:]))
    return ConditionalSequential([*down, level, *up])
