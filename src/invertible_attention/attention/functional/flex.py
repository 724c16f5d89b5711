r"""Attention with φ of inner products through FlexAttention: one fused kernel compiled for the φ, on a GPU.

The kernel computes softmax attention of modified scores. With the modification :math:`\log \varphi` that is row
normalization; for column normalization a first pass with the roles exchanged gives the logarithms :math:`L_j` of the
columns' sums, and a second one modifies scores to :math:`\log \varphi(t_{ij}) - L_j` and is scaled back by
its own sums.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from invertible_attention.attention.functional import fused
from invertible_attention.attention.functional.form import Form
from invertible_attention.attention.functional.fused import Kernel, PerRow, Rows, RowValues, Tokens, Values
from invertible_attention.attention.functional.phi import log_phi
from invertible_attention.attention.functional.weighting import Weighting

__all__ = ["FlexKernel", "attend", "is_compiled_on"]

# The smallest head dimension of the compiled kernel; it must be a power of two.
_SMALLEST_WIDTH = 16


def is_compiled_on(device: torch.device) -> bool:
    """Tell whether FlexAttention runs fused on a device; elsewhere it materializes the scores."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def attend(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys features"],
    form: Form,
) -> Float[Tensor, "batch heads queries features"]:
    """Multiply the values by the response matrix of a form with ``combine="product"`` and a positive φ.

    Args:
        query: queries.
        key: keys.
        value: values.
        form: normalized by column, row or all.

    Returns:
        One row per query.
    """
    return fused.attend(query, key, value, FlexKernel(form.phi), form.normalization)


class FlexKernel(Kernel):
    """FlexAttention with one φ.

    Args:
        phi: its name.
    """

    def __init__(self, phi: str) -> None:
        self.weighting = Weighting("product", phi)

    def product(self, x: Rows, y: Tokens, w: Values, reference: PerRow | None) -> tuple[RowValues, PerRow]:
        """Run the kernel once."""
        zero = x.new_zeros(y.shape[:-1])
        return _run(self.weighting.phi, x, y, w, zero)

    def adjoint(self, x: Rows, y: Tokens, u: RowValues) -> Values:
        """Run the kernel for the logarithms of the sums, then once more with the roles exchanged."""
        _, log_total = _run(self.weighting.phi, x, y, y, x.new_zeros(y.shape[:-1]))
        out, log_sum = _run(self.weighting.phi, y, x, u, log_total[..., 0])
        return out * torch.exp(log_sum)


def _run(phi: str, query: Tensor, key: Tensor, value: Tensor, log_total: Tensor) -> tuple[Tensor, Tensor]:
    width = _SMALLEST_WIDTH
    while width < max(query.shape[-1], value.shape[-1]):
        width *= 2
    query, key, padded = (F.pad(tensor, (0, width - tensor.shape[-1])) for tensor in (query, key, value))
    if is_compiled_on(query.device):
        out, log_sum = _compiled()(phi, query, key, padded, log_total.contiguous())
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            out, log_sum = _flex(phi, query, key, padded, log_total)
    return out[..., : value.shape[-1]].clone(), log_sum[..., None].clone()


def _flex(phi: str, query: Tensor, key: Tensor, value: Tensor, log_total: Tensor) -> tuple[Tensor, Tensor]:
    from torch.nn.attention import flex_attention as flex

    def modify(score: Tensor, batch: Tensor, head: Tensor, _: Tensor, token: Tensor) -> Tensor:
        return log_phi(score, phi) - log_total[batch, head, token]

    if hasattr(flex, "AuxRequest"):
        wanted: dict[str, Any] = {"return_aux": flex.AuxRequest(lse=True)}
    else:  # torch before 2.9
        wanted = {"return_lse": True}
    result: Any = flex.flex_attention(query, key, value, score_mod=modify, scale=1.0, **wanted)
    out, extra = result
    return out, extra if isinstance(extra, Tensor) else extra.lse


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_flex, fullgraph=True, dynamic=False)
