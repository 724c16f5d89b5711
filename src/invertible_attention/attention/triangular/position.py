r"""Positions in causal attention: rotary embedding of queries and keys, or a bias of the scores.

Tokens have coordinates ``(row, column, …)`` in up to three axes, and a fourth number that is 1 for them and 0 for
tokens of a context, which are nowhere.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["AXES", "Position", "RelativeBias", "Rotary", "check_position", "make_position", "widen"]

AXES = 3
_REACH = 16
_SLOWEST = 100.0

Coordinates = Int[Tensor, "*batch tokens 4"]


class Position(nn.Module):
    """Base class of position encodings; by itself none: tokens are a sequence, and only their order is known."""

    def rotate(
        self, features: Float[Tensor, "batch heads tokens dim"], at: Coordinates
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """Return queries or keys, rotated by the coordinates of their tokens."""
        return features

    def bias(self, query_at: Coordinates, key_at: Coordinates) -> Float[Tensor, "*b h q k"] | None:
        """Return what is added to the logarithm of each weight, or ``None``."""
        return None


class Rotary(Position):
    r"""Rotary embedding with learned frequencies: a pair of features is rotated by :math:`\omega \cdot p`.

    The product of a query and a key then depends on the difference of their positions. The frequencies of a head
    point to different directions, so one, two or three axes are served by the same parameter.

    Args:
        heads: Number of heads.
        features: Features of a head's queries.

    Raises:
        ValueError: If there are fewer than two features.
    """

    def __init__(self, heads: int, features: int) -> None:
        super().__init__()
        pairs = features // 2
        if pairs < 1:
            raise ValueError(f"position='rotary' rotates pairs of features, got {features} for each head")
        speed = _SLOWEST ** (-torch.arange(pairs) / pairs)
        angle = math.pi * (torch.arange(pairs) * 0.5 + torch.arange(heads)[:, None] / max(heads, 1) * 0.5)
        direction = torch.stack([angle.cos(), angle.sin(), (angle + math.pi / 4).cos()], 1)
        self.frequency = nn.Parameter(speed * direction)

    def rotate(self, features: Tensor, at: Coordinates) -> Tensor:
        """Rotate the pairs (f, f + pairs) of features."""
        pairs = self.frequency.shape[-1]
        place = at[..., :AXES].to(features.dtype)
        angle = torch.einsum("...na,haf->...hnf", place, self.frequency.to(features.dtype))
        cos, sin = angle.cos(), angle.sin()
        first, second, rest = features.split([pairs, pairs, features.shape[-1] - 2 * pairs], -1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], -1)


class RelativeBias(Position):
    """A learned bias per head, axis and signed distance, added to the logarithm of the weights.

    Args:
        heads: Number of heads.
        reach: Distances beyond it count as it.
    """

    def __init__(self, heads: int, reach: int = _REACH) -> None:
        super().__init__()
        self.reach = reach
        self.table = nn.Parameter(torch.zeros(heads, AXES, 2 * reach + 1))

    def bias(self, query_at: Coordinates, key_at: Coordinates) -> Float[Tensor, "*b h q k"]:
        """Return the sum over axes; zero between tokens of the context and others."""
        distance = query_at[..., :, None, :] - key_at[..., None, :, :]
        index = distance.clamp(-self.reach, self.reach) + self.reach
        total = sum(self.table[:, axis][:, index[..., axis]] for axis in range(AXES))
        assert isinstance(total, Tensor)
        both = query_at[..., :, None, AXES] * key_at[..., None, :, AXES]
        # The head is the first axis so far; a batch of coordinates comes before it.
        return (total * both).movedim(0, -3)


def check_position(kind: str | None) -> None:
    """Raise :class:`ValueError` for an unknown kind."""
    if kind not in (None, "rotary", "relative", "none"):
        raise ValueError(f"position must be 'rotary', 'relative' or 'none', got {kind!r}")


def make_position(kind: str | None, combine: str, heads: int, features: int) -> Position:
    """Build what the argument ``position`` asks for.

    Raises:
        ValueError: If it is unknown, or the scores are sums and queries are to be rotated.
    """
    check_position(kind)
    if kind is None:
        kind = "rotary" if combine == "product" else "relative"
    if kind == "rotary" and combine != "product":
        raise ValueError(
            "position='rotary' rotates queries and keys of inner products; use 'relative' for sums"
        )
    if kind == "rotary":
        return Rotary(heads, features)
    return RelativeBias(heads) if kind == "relative" else Position()


def widen(coordinates: Int[Tensor, "*batch tokens axes"]) -> Coordinates:
    """Return coordinates of tokens with all axes and the mark of a token."""
    missing = coordinates.new_zeros(*coordinates.shape[:-1], AXES - coordinates.shape[-1])
    return torch.cat([coordinates, missing, torch.ones_like(coordinates[..., :1])], -1)
