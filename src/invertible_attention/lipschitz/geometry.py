"""How a convolution is laid out: what of an ``nn.Conv*d`` its norm depends on, and checks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn

__all__ = ["CONVOLUTIONS", "Geometry", "PaddingMode", "check_kernel", "per_axis", "same_pads"]

PaddingMode = Literal["zeros", "circular"]
Pads = tuple[tuple[int, int], ...]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Geometry:
    """Layout of one convolution layer.

    Attributes:
        kernel: Kernel size per axis.
        padding: What the border is filled with.
        pads: Entries added before and after every axis.
        stride: Per axis.
        dilation: Per axis.
        groups: Number of groups.
    """

    kernel: tuple[int, ...]
    padding: PaddingMode
    pads: Pads
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

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
            raise ValueError(f"kernel_size is {kernel}, but the weight of shape {shape}")
        extents = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if module.padding_mode == "circular" and any(sum(p) > e for p, e in zip(pads, extents, strict=True)):
            raise ValueError(f"circular padding {pads} is wider than the kernel's extent {tuple(extents)}")
        used = tuple(module._reversed_padding_repeated_twice)
        if module.padding_mode == "circular" and used != tuple(end for pad in reversed(pads) for end in pad):
            raise ValueError(f"padding is {module.padding}, but {used} is used")
        padding = cast(PaddingMode, module.padding_mode)
        return Geometry(kernel, padding, pads, module.stride, dilation, module.groups)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial size of the output.

        Raises:
            ValueError: If the kernel does not fit into the padded input.
        """
        if len(input_size) != len(self.kernel):
            raise ValueError(f"expected {len(self.kernel)} spatial sizes, got {tuple(input_size)}")
        output = tuple(
            (n + sum(p) - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                input_size, self.pads, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        if min(output) < 1:
            raise ValueError(f"kernel {self.kernel} does not fit into an input of size {tuple(input_size)}")
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


def check_kernel(
    weight: Tensor, padding: str, input_size: Sequence[int] | None, groups: int
) -> tuple[int, ...]:
    """Return the kernel's size per axis after checking what belongs to it.

    Raises:
        ValueError: With the offending value.
    """
    if weight.ndim not in (3, 4, 5) or weight.numel() == 0:
        raise ValueError(f"expected a kernel (out, in, *kernel) of 1 to 3 axes, got {tuple(weight.shape)}")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups must divide {weight.shape[0]} output channels, got {groups}")
    if padding not in ("zeros", "circular"):
        raise ValueError(f"padding must be 'zeros' or 'circular', got {padding!r}")
    kernel = tuple(weight.shape[2:])
    if input_size is not None and (len(input_size) != len(kernel) or min(input_size) < 1):
        raise ValueError(f"input_size must be {len(kernel)} positive integers, got {tuple(input_size)}")
    return kernel
