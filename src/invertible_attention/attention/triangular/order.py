"""Token orders: how a batch of images becomes a batch of sequences, and back."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invertible_attention._mask import flat_mask

__all__ = ["ORDERS", "Layout", "check_order", "permutation"]

ORDERS = ("raster", "reverse", "columns", "reverse_columns")

Order = str | tuple[int, ...]


def check_order(order: str | Sequence[int]) -> Order:
    """Return an order as one of :data:`ORDERS` or a tuple.

    Raises:
        TypeError: If an index is no integer.
        ValueError: If it is neither a known name nor a permutation.
    """
    if isinstance(order, str):
        if order not in ORDERS:
            raise ValueError(f"order must be a permutation or one of {', '.join(ORDERS)}, got {order!r}")
        return order
    indices = tuple(operator.index(index) for index in order)
    if sorted(indices) != list(range(len(indices))) or not indices:
        raise ValueError(f"order must be a permutation of 0 … {len(indices) - 1}, got {indices}")
    return indices


def permutation(
    order: Order, spatial: Sequence[int], device: torch.device | None = None
) -> Int[Tensor, " tokens"]:
    """Return the row-major index of the first token, of the second and so on.

    Raises:
        ValueError: If a permutation is for another number of tokens.
    """
    size = torch.Size(spatial).numel()
    if not isinstance(order, str):
        if len(order) != size:
            raise ValueError(f"order is for {len(order)} tokens, got {size}: {tuple(spatial)}")
        return torch.tensor(order, device=device)
    index = torch.arange(size, device=device)
    if order.endswith("columns"):
        grid = index.view(*spatial)
        index = grid.permute(*range(grid.ndim - 1, -1, -1)).flatten()
    return index.flip(0) if order.startswith("reverse") else index


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch of images are in its sequences.

    Tokens that are not valid come last: no token before them sees them, and those that are valid are neighbors
    as if there were nothing between them.

    Args:
        spatial: Size of the images.
        index: Row-major index of the first token, of the second and so on: the same for all samples, or one row for
            each.
        valid: True where a token (in the sequence) is valid; ``None`` if all are.
    """

    spatial: tuple[int, ...]
    index: Int[Tensor, "*batch tokens"]
    valid: Bool[Tensor, "batch tokens"] | None = None

    @classmethod
    def of(cls, order: Order, x: Float[Tensor, "batch channels *spatial"], mask: Tensor | None) -> Layout:
        """Return the layout of a batch in an order."""
        spatial = tuple(x.shape[2:])
        index = permutation(order, spatial, x.device)
        if mask is None:
            return cls(spatial, index)
        valid = flat_mask(mask, x)[:, index]
        last = torch.sort((~valid).to(torch.uint8), dim=1, stable=True).indices
        return cls(spatial, index[last], valid.gather(1, last))

    def arrange(self, x: Float[Tensor, "batch channels *spatial"]) -> Float[Tensor, "batch tokens channels"]:
        """Return the images as sequences; what is not valid becomes zero."""
        tokens = x.flatten(2).transpose(1, 2)
        if self.index.ndim == 1:
            return tokens[:, self.index]
        assert self.valid is not None
        tokens = tokens.gather(1, self.index[..., None].expand(tokens.shape))
        return tokens.masked_fill(~self.valid[..., None], 0.0)

    def restore(
        self, tokens: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Return the sequences as images; what is not valid becomes zero."""
        back = torch.argsort(self.index, dim=-1)
        if self.valid is None:
            tokens = tokens[:, back]
        else:
            tokens = tokens.masked_fill(~self.valid[..., None], 0.0)
            tokens = tokens.gather(1, back[..., None].expand(tokens.shape))
        return tokens.transpose(1, 2).unflatten(2, self.spatial)

    def coordinates(self) -> Int[Tensor, "*batch tokens axes"]:
        """Return where every token is in its image."""
        axes = torch.unravel_index(self.index, self.spatial)
        return torch.stack(axes, -1)
