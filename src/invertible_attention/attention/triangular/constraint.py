"""The constraint that makes attention invertible by order: :class:`Triangular`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention.attention.constraints import Constraint
from invertible_attention.attention.triangular.order import check_order
from invertible_attention.attention.triangular.position import check_position
from invertible_attention.solvers.base import check_count, check_number

__all__ = ["Triangular"]


@dataclass(frozen=True)
class Triangular(Constraint):
    r"""Lets a token attend to strictly earlier tokens only: a bijection for every weight and every input.

    .. math:: z_i = x_i + \mu(x_{<i}) \qquad\text{or}\qquad z_i = e^{\alpha(x_{<i})} x_i + \mu(x_{<i})

    with :math:`\mu, \alpha` from a causal transformer: tokens are embedded, shifted by one (a learned start token comes
    first) and attend causally. The Jacobian is triangular in the order, its log-determinant 0 or
    :math:`\sum \alpha`, exactly. There is no Lipschitz bound and none is needed: attention may be as sharp as it likes.

    Args:
        order: In which order tokens see each other: ``"raster"`` (row-major), ``"reverse"`` (the same backwards),
            ``"columns"`` (the last axis slowest), ``"reverse_columns"``, or a permutation: the row-major index of the
            first token, of the second and so on.
        affine: Whether tokens are scaled too.
        width: Features of the embedded tokens; default 4 times the channels.
        depth: Number of transformer blocks.
        feed_forward: Width of the feed-forward part of each block, as a multiple of ``width``; 0 for none.
        position: How tokens know where they are: ``"rotary"`` (queries and keys rotated by learned frequencies, for
            which fused causal kernels serve), ``"relative"`` (a learned bias of the scores per axis and distance),
            or ``"none"``. Default ``"rotary"`` where scores are products, ``"relative"`` for Concatenation.
        max_log_scale: Largest :math:`|\alpha|` of a value.

    Raises:
        ValueError: If an argument is outside its range.

    References:
        Papamakarios et al. 2017 (masked autoregressive flow), Zhai et al. 2024 (TarFlow), Heo et al. 2024 (rotary
        embedding with learned frequencies).

    Example:
        >>> import torch, invertible_attention as ia
        >>> layer = ia.InvertibleAttention(3, "embedded_gaussian", constraint=ia.Triangular(affine=True))
        >>> x = torch.randn(2, 3, 4, 4)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-5)
        True
    """

    order: str | Sequence[int] = "raster"
    affine: bool = False
    width: int | None = None
    depth: int = 1
    feed_forward: float = 2.0
    position: str | None = None
    max_log_scale: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", check_order(self.order))
        if self.width is not None:
            check_count("width", self.width)
        check_count("depth", self.depth)
        check_number("feed_forward", self.feed_forward)
        check_position(self.position)
        if not 0 < self.max_log_scale < float("inf"):
            raise ValueError(f"max_log_scale must be positive and finite, got {self.max_log_scale}")

    def gain(self, log_bound: Float[Tensor, "*batch"]) -> float:
        """One: nothing is scaled down."""
        return 1.0

    def lipschitz_bound(self, log_bound: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Infinity: order makes the layer invertible, not a bound."""
        return torch.full_like(cast(Tensor, log_bound), torch.inf)
