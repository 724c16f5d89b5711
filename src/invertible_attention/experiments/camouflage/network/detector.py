"""The network: a backbone's four levels, attention on each, and a decoder from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ....attention import Attention, Certified, InvertibleAttention, Relaxed
from ..models import Model
from .backbones import Backbone
from .layers import ChannelAttentionBlock, DilatedSum, resize

__all__ = ["Detector", "make_attention"]

WIDTH = 32
REDUCE = (3, 6, 12, 18)
PREDICT = (6, 12, 18, 24)
LEVELS = (1, 2, 3, 4)


def make_attention(model: Model, channels: int, *, coefficient: float = 0.9, heads: int = 1) -> nn.Module:
    """Return the attention of a row of Table 4; the identity for Base.

    Args:
        model: the row.
        channels: of the maps it works on.
        coefficient: Lipschitz coefficient of the invertible forms.
        heads: number of heads.
    """
    if model.response is None:
        return nn.Identity()
    if not model.invertible:
        return Attention(channels, response=model.response, heads=heads)
    kind = Certified if model.constraint == "certified" else Relaxed
    return InvertibleAttention(channels, response=model.response, constraint=kind(coefficient), heads=heads)


class Detector(nn.Module):
    r"""Camouflaged object detection in the single-output form the paper builds on.

    Every level :math:`l` of the backbone is reduced to 32 channels by a :class:`DilatedSum` and passed through
    attention. The decoder then goes from the coarsest level to the finest, concatenating what it has with the
    next level, through a :class:`ChannelAttentionBlock` and a :class:`DilatedSum`, and upsampling.

    Args:
        backbone: gives maps at strides 4, 8, 16 and 32.
        model: the row of Table 4: which attention.
        levels: the levels that have attention; ``(1, 2, 3, 4)`` follows the paper's text.
        coefficient: Lipschitz coefficient of invertible attention.
        heads: number of heads.
        frozen: whether the backbone stays as it is, also its batch statistics in training.

    Raises:
        ValueError: for levels other than 1 to 4.

    References:
        Zha et al., 2021, Section 4.3 and Appendix F.3; Lv et al., CVPR 2021.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: Model,
        *,
        levels: Sequence[int] = LEVELS,
        coefficient: float = 0.9,
        heads: int = 1,
        frozen: bool = False,
    ):
        super().__init__()
        if not set(levels) <= set(LEVELS):
            raise ValueError(f"levels must be among 1, 2, 3 and 4, got {tuple(levels)}")
        self.backbone = backbone
        self.frozen = frozen
        self.reduce = nn.ModuleList(DilatedSum(channels, WIDTH, REDUCE) for channels in backbone.channels)
        self.refine3, self.fuse3 = ChannelAttentionBlock(2 * WIDTH), DilatedSum(2 * WIDTH, WIDTH, REDUCE)
        self.refine2, self.fuse2 = ChannelAttentionBlock(3 * WIDTH), DilatedSum(3 * WIDTH, WIDTH, REDUCE)
        self.refine1, self.predict = ChannelAttentionBlock(4 * WIDTH), DilatedSum(4 * WIDTH, 1, PREDICT)
        # Last, so that all rows with one seed begin with the same other weights.
        self.attention = nn.ModuleList(
            make_attention(model, WIDTH, coefficient=coefficient, heads=heads)
            if level in levels
            else nn.Identity()
            for level in LEVELS
        )

        if frozen:
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Detector:
        """Set the mode of everything but a frozen backbone."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
        """Return the logit of every pixel being the object's."""
        return self.decode(self.backbone(image), image.shape[-2:])

    def decode(
        self, features: Sequence[Tensor], size: Sequence[int]
    ) -> Float[Tensor, "batch 1 height width"]:
        """Return the logits of images from what the backbone makes of them.

        Args:
            features: the four maps, finest first.
            size: height and width of the images.
        """
        r1, r2, r3, r4 = (
            attention(x).to(x.dtype)
            for attention, x in zip(self.attention, self._reduce(features), strict=True)
        )
        u4 = resize(r4, r3.shape[-2:])
        a = resize(self.fuse3(self.refine3(torch.cat((u4, r3), 1))), r2.shape[-2:])
        u4 = resize(u4, r2.shape[-2:])
        b = resize(self.fuse2(self.refine2(torch.cat((u4, a, r2), 1))), r1.shape[-2:])
        u4, a = resize(u4, r1.shape[-2:]), resize(a, r1.shape[-2:])
        logit = self.predict(self.refine1(torch.cat((u4, a, b, r1), 1)))
        return resize(logit, size)

    def _reduce(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [reduce(x) for reduce, x in zip(self.reduce, features, strict=True)]

    def reduced(self, image: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Return the four reduced maps, the input of the attention, finest first."""
        return self._reduce(self.backbone(image))

    def invertible_attention(self) -> dict[int, InvertibleAttention]:
        """Return the invertible modules by level."""
        return {
            level: cast(InvertibleAttention, module)
            for level, module in zip(LEVELS, self.attention, strict=True)
            if isinstance(module, InvertibleAttention)
        }

    @torch.no_grad()
    def settle(self, features: Sequence[Tensor]) -> None:
        """Set the radius of certified attention again, from what the backbone makes of some images.

        The maps begin close to zero, by the initial weights that reduce them, and grow within a few steps: a radius
        set from the first batch would leave the attention a small part of what it should see.
        """
        modules = self.invertible_attention()
        certified = {level: module for level, module in modules.items() if module.branch.radius is not None}
        if certified:
            maps = self._reduce(features)
            for level, module in certified.items():
                module.initialize(maps[level - 1])

    def parameter_counts(self) -> dict[str, int]:
        """Return how many numbers are trained, in all and by part."""
        parts = {"backbone": self.backbone, "attention": self.attention}
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        total = sum(p.numel() for p in self.parameters())
        return {"total": total, **counts, "decoder": total - sum(counts.values())}
