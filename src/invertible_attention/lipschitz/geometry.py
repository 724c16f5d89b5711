"""Geometry of a convolution: padding, stride, dilation and groups, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from torch import Tensor, nn

__all__ = ["CONVOLUTIONS", "Geometry", "PaddingMode", "per_axis", "same_pads"]

PaddingMode = Literal["zeros", "circular"]
Pads = tuple[tuple[int, int], ...]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Geometry:
    """What the norm of a convolution depends on besides its weight.

    Args:
        padding: What the border is filled with, ``"zeros"`` or ``"circular"``.
        stride: Per axis or one for all.
        dilation: Likewise.
        groups: Number of groups.
        pads: Entries added before and after every axis; ``None`` keeps the size at stride 1.

    Example:
        >>> Geometry.of(nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular")).pads
        ((1, 1),)
    """

    padding: PaddingMode = "zeros"
    stride: int | tuple[int, ...] = 1
    dilation: int | tuple[int, ...] = 1
    groups: int = 1
    pads: Pads | None = None

    @staticmethod
    def of(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, weight: Tensor | None = None) -> Geometry:
        """Read the layout of a layer.

        Raises:
            ValueError: For a padding mode whose norm is not covered, a circular padding wider than the kernel's extent
                (entries it repeats would count more than once), and attributes that were changed so that they do not
                belong to each other or to the weight.
        """
        if module.padding_mode not in ("zeros", "circular"):
            raise ValueError(f"padding_mode must be 'zeros' or 'circular', got {module.padding_mode!r}")
        kernel, dilation = module.kernel_size, module.dilation
        if module.padding == "same":
            pads = same_pads(kernel, dilation)
        elif module.padding == "valid":
            pads = tuple((0, 0) for _ in kernel)
        else:
            pads = tuple((p, p) for p in cast(tuple[int, ...], module.padding))
        shape = tuple((module.weight if weight is None else weight).shape)
        if shape[2:] != kernel:
            raise ValueError(f"kernel_size is {kernel}, but the weight has shape {shape}")
        extents = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if module.padding_mode == "circular" and any(sum(p) > e for p, e in zip(pads, extents, strict=True)):
            raise ValueError(f"circular padding {pads} is wider than the kernel's extent {tuple(extents)}")
        used = tuple(module._reversed_padding_repeated_twice)
        if module.padding_mode == "circular" and used != tuple(end for pad in reversed(pads) for end in pad):
            raise ValueError(f"padding is {module.padding}, but the layer pads by {used}")
        padding = cast(PaddingMode, module.padding_mode)
        return Geometry(padding, module.stride, dilation, module.groups, pads)

    @property
    def of_norm(self) -> Geometry:
        """What an upper bound of the norm depends on, which is neither the stride nor the amount of padding."""
        return replace(self, stride=1, pads=None)

    def check(self, weight: Tensor, input_size: Sequence[int] | None) -> tuple[int, ...]:
        """Return the kernel's size per axis after checking what belongs to it.

        Raises:
            ValueError: With the offending value.
        """
        if weight.ndim not in (3, 4, 5) or weight.numel() == 0:
            shape = tuple(weight.shape)
            raise ValueError(f"expected a kernel (out, in, *kernel) of 1 to 3 axes, got {shape}")
        if self.groups < 1 or weight.shape[0] % self.groups:
            raise ValueError(f"groups must divide {weight.shape[0]} output channels, got {self.groups}")
        if self.padding not in ("zeros", "circular"):
            raise ValueError(f"padding must be 'zeros' or 'circular', got {self.padding!r}")
        kernel = tuple(weight.shape[2:])
        per_axis(self.stride, len(kernel), "stride")
        per_axis(self.dilation, len(kernel), "dilation")
        if input_size is not None and (len(input_size) != len(kernel) or min(input_size) < 1):
            raise ValueError(f"input_size must be {len(kernel)} positive integers, got {tuple(input_size)}")
        return kernel

    def output_size(self, input_size: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial size of the output.

        Raises:
            ValueError: If the kernel does not fit into the padded input.
        """
        if len(input_size) != len(kernel):
            raise ValueError(f"expected {len(kernel)} spatial sizes, got {tuple(input_size)}")
        strides, dilations = (per_axis(v, len(kernel), "stride") for v in (self.stride, self.dilation))
        pads = same_pads(kernel, dilations) if self.pads is None else self.pads
        output = tuple(
            (n + sum(p) - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(input_size, pads, dilations, kernel, strides, strict=True)
        )
        if min(output) < 1:
            raise ValueError(f"kernel {tuple(kernel)} does not fit into an input of size {tuple(input_size)}")
        return output


def same_pads(kernel: Sequence[int], dilation: Sequence[int]) -> Pads:
    """Return the padding that keeps the size at stride 1, as ``padding="same"`` distributes it."""
    extents = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((extent // 2, extent - extent // 2) for extent in extents)


def per_axis(value: int | Sequence[int], axes: int, name: str) -> tuple[int, ...]:
    """Return one positive integer per spatial axis.

    Raises:
        ValueError: With the offending value.
    """
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(values) != axes or min(values) < 1:
        raise ValueError(f"{name} must be one positive integer or {axes} of them, got {value}")
    return values
