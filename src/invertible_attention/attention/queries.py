r"""How equal weights follow their query, to first order: the matrix :math:`K` of :mod:`.mean_field`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention.attention.functional.form import PHI, PositivePhi, scores
from invertible_attention.attention.mask import AttentionMask
from invertible_attention.attention.responses import Response

__all__ = ["query_effect"]


def query_effect(
    response: Response,
    tokens: Float[Tensor, "batch tokens channels"],
    keys: Float[Tensor, "batch keys channels"],
    values: Float[Tensor, "batch keys channels"],
    *,
    weight: Float[Tensor, "heads features channels"],
    bias: Float[Tensor, "heads features"] | None,
    normalization: str,
    seen: AttentionMask,
) -> Float[Tensor, "batch heads*features channels"] | None:
    r"""Return what moving a token adds to what it attends to, with equal weights, as a query only.

    .. math:: \frac{1}{N} \sum_j v_j \Big(\frac{\partial \sigma(\bar x, x_j)}{\partial \bar x}\Big)^\top

    in every head, at the mean token :math:`\bar x`. Where rows sum to one, both factors are less their means.

    Args:
        response: Scores pairs of tokens.
        tokens: As they are seen as queries, on the ball.
        keys: Likewise as keys, with those of a context.
        values: Likewise as values.
        weight: :math:`W_F`.
        bias: :math:`b_F`.
        normalization: What weights sum to one along.
        seen: Which tokens and keys are valid.

    Returns:
        The matrices; ``None`` of a response whose queries are not known to be affine in the tokens.
    """
    matrix, phi = response.query_matrix(), PHI[response.phi]
    if matrix is None or not isinstance(phi, PositivePhi):
        return None
    count, valid = _per_sample(seen.count(), tokens), seen.every_key_mask()
    if seen.mask is not None:
        tokens = tokens.masked_fill(~seen.mask[..., None], 0.0)
    query, key = response(tokens.sum(1, keepdim=True) / count, keys)
    slopes = phi.log_slope(scores(response.combine, key, query))
    slopes = slopes * key if response.combine == "product" else slopes
    if valid is not None:
        slopes = slopes.masked_fill(~valid[:, None, :, None], 0.0)
    total = slopes.sum(2)
    moment = values.mT[:, None] @ slopes
    if normalization == "row":
        sums = (values if valid is None else values.masked_fill(~valid[..., None], 0.0)).sum(1)
        number = count * _per_sample(seen.row_mass(), tokens)
        moment = moment - sums[:, None, :, None] * (total / number)[:, :, None]
        bias = None
    moment = weight @ moment
    if bias is not None:
        moment = moment + bias[..., None] * total[:, :, None]
    return (moment / count[..., None] @ matrix.to(moment.dtype)).flatten(1, 2)


def _per_sample(number: Tensor | float, like: Tensor) -> Float[Tensor, "batch_or_one 1 1"]:
    return torch.as_tensor(number, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)
