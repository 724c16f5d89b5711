"""The configurations of the papers, at any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from invertible_attention.attention import InvertibleAttention, Response, Triangular
from invertible_attention.bijection import Bijection
from invertible_attention.flows.actnorm import ActNorm
from invertible_attention.flows.base import DiagonalGaussian
from invertible_attention.flows.data import Dequantize, Logit
from invertible_attention.flows.flow import Flow
from invertible_attention.flows.reshape import Flatten, Squeeze
from invertible_attention.flows.resnet import InvertibleResNet
from invertible_attention.flows.sequential import Sequential
from invertible_attention.logdet import LogDetEstimator, RussianRoulette
from invertible_attention.solvers import Solver

__all__ = ["i_resnet", "residual_flow", "transformer_flow"]


def i_resnet(
    shape: Sequence[int] = (3, 32, 32),
    *,
    levels: int = 256,
    blocks: Sequence[int] = (16, 16, 16),
    hidden_channels: int = 512,
    coefficient: float = 0.9,
    attention: Callable[[int], Bijection] | None = None,
    attention_after: Collection[tuple[int, int]] = ((0, -1),),
    solver: Solver | None = None,
    logdet: LogDetEstimator | None = None,
) -> Flow:
    """Return the i-ResNet density model, with the attention of the paper if ``attention`` is given.

    ELU, norms of at most 0.9 per convolution, squeeze first, half of the channels factored out after the
    first and second scale, uniform dequantization, a learned diagonal Gaussian. The papers' offset of
    -1/2 is left to the first :class:`~invertible_attention.flows.ActNorm`.

    Args:
        shape: Shape of an image.
        levels: Number of values of a pixel.
        blocks: Residual blocks per scale.
        hidden_channels: Width of a block.
        coefficient: Upper bound of each convolution's norm.
        attention: See :class:`InvertibleResNet`.
        attention_after: See :class:`InvertibleResNet`; by default once, before the first split (the paper).
        solver: Inverts the blocks.
        logdet: Default :class:`~invertible_attention.RussianRoulette`. The papers train and report with
            ``PowerSeries(terms=5)``, which is biased.

    References:
        Behrmann et al. 2019, Section 5.4 and Appendix; Zha et al. 2021, Appendix F.2.
    """
    net = InvertibleResNet(
        shape,
        blocks=blocks,
        hidden_channels=hidden_channels,
        coefficient=coefficient,
        attention=attention,
        attention_after=attention_after,
        solver=solver,
        logdet=logdet,
    )
    return Flow(Sequential(Dequantize(levels), net), DiagonalGaussian(net.latent_dim))


def residual_flow(
    shape: Sequence[int] = (3, 32, 32),
    *,
    levels: int = 256,
    blocks: Sequence[int] = (16, 16, 16),
    hidden_channels: int = 512,
    coefficient: float = 0.98,
    linear_blocks: int = 4,
    linear_hidden: int = 128,
    alpha: float = 0.05,
    attention: Callable[[int], Bijection] | None = None,
    attention_after: Collection[tuple[int, int]] = ((0, -1),),
    solver: Solver | None = None,
    logdet: LogDetEstimator | None = None,
) -> Flow:
    """Return the Residual Flow density model, with attention if ``attention`` is given.

    LipSwish, norms of at most 0.98 per layer, logit first, the first scale at full resolution, nothing
    factored out, four fully connected blocks at the end, a standard Gaussian.

    Args:
        shape: Shape of an image.
        levels: Number of values of a pixel.
        blocks: Residual blocks per scale.
        hidden_channels: Width of a convolutional block.
        coefficient: Upper bound of each layer's norm.
        linear_blocks: Number of fully connected blocks.
        linear_hidden: Their width.
        alpha: Margin of the logit.
        attention: See :class:`InvertibleResNet`.
        attention_after: See :class:`InvertibleResNet`.
        solver: Inverts the blocks.
        logdet: Default ``RussianRoulette(tail="poisson", seed=0)``, as there: two exact terms and a Poisson tail of
            mean 2 in training, twenty exact terms in evaluation.

    References:
        Chen et al. 2019, Residual Flows for Invertible Generative Modeling, Section 5 and Appendix E.
    """
    net = InvertibleResNet(
        shape,
        blocks=blocks,
        hidden_channels=hidden_channels,
        coefficient=coefficient,
        activation="lipswish",
        initial_squeeze=False,
        factor_out=False,
        attention=attention,
        attention_after=attention_after,
        linear_blocks=linear_blocks,
        linear_hidden=linear_hidden,
        solver=solver,
        logdet=RussianRoulette(tail="poisson", seed=0) if logdet is None else logdet,
    )
    transform = Sequential(Dequantize(levels), Logit(alpha), net)
    return Flow(transform, DiagonalGaussian(net.latent_dim, learned=False))


def transformer_flow(
    shape: Sequence[int] = (3, 32, 32),
    *,
    levels: int = 256,
    patch: int = 2,
    blocks: int = 8,
    depth: int = 8,
    width: int = 768,
    heads: int = 12,
    feed_forward: float = 4.0,
    response: str | Callable[..., Response] = "embedded_gaussian",
    affine: bool = True,
    solver: Solver | None = None,
) -> Flow:
    """Return a flow of attention alone, invertible by order: blocks of causal transformers in alternating orders.

    The shape of TarFlow: an image is cut into patches, which are the tokens; blocks see them in raster order and its
    reverse in turn. The log-determinant is exact.

    Args:
        shape: Shape of an image.
        levels: Number of values of a pixel.
        patch: Side of a patch.
        blocks: Number of blocks.
        depth: Transformer blocks inside each.
        width: Features of a token inside.
        heads: Heads of the attention; must divide ``width``.
        feed_forward: Width of the feed-forward part relative to ``width``.
        response: How pairs of tokens are scored.
        affine: Whether tokens are scaled too.
        solver: Inverts the blocks; see :class:`~invertible_attention.InvertibleAttention`.

    Raises:
        ValueError: If the patches do not tile the image, or an argument is out of range.

    References:
        Zhai et al. 2024, Normalizing Flows are Capable Generative Models, arXiv 2412.06329.

    Examples:
        >>> import torch
        >>> flow = transformer_flow((1, 8, 8), levels=17, blocks=2, depth=1, width=32, heads=4)
        >>> flow.sample(3).shape
        torch.Size([3, 1, 8, 8])
    """
    channels, *spatial = shape
    if blocks < 1 or patch < 1 or any(size % patch for size in spatial):
        raise ValueError(
            f"blocks and patch must be positive, and patches tile the image: got {blocks} blocks, "
            f"patches of {patch} for shape {tuple(shape)}"
        )
    patched = (channels * patch ** len(spatial), *(size // patch for size in spatial))
    parts: list[Bijection] = [Dequantize(levels), Squeeze(patch), ActNorm(patched[0])]
    for block in range(blocks):
        constraint = Triangular(
            "reverse" if block % 2 else "raster",
            affine,
            width=width,
            depth=depth,
            feed_forward=feed_forward,
        )
        parts.append(
            InvertibleAttention(patched[0], response, constraint=constraint, heads=heads, solver=solver)
        )
    flatten = Flatten(patched)
    return Flow(Sequential(*parts, flatten), DiagonalGaussian(math.prod(patched)))
