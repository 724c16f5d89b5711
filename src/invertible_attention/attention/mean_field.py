r"""The inverse of attention whose weights are all equal: what solvers start from.

With equal weights every token receives the mean token, and the derivative of :math:`g` is
:math:`\Pi \otimes W`, where :math:`\Pi` averages over tokens and :math:`W = \gamma W_L W_F` is a small matrix. Its
inverse is known in closed form,

.. math:: (I + \Pi \otimes W)^{-1} r = r - W (I + W)^{-1} \bar r,

with the mean residual :math:`\bar r`. The spectrum of trained attention is that of :math:`\Pi \otimes W` but for small
terms: the eigenvalues that make an iteration slow, up to one per channel, are gone in one step. What the weights add
by not being equal is left to the solver.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["invert_mean_field"]


def invert_mean_field(
    residual: Float[Tensor, "batch tokens channels"],
    weight: Float[Tensor, "channels channels"],
    gain: Float[Tensor, "*batch"],
    mask: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch tokens channels"]:
    r"""Return :math:`(I + \Pi \otimes \gamma W)^{-1} r` per sample.

    Args:
        residual: :math:`r`.
        weight: :math:`W`.
        gain: :math:`\gamma`, for all samples or one for each.
        mask: True where a token is valid; the mean is over those, and the others are returned as they are.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[1.0], [3.0]]])
        >>> z = x + 0.5 * x.mean(1, keepdim=True)
        >>> invert_mean_field(z, torch.tensor([[1.0]]), torch.tensor(0.5))
        tensor([[[1.],
                 [3.]]])
    """
    if mask is None:
        mean = residual.mean(1)
    else:
        count = mask.sum(1, keepdim=True).clamp_min(1)
        mean = residual.masked_fill(~mask[..., None], 0.0).sum(1) / count
    matrix = gain[..., None, None] * weight
    identity = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
    # Not checked: where nothing is certified the matrix may be singular, and solvers judge every step they take.
    inverse_mean = torch.linalg.solve_ex(identity + matrix, mean[..., None].expand(*mean.shape, 1))[0]
    change = (matrix @ inverse_mean)[..., 0][:, None]
    return residual - (change if mask is None else change * mask[..., None])
