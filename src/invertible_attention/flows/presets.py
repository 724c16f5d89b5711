"""The configurations of the papers, at any size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from invertible_attention.bijection import Bijection
from invertible_attention.flows.base import DiagonalGaussian
from invertible_attention.flows.data import Dequantize, Logit
from invertible_attention.flows.flow import Flow
from invertible_attention.flows.resnet import InvertibleResNet
from invertible_attention.flows.sequential import Sequential
from invertible_attention.logdet import LogDetEstimator, RussianRoulette
from invertible_attention.solvers import Solver

__all__ = ["i_resnet", "residual_flow"]


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
        logdet: Default ``RussianRoulette(tail="poisson")``, as there: two exact terms and a Poisson tail of
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
        logdet=RussianRoulette(tail="poisson") if logdet is None else logdet,
    )
    transform = Sequential(Dequantize(levels), Logit(alpha), net)
    return Flow(transform, DiagonalGaussian(net.latent_dim, learned=False))
