"""Attention as ``torch.compile`` sees it: what it should run and not trace, loops and kernels, is a single operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invertible_attention.attention.functional.form import Form
from invertible_attention.attention.functional.implementations import BY_NAME, Implementation

__all__ = ["compute"]


def compute(
    chosen: Implementation,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    form: Form,
    log_prior: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """Call an implementation, as one operator where a compiler cannot see through it."""
    if torch.compiler.is_compiling() and not chosen.traceable:
        names = (form.combine, form.phi, form.normalization, form.prior, chosen.name)
        return _operator(query, key, value, log_prior, mask, *names)
    return chosen.run(query, key, value, form, log_prior, mask)


# Written out, because torch cannot read the annotations of functions whose arguments are checked at run time.
_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? log_prior, Tensor? mask, "
    "str combine, str phi, str normalization, int prior, str implementation"
)


@torch.library.custom_op("invertible_attention::attend", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
def _operator(
    query: Tensor, key: Tensor, value: Tensor, log_prior: Tensor | None, mask: Tensor | None, *names: Any
) -> Tensor:
    """Compute attention with the named implementation; differentiable once, like all of a compiled graph."""
    *form, implementation = names
    return BY_NAME[implementation].run(query, key, value, Form(*form), log_prior, mask).contiguous()


@_operator.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


@torch.library.custom_op(
    "invertible_attention::attend_backward",
    mutates_args=(),
    schema=f"(Tensor cotangent, {_ARGUMENTS}) -> Tensor[]",
)
def _operator_backward(
    cotangent: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_prior: Tensor | None,
    mask: Tensor | None,
    *names: Any,
) -> list[Tensor]:
    *form, implementation = names

    def result(query: Tensor, key: Tensor, value: Tensor, log_prior: Tensor | None = None) -> Tensor:
        return BY_NAME[implementation].run(query, key, value, Form(*form), log_prior, mask)

    # An operator's body runs below autograd; a functional transform brings its own.
    differentiable = [tensor for tensor in (query, key, value, log_prior) if tensor is not None]
    pull = torch.func.vjp(result, *differentiable)[1]
    return [gradient.contiguous() for gradient in pull(cotangent)]


@_operator_backward.register_fake
def _(cotangent: Tensor, *tensors: Any) -> list[Tensor]:
    differentiable = [tensor for tensor in tensors[:4] if tensor is not None]
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in differentiable]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.names = inputs[5:]


def _backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    *gradients, to_prior = (*_operator_backward(cotangent, *ctx.saved_tensors, *ctx.names), None)[:4]
    return (*gradients, to_prior, *[None] * (1 + len(ctx.names)))


_operator.register_autograd(_backward, setup_context=_setup_context)
