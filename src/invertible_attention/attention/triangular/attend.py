r"""Causal attention of any response: :math:`o_i = \sum_{j \le i} R_{ij} v_j`, rows summing to one.

Softmax attention without a bias goes through the device's fused causal kernel, in O(N) memory, and can be
differentiated to second order: the kernel's own gradient is used for the first derivative, the N×N formula for the
second. Everything else goes through :func:`~invertible_attention.attention.functional.attend`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from invertible_attention.attention.functional import attend
from invertible_attention.attention.functional import reference as pairwise
from invertible_attention.attention.functional.form import Form
from invertible_attention.attention.functional.fused import fold_vmap, padded
from invertible_attention.attention.responses import Response

__all__ = ["attend_causally"]

# Up to here the N×N matrix, whose derivatives every transform of torch.func can nest.
_SMALL_SCORES = 2**17


def attend_causally(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys features"],
    response: Response,
    *,
    bias: Float[Tensor, "*batch heads queries keys"] | None = None,
    implementation: str = "auto",
) -> Float[Tensor, "batch heads queries features"]:
    """Attend to the keys up to each query's own; the queries are those of the last keys.

    Args:
        query: Queries.
        key: Keys, at least as many.
        value: Values.
        response: Says how queries and keys combine.
        bias: Added to the logarithm of the weights.
        implementation: See :func:`~invertible_attention.attention.functional.attend`; ``"flash"`` is the fused causal
            kernel.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    softmax = response.combine == "product" and response.phi == "exp"
    fusable = softmax and bias is None and queries == keys
    large = query.shape[0] * query.shape[1] * queries * keys > _SMALL_SCORES
    if fusable and (implementation == "flash" or (implementation == "auto" and large)):
        return _fused(query, key, value)
    if queries == 1 and bias is None:
        return pairwise.attend(query, key, value, Form(response.combine, response.phi, "row"))
    later = torch.ones(queries, keys, dtype=torch.bool, device=query.device).triu(keys - queries + 1)
    prior = torch.zeros(queries, keys, dtype=query.dtype, device=query.device) if bias is None else bias
    prior = prior.masked_fill(later, -torch.inf)
    if prior.ndim == 4:
        return pairwise.attend(query, key, value, Form(response.combine, response.phi, "row"), prior)
    return attend(
        query,
        key,
        value,
        combine=response.combine,
        phi=response.phi,
        normalization="row",
        log_prior=prior,
        implementation=implementation,
    )


def _fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    compute = _kernel if torch.compiler.is_compiling() else _differentiable
    return compute(*padded(query, key, value))[..., : value.shape[-1]]


def _kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)


def _differentiable(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _Attention.apply(query, key, value)[0]  # pyright: ignore[reportOptionalSubscript]


def _weights(query: Tensor, key: Tensor) -> Tensor:
    scores = query @ key.mT
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def _gradients(query: Tensor, key: Tensor, value: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    """The gradients of ``<upstream, attention>``, written out."""
    weight = _weights(query, key)
    to_weight = upstream @ value.mT
    to_score = weight * (to_weight - (weight * to_weight).sum(-1, keepdim=True))
    return to_score @ key, to_score.mT @ query, weight.mT @ upstream


def _second_gradients(
    query: Tensor, key: Tensor, value: Tensor, upstream: Tensor, *outer: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of ``<outer, _gradients>``, written out: in a backward pass ``torch.func`` may meet dead levels."""
    to_query, to_key, to_value = outer
    weight, to_weight = _weights(query, key), upstream @ value.mT
    mean = (weight * to_weight).sum(-1, keepdim=True)
    to_score = weight * (to_weight - mean)
    by_score = to_query @ key.mT + query @ to_key.mT
    by_mean = (weight * by_score).sum(-1, keepdim=True)
    by_weight = by_score * (to_weight - mean) - by_mean * to_weight + upstream @ to_value.mT
    by_product = weight * (by_score - by_mean)
    change = weight * (by_weight - (weight * by_weight).sum(-1, keepdim=True))
    return (
        to_score @ to_key + change @ key,
        to_score.mT @ to_query + change.mT @ query,
        by_product.mT @ upstream,
        by_product @ value + weight @ to_value,
    )


class _Attention(torch.autograd.Function):
    """The fused kernel; with it, on a CPU, the logarithms of the sums, which its gradient needs."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if query.device.type != "cpu":
            return _kernel(query, key, value), query.new_empty(query.shape[0], 0)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query.contiguous(), key.contiguous(), value.contiguous(), 0.0, True, scale=1.0
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.save_for_forward(*inputs)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_total = ctx.saved_tensors
        if upstream[0] is None:
            return None, None, None
        return _Gradients.apply(query, key, value, upstream[0], out.detach(), log_total)  # pyright: ignore[reportReturnType]

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, None]:
        query, key, value = ctx.saved_tensors[:3]
        to_query, to_key, to_value = (
            torch.zeros_like(like) if tangent is None else tangent
            for tangent, like in zip(tangents, (query, key, value), strict=True)
        )
        weight = _weights(query, key)
        to_score = to_query @ key.mT + query @ to_key.mT
        to_weight = weight * (to_score - (weight * to_score).sum(-1, keepdim=True))
        return to_weight @ value + weight @ to_value, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return fold_vmap(_Attention, info, in_dims, inputs)


class _Gradients(torch.autograd.Function):
    """The kernel's gradients, which depend on its output only as far as that depends on the rest."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, upstream: Tensor, out: Tensor, log_total: Tensor
    ) -> tuple[Tensor, ...]:
        tensors = (query.contiguous(), key.contiguous(), value.contiguous())
        if query.device.type == "cpu":
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                upstream.contiguous(), *tensors, out.contiguous(), log_total, 0.0, True, scale=1.0
            )
        return torch.func.vjp(_kernel, *tensors)[1](upstream)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.save_for_forward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (*_second_gradients(*ctx.saved_tensors, *upstream), None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, ...]:
        return torch.func.jvp(_gradients, ctx.saved_tensors, tangents[:4])[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return fold_vmap(_Gradients, info, in_dims, inputs)
