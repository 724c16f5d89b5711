"""The decoder's building blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ChannelAttentionBlock", "DilatedSum", "resize"]

Map = Float[Tensor, "batch channels height width"]


class DilatedSum(nn.Module):
    r"""Four parallel dilated 3×3 convolutions, summed: :math:`\sum_d W_d *_d x + b_d`.

    No normalization and no activation; weights start from :math:`N(0, 0.01^2)`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        dilations: one convolution each, padded to keep the size.

    References:
        Lv et al.: Simultaneously Localize, Segment and Rank the Camouflaged Objects, CVPR 2021.

    Example:
        >>> DilatedSum(64, 32, (3, 6, 12, 18))(torch.zeros(1, 64, 11, 11)).shape
        torch.Size([1, 32, 11, 11])
    """

    def __init__(self, in_channels: int, out_channels: int, dilations: Sequence[int]):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
            for dilation in dilations
        )
        for branch in self.branches:
            assert isinstance(branch, nn.Conv2d)
            nn.init.normal_(branch.weight, std=0.01)

    def forward(self, x: Map) -> Map:
        """Return the sum of all branches."""
        height, width = x.shape[-2:]
        total: Tensor | None = None
        for branch in self.branches:
            assert isinstance(branch, nn.Conv2d)
            if min(branch.dilation) >= max(height, width):
                # Every tap but the middle one falls on the padding.
                y = nn.functional.conv2d(x, branch.weight[:, :, 1:2, 1:2], branch.bias)
            else:
                y = branch(x)
            total = y if total is None else total + y
        assert total is not None
        return total


class ChannelAttentionBlock(nn.Module):
    r"""Residual block with channel attention (RCAB): :math:`x + s \odot y`, :math:`y = W_2 * \mathrm{ReLU}(W_1 * x)`.

    The weight :math:`s` of every channel is computed from the channels' global means.

    Args:
        channels: of input and output.
        reduction: the attention's bottleneck has ``channels // reduction`` channels.

    References:
        Zhang et al.: Image Super-Resolution Using Very Deep Residual Channel Attention Networks, ECCV 2018.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        if channels < reduction:
            raise ValueError(f"channels must be at least {reduction}, got {channels}")
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Map) -> Map:
        """Return the input plus the weighted body."""
        y = self.body(x)
        return x + y * self.attention(y)


def resize(x: Map, size: Sequence[int] | torch.Size) -> Map:
    """Scale maps bilinearly, corner pixels to corner pixels.

    A target size, not a factor: with a factor, maps do not meet where the image's side is no multiple of 32.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return nn.functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
