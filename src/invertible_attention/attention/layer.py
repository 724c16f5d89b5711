"""The two layers: :class:`InvertibleAttention` and the ordinary :class:`Attention`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from invertible_attention.attention.branch import AttentionBranch
from invertible_attention.attention.constraints import Certified, Constraint, Unconstrained
from invertible_attention.attention.position import PositionPrior
from invertible_attention.attention.responses import Concatenation, DotProduct, Response, name_of
from invertible_attention.attention.triangular.branch import (
    TriangularAttention,
    check_solver,
)
from invertible_attention.attention.triangular.constraint import Triangular
from invertible_attention.bijection import refuse_unused
from invertible_attention.logdet import Exact, LogDetEstimator
from invertible_attention.residual import Residual, require_tensor
from invertible_attention.solvers import Solver

__all__ = ["Attention", "InvertibleAttention"]

Image = Float[Tensor, "batch channels *spatial"]


class InvertibleAttention(Residual):
    r"""Attention over all positions that can be inverted, :math:`f(x) = x + W_L A(x)`.

    .. math:: A(x)_i = \sum_j R_{ij} W_F x_j, \qquad R_{ij} = w_{ij} / Z

    with the response :math:`w_{ij} = e^{\sigma_{ij}}` (paper, Table 1). Under :class:`Certified` the branch is a
    contraction whatever the weights and the input, so the inverse exists and is found to solver tolerance.

    Args:
        channels: Number of channels :math:`C`.
        response: ``"gaussian"``, ``"embedded_gaussian"``, ``"dot_product"`` or ``"concatenation"``, or a factory
            such as ``functools.partial(DotProduct, phi="softplus")``.
        constraint: :class:`Certified` (default, 0.9); :class:`Relaxed`, the paper's own; or :class:`Triangular`, under
            which a token sees strictly earlier tokens only: a bijection without a bound.
        normalization: What the weights sum to one along: ``"column"`` (:math:`\sum_i R_{ij} = 1`, the paper),
            ``"row"`` (:math:`\sum_j R_{ij} = 1`, as in transformers) or ``"all"``. Default ``"column"``;
            ``"row"`` under :class:`Triangular`, where the others would let a token see later ones.
        embedding_channels: Rows of :math:`W_1, W_2` per head; default ``max(1, channels // 4)``.
        heads: Number of heads; must divide ``channels``. A head's :math:`W_F` maps C to C/heads, Gaussian heads
            split the channels. Under :class:`Triangular` heads divide its ``width``, and have ``width // heads``
            embedding channels by default.
        bias: Whether the linear maps have biases; the bound is tighter without.
        solver: Solves for the inverse; default :class:`~invertible_attention.Anderson`, under :class:`Triangular`
            :class:`Blockwise`.
        logdet: Estimates the log-determinant; default ``RussianRoulette(seed=0)``, unbiased. Under
            :class:`Triangular` it is exact, and nothing but :class:`~invertible_attention.Exact` may be given.
        position_prior: Doubly stochastic prior over pairs of positions the response is multiplied by, such as
            :class:`TorusPrior`. It leaves the bound as it is. Under a mask, in causal order or with context tokens
            only part of it is seen; the branch is scaled for what that costs.
        context_channels: Number of features :math:`K` of a context the layer is given at every call; ``None`` for
            no context. The certificate holds for every context.
        context_kind: ``"vector"``: a context ``(B, K)`` moves what is seen as query, key and value, and the output.
            ``"tokens"``: a context ``(B, K, M)`` is attended to, as :math:`M` more keys and values.
            ``"masked_tokens"``: a context ``(B, K + 1, M)`` whose last feature is 1 where a token is valid and 0
            where it is padding, for contexts of unequal length.
        causal: Whether a token attends to itself and those before it only, in row-major order; not with column
            normalization, for which no certificate exists then.
        implementation: How attention is computed, see
            :func:`~invertible_attention.attention.functional.attend`; all give the same result.

    Raises:
        TypeError: If channels or heads are no integers.
        ValueError: If an argument is outside its range.

    References:
        Zha, Zhong, Zhang, Hartley, Zheng: Invertible Attention, 2021, arXiv 2106.09003.

    Example:
        >>> import torch, invertible_attention as ia
        >>> layer = ia.InvertibleAttention(12, response="embedded_gaussian")
        >>> x = torch.randn(2, 12, 16, 16)
        >>> z = layer(x)
        >>> torch.allclose(layer.inverse(z), x, atol=1e-4)
        True
        >>> bool(layer.lipschitz_bound() <= 0.9)
        True
    """

    branch: AttentionBranch | TriangularAttention

    def __init__(
        self,
        channels: int,
        response: str | Callable[..., Response] = "concatenation",
        *,
        constraint: Constraint | None = None,
        normalization: str | None = None,
        embedding_channels: int | None = None,
        heads: int = 1,
        bias: bool = False,
        solver: Solver | None = None,
        logdet: LogDetEstimator | None = None,
        position_prior: PositionPrior | None = None,
        context_channels: int | None = None,
        context_kind: str = "vector",
        causal: bool = False,
        implementation: str = "auto",
    ) -> None:
        if not isinstance(constraint, Constraint | None):
            raise ValueError(f"constraint must be an object such as Certified(0.9), got {constraint!r}")
        shared: dict[str, Any] = {
            "response": response,
            "embedding_channels": embedding_channels,
            "heads": heads,
            "bias": bias,
            "context_channels": context_channels,
            "context_kind": context_kind,
            "implementation": implementation,
        }
        if isinstance(constraint, Triangular):
            _check_triangular(normalization, position_prior, causal, solver, logdet)
            branch = TriangularAttention(channels, constraint, **shared)
        else:
            branch = AttentionBranch(
                channels,
                constraint=Certified() if constraint is None else constraint,
                normalization="column" if normalization is None else normalization,
                position_prior=position_prior,
                causal=causal,
                **shared,
            )
        super().__init__(branch, solver=solver, logdet=logdet)
        self.response = name_of(response)

    def initialize(self, x: Image, *, context: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Set the ball's radius from ``x``, as the first forward in training mode does; see :class:`AttentionBranch`.

        Under :class:`Triangular` there is nothing to set.

        Args:
            x: Tokens.
            context: As in :meth:`forward`; the radius does not depend on it.
            mask: True where a token is valid.
        """
        refuse_unused(self, context=context, mask=mask)
        self.check_input(x)
        if isinstance(self.branch, AttentionBranch):
            self.branch.initialize(x, mask=mask)

    def check_input(self, x: Tensor) -> None:
        """Raise :class:`ValueError` unless ``x`` is a non-empty floating-point ``(B, C, *spatial)``."""
        super().check_input(x)
        check_image(x, self.branch.channels)

    def extra_repr(self) -> str:
        """Arguments that are not visible in the submodules."""
        return _describe(self.branch, self.response) + f", solver={self.solver}, logdet={self.logdet}"


class Attention(nn.Module):
    r"""Ordinary attention, the non-local block :math:`x + W_L A(x)` of Wang et al. (paper, Table 1).

    Gaussian and Embedded Gaussian weights sum to one along rows; Dot-product and Concatenation are divided by
    the number of tokens, without a :math:`\varphi`. No constraint, no inverse.

    Args:
        channels: Number of channels :math:`C`.
        response: As in :class:`InvertibleAttention`.
        normalization: Default ``"row"`` for the Gaussians, ``"count"`` for the other two.
        embedding_channels: As in :class:`InvertibleAttention`.
        heads: As in :class:`InvertibleAttention`.
        bias: Whether the linear maps have biases.
        implementation: As in :class:`InvertibleAttention`.

    Raises:
        TypeError: If channels or heads are no integers.
        ValueError: If an argument is outside its range.

    References:
        Wang, Girshick, Gupta, He: Non-local Neural Networks, 2018, arXiv 1711.07971.

    Example:
        >>> import torch, invertible_attention as ia
        >>> ia.Attention(12, response="dot_product")(torch.randn(2, 12, 8, 8)).shape
        torch.Size([2, 12, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        response: str | Callable[..., Response] = "concatenation",
        *,
        normalization: str | None = None,
        embedding_channels: int | None = None,
        heads: int = 1,
        bias: bool = False,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        self.response = name_of(response)
        signed = {"dot_product": DotProduct, "concatenation": Concatenation}
        if isinstance(response, str) and response in signed:
            response = partial(signed[response], phi="identity")
        if normalization is None:
            normalization = "count" if self.response in signed else "row"
        self.branch = AttentionBranch(
            channels,
            response=response,
            constraint=Unconstrained(),
            normalization=normalization,
            embedding_channels=embedding_channels,
            heads=heads,
            bias=bias,
            implementation=implementation,
        )

    def forward(self, x: Image, *, mask: Tensor | None = None) -> Image:
        """Return ``x + W_L A(x)``, of the shape and dtype of ``x``.

        Args:
            x: Tokens.
            mask: True where a token is valid, ``(B, *spatial)``; others are not seen and returned as they are.

        Raises:
            TypeError: For what is no tensor.
            ValueError: For arguments the layer cannot take.
        """
        check_image(x, self.branch.channels)
        return (x + self.branch(x, None, mask)).to(x.dtype)

    def extra_repr(self) -> str:
        """Arguments that are not visible in the submodules."""
        return _describe(self.branch, self.response)


def check_image(x: Tensor, channels: int) -> None:
    """Raise :class:`ValueError` unless ``x`` is a non-empty floating-point ``(B, channels, *spatial)``."""
    require_tensor(x)
    if not 3 <= x.dim() <= 5:
        raise ValueError(f"expected (B, C, *spatial) with 1, 2 or 3 spatial axes, got shape {tuple(x.shape)}")
    if x.shape[1] != channels:
        raise ValueError(f"expected {channels} channels, got {x.shape[1]} in shape {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"expected a non-empty batch, got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"expected a floating-point tensor, got {x.dtype}")


def _check_triangular(
    normalization: str | None,
    position_prior: PositionPrior | None,
    causal: bool,
    solver: Solver | None,
    logdet: LogDetEstimator | None,
) -> None:
    if normalization not in (None, "row"):
        raise ValueError(
            f"only normalization='row' keeps to an order, got {normalization!r}: the sums of a column, or of all, "
            "contain later tokens"
        )
    if position_prior is not None:
        raise ValueError(
            f"position_prior is for a certificate; use Triangular(position=...), got {position_prior}"
        )
    if causal:
        raise ValueError("Triangular brings its own order, in which no token sees itself, got causal=True")
    if solver is not None:
        check_solver(solver)
    if not isinstance(logdet, Exact | None):
        raise ValueError(f"the log-determinant under Triangular is exact: nothing to estimate, got {logdet}")


def _describe(branch: AttentionBranch | TriangularAttention, response: str) -> str:
    if isinstance(branch, TriangularAttention):
        return f"{branch.channels}, response={response!r}, constraint={branch.constraint}"
    return (
        f"{branch.channels}, response={response!r}, constraint={branch.constraint}, "
        f"normalization={branch.normalization!r}, heads={branch.heads}"
    )
