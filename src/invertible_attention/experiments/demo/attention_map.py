"""Where a pixel attends: one row of the response matrix of a trained block."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from ...attention import AttentionBranch, InvertibleAttention
from ...attention.ball import project_on_ball
from ...attention.functional.form import Form
from ...attention.functional.reference import response_matrix
from ...flows import Sequential
from ..reconstruct.network import block_of
from ..reconstruct.released import ROW_SUM, ReleasedBranch

__all__ = ["attention_row", "attention_weights", "token_of"]

Picture = Float[Tensor, "1 3 height width"]


def token_of(row: int, column: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the 2×2 block of pixels, by row and column of blocks, that a pixel belongs to.

    Args:
        row: of the pixel, from 0 at the top; values outside the picture are brought to its edge.
        column: of the pixel, from 0 at the left.
        size: height and width of the picture.

    Example:
        >>> token_of(5, 3, (8, 8)), token_of(99, -1, (8, 8))
        ((2, 1), (3, 0))
    """
    height, width = size
    return min(max(row, 0), height - 1) // 2, min(max(column, 0), width - 1) // 2


@torch.no_grad()
def attention_weights(network: Sequential, x: Picture) -> Float[Tensor, "tokens tokens"]:
    """Return the response matrix of a one-headed block at a picture: ``R[i, j]`` is what token i takes of token j.

    Args:
        network: squeeze and attention, as :mod:`..reconstruct` builds it.
        x: the picture as the network's numbers.
    """
    branch = block_of(network).branch
    tokens = network[0](x).flatten(2).mT
    if isinstance(branch, ReleasedBranch):
        # The library's ordinary roles: what receives is the query, what sends the key.
        key, query = branch.scored(tokens)
        form = Form(branch.combine, branch.phi, "row")
        return ROW_SUM * response_matrix(query[:, None], key[:, None], form)[0, 0]
    attention = cast(InvertibleAttention, block_of(network)).branch
    assert isinstance(attention, AttentionBranch)
    radius = attention.radius
    seen = tokens if radius is None else project_on_ball(tokens, radius)
    query, key = attention.response(seen, seen)
    form = Form(attention.response.combine, attention.response.phi, attention.normalization)
    return response_matrix(query, key, form)[0, 0]


def attention_row(network: Sequential, x: Picture, row: int, column: int) -> Float[Tensor, "rows columns"]:
    """Return what the token at a pixel takes of every token, times what it would take of each if all were equal.

    1 is an even share; where the weights of a row have no sum, as with other normalizations than by row, an even
    share is the mean of the matrix.

    Args:
        network: see :func:`attention_weights`.
        x: the picture.
        row: of the pixel.
        column: of the pixel.
    """
    weights = attention_weights(network, x)
    size = (int(x.shape[-2]), int(x.shape[-1]))
    i, j = token_of(row, column, size)
    rows, columns = size[0] // 2, size[1] // 2
    return (weights[i * columns + j] / weights.mean()).reshape(rows, columns)
