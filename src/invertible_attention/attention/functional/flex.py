r"""Attention with φ of inner products through FlexAttention: one fused kernel compiled for the φ, on a GPU.

The kernel computes softmax attention of modified scores. With the modification :math:`\log \varphi` that is row
normalization; for column normalization a first pass with the roles exchanged gives the logarithms :math:`L_j` of the
columns' sums, and a second one modifies scores to :math:`\log \varphi(t_{ij}) - L_j` and is scaled back by
its own sums.

One compiled kernel serves every shape. What cannot be compiled is computed strip by strip instead, and said once.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from invertible_attention.attention.functional.form import log_phi
from invertible_attention.attention.functional.fused import Kernel, PerRow, Rows, RowValues, Tokens, Values
from invertible_attention.attention.functional.products import Adjoint, Apply, Weighting
from invertible_attention.attention.functional.strips import map_strips

__all__ = ["FlexKernel", "is_compiled_on"]

# The smallest head dimension of the compiled kernel; it must be a power of two.
_SMALLEST_WIDTH = 16
# Compiled kernels to keep: one for each φ, width and dtype, and for axes of length one.
_KERNELS = 128

# What could not be compiled; tried once per process, because an attempt takes seconds.
_not_compiled: set[tuple[Any, ...]] = set()


def is_compiled_on(device: torch.device) -> bool:
    """Return whether FlexAttention runs fused on a device; elsewhere it materializes the scores."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


class FlexKernel(Kernel):
    """FlexAttention with one φ.

    Args:
        phi: its name.
    """

    def __init__(self, phi: str) -> None:
        self.weighting = Weighting("product", phi)

    def product(self, x: Rows, y: Tokens, w: Values, reference: PerRow | None) -> tuple[RowValues, PerRow]:
        """Run the kernel once."""
        found = _run(self.weighting.phi, x, y, w, x.new_zeros(y.shape[:-1]))
        if found is None:
            out, log_total = map_strips(Apply(self.weighting, log_total=True), (x, None), (y, None, w))
            found = out, log_total.to(out.dtype)
        return found

    def adjoint(self, x: Rows, y: Tokens, u: RowValues) -> Values:
        """Run the kernel for the logarithms of the sums, then once more with the roles exchanged."""
        first = _run(self.weighting.phi, x, y, y, x.new_zeros(y.shape[:-1]))
        second = None if first is None else _run(self.weighting.phi, y, x, u, first[1][..., 0])
        if second is None:
            return map_strips(Adjoint(self.weighting), (x, None, u), (y, None))[0]
        out, log_sum = second
        return out * torch.exp(log_sum)


def _run(
    phi: str, query: Tensor, key: Tensor, value: Tensor, log_total: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return the product and the logarithms of the rows' sums; ``None`` if the kernel cannot be compiled."""
    width = _SMALLEST_WIDTH
    while width < max(query.shape[-1], value.shape[-1]):
        width *= 2
    # Samples and heads as one axis: fewer axes of length one, each of which is compiled for separately.
    q, k, v = (
        F.pad(tensor, (0, width - tensor.shape[-1])).flatten(0, 1)[:, None] for tensor in (query, key, value)
    )
    log_total = log_total.flatten(0, 1)[:, None].contiguous()
    if is_compiled_on(query.device):
        found = _run_compiled(phi, q, k, v, log_total)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            found = _flex(phi, q, k, v, log_total)
    if found is None:
        return None
    out, log_sum = (tensor[:, 0].unflatten(0, query.shape[:2]) for tensor in found)
    return out[..., : value.shape[-1]].clone(), log_sum[..., None].clone()


def _run_compiled(
    phi: str, query: Tensor, key: Tensor, value: Tensor, log_total: Tensor
) -> tuple[Tensor, Tensor] | None:
    kind = (phi, query.device.type, query.dtype, query.shape[-1])
    if kind in _not_compiled:
        return None
    try:
        with torch._dynamo.config.patch(recompile_limit=_KERNELS):
            return _compiled()(phi, query, key, value, log_total)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if not _not_compiled:
            reason = (str(error).strip().splitlines() or [""])[0]
            warnings.warn(
                f"FlexAttention could not be compiled for phi={phi!r}, {query.dtype} and {query.shape[-1]} features "
                f'on {query.device.type}; implementation="blocked" is used instead. '
                f"{type(error).__name__}: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
        _not_compiled.add(kind)
        return None


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
    return torch.compile(_flex, fullgraph=True, dynamic=True)
