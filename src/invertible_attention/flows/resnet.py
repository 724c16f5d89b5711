"""The multi-scale invertible residual network, with attention at any place."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from invertible_attention.bijection import Bijection
from invertible_attention.flows.actnorm import ActNorm
from invertible_attention.flows.branches import LipschitzConvBranch, LipschitzLinearBranch
from invertible_attention.flows.reshape import Flatten, Split, Squeeze
from invertible_attention.flows.sequential import Sequential
from invertible_attention.logdet import LogDetEstimator
from invertible_attention.residual import Residual
from invertible_attention.solvers import Solver

__all__ = ["InvertibleResNet"]


class InvertibleResNet(Sequential):
    r"""Residual blocks at several resolutions, from ``(B, C, *spatial)`` to a vector ``(B, D)``.

    A scale is a :class:`Squeeze`, then blocks of :class:`ActNorm` and a :class:`Residual` around a
    :class:`LipschitzConvBranch`. Between scales half of the channels are factored out (:class:`Split`).

    Args:
        shape: Shape ``(C, *spatial)`` of a sample, 1 to 3 spatial axes.
        blocks: Number of residual blocks at each scale.
        hidden_channels: Width inside a block.
        coefficient: Upper bound of the norm of each of a block's affine layers.
        activation: ``"elu"`` or ``"lipswish"``.
        kernel_sizes: Kernel size of each convolution of a block.
        initial_squeeze: Whether the first scale begins with a squeeze too.
        factor_out: Whether half of the channels leave after each scale but the last.
        attention: Makes a bijection for a number of channels, for example
            ``lambda channels: InvertibleAttention(channels, "concatenation")``.
        attention_after: Where it goes: pairs of scale and block, counted from 0, after which it is inserted;
            -1 is the last block of a scale. By default once, after the blocks of the first scale (the paper).
        linear_blocks: Number of fully connected blocks on the flattened last scale (Residual Flow: 4).
        linear_hidden: Their width.
        solver: Inverts the residual blocks; default :class:`~invertible_attention.Anderson`.
        logdet: Estimates their log-determinants; default ``RussianRoulette(seed=0)``.

    Raises:
        ValueError: If the shape cannot be halved as often as needed, or an argument is out of range.

    Attributes:
        latent_dim: Dimension ``D``.

    References:
        Behrmann et al. 2019 (i-ResNet); Chen et al. 2019 (Residual Flow); Zha et al. 2021, Section 4.2.
        :mod:`~invertible_attention.flows.presets` has their configurations.

    Examples:
        >>> import torch
        >>> net = InvertibleResNet((3, 16, 16), blocks=(2, 2), hidden_channels=16)
        >>> net(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 768])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        blocks: Sequence[int] = (16, 16, 16),
        hidden_channels: int = 512,
        coefficient: float = 0.9,
        activation: str = "elu",
        kernel_sizes: Sequence[int] = (3, 1, 3),
        initial_squeeze: bool = True,
        factor_out: bool = True,
        attention: Callable[[int], Bijection] | None = None,
        attention_after: Collection[tuple[int, int]] = ((0, -1),),
        linear_blocks: int = 0,
        linear_hidden: int = 128,
        solver: Solver | None = None,
        logdet: LogDetEstimator | None = None,
    ) -> None:
        if not 2 <= len(shape) <= 4 or min(shape) < 1:
            raise ValueError(f"expected a shape (C, *spatial) with 1 to 3 spatial axes, got {tuple(shape)}")
        if not blocks or min(blocks) < 0:
            raise ValueError(f"blocks must be one or more non-negative numbers, got {tuple(blocks)}")
        places = _places(attention_after, blocks) if attention is not None else set()

        def residual(branch: LipschitzConvBranch | LipschitzLinearBranch) -> Residual:
            return Residual(branch, solver=solver, logdet=logdet)

        def scale(index: int, shape: tuple[int, ...]) -> list[Bijection]:
            parts: list[Bijection] = []
            if index > 0 or initial_squeeze:
                parts.append(Squeeze(2))
                shape = _squeezed(shape)
            for block in range(blocks[index]):
                branch = LipschitzConvBranch(
                    shape[0],
                    hidden_channels,
                    shape[1:],
                    coefficient=coefficient,
                    activation=activation,
                    kernel_sizes=kernel_sizes,
                    preactivation=index > 0 or block > 0,
                )
                parts += [ActNorm(shape[0]), residual(branch)]
                if attention is not None and (index, block) in places:
                    parts.append(attention(shape[0]))
            if index == len(blocks) - 1:
                return [*parts, Flatten(shape), *linear(math.prod(shape))]
            if factor_out:
                kept = (shape[0] // 2, *shape[1:])
                return [*parts, Split(shape, Sequential(*scale(index + 1, kept)))]
            return [*parts, *scale(index + 1, shape)]

        def linear(dim: int) -> list[Bijection]:
            parts: list[Bijection] = []
            for _ in range(linear_blocks):
                branch = LipschitzLinearBranch(
                    dim, linear_hidden, coefficient=coefficient, activation=activation, preactivation=True
                )
                parts += [ActNorm(dim), residual(branch)]
            return parts

        super().__init__(*scale(0, tuple(shape)))
        self.latent_dim = math.prod(shape)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    channels, *spatial = shape
    if any(size % 2 for size in spatial):
        raise ValueError(f"cannot halve the spatial axes of {shape}; use fewer scales or another size")
    return (channels * 2 ** len(spatial), *(size // 2 for size in spatial))


def _places(attention_after: Collection[tuple[int, int]], blocks: Sequence[int]) -> set[tuple[int, int]]:
    """Return the places with blocks counted from the front."""
    places = set()
    for scale, block in attention_after:
        if not 0 <= scale < len(blocks) or not -blocks[scale] <= block < blocks[scale]:
            raise ValueError(f"attention_after names block {(scale, block)}, but there are {tuple(blocks)}")
        places.add((scale, block % blocks[scale]))
    return places
