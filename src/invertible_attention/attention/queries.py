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
    tokens: Float[Tensor, "batch channels tokens"],
    keys: Float[Tensor, "batch channels keys"],
    values: Float[Tensor, "batch channels keys"],
    *,
    weight: Float[Tensor, "heads channels channels"],
    bias: Float[Tensor, "heads channels"] | None,
    normalization: str,
    seen: AttentionMask,
) -> tuple[Float[Tensor, "batch channels rank"], Float[Tensor, "rank channels"]] | None:
    r"""Return two factors of what moving a token adds to what it attends to, with equal weights, as a query only.

    .. math:: \frac{1}{N} \sum_h W_h \sum_j x_j \Big(\frac{\partial \sigma_h(\bar x, x_j)}{\partial \bar x}\Big)^\top

    at the mean token :math:`\bar x`. Where rows sum to one, :math:`x_j` and the slopes are less their means. The rank
    is at most the number of features of all queries.

    Args:
        response: Scores pairs of tokens.
        tokens: As they are seen as queries, on the ball.
        keys: Likewise as keys, with those of a context.
        values: Likewise as values.
        weight: :math:`W_h = W_L W_F` of every head.
        bias: :math:`W_L b_F`.
        normalization: What weights sum to one along.
        seen: Which tokens and keys are valid.

    Returns:
        The factors; ``None`` for a response whose queries are not known to be affine in the tokens.
    """
    matrix, phi = response.query_matrix(), PHI[response.phi]
    if matrix is None or not isinstance(phi, PositivePhi):
        return None
    count, valid = _per_sample(seen.count(), tokens), seen.every_key_mask()
    if seen.mask is not None:
        tokens = tokens.masked_fill(~seen.mask[:, None], 0.0)
    query, key = response((tokens.sum(2, keepdim=True) / count).mT, keys.mT)
    slopes = key
    if (response.combine, response.phi) != ("product", "exp"):
        slope = phi.log_slope(scores(response.combine, key, query))
        slopes = slope * key if response.combine == "product" else slope
    heads, features = slopes.shape[1], slopes.shape[3]
    slopes = slopes.transpose(1, 2).flatten(2)
    if valid is not None:
        slopes = slopes.masked_fill(~valid[..., None], 0.0)
    total, moment = slopes.sum(1, keepdim=True), values @ slopes
    if normalization == "row":
        sums = (values if valid is None else values.masked_fill(~valid[:, None], 0.0)).sum(2, keepdim=True)
        moment = moment - sums * (total / (count * _per_sample(seen.row_mass(), tokens)))
        bias = None
    moment = weight @ moment.unflatten(2, (heads, features)).transpose(1, 2)
    if bias is not None:
        moment = moment + bias[..., None] * total.unflatten(2, (heads, features)).transpose(1, 2)
    return moment.transpose(1, 2).flatten(2) / count, matrix.to(moment.dtype).flatten(0, 1)


def _per_sample(number: Tensor | float, like: Tensor) -> Float[Tensor, "batch_or_one 1 1"]:
    return torch.as_tensor(number, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)
