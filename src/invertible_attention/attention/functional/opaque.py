"""Implementations as single operators, for ``torch.compile``: loops and kernels it should run and not trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invertible_attention.attention.functional.form import Form

__all__ = ["attend", "register"]

Compute = Callable[[Tensor, Tensor, Tensor, Form, Tensor | None, Tensor | None], Tensor]

_IMPLEMENTATIONS: dict[str, Compute] = {}

# Written out, because torch cannot read the annotations of functions whose arguments are checked at run time.
_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? log_prior, Tensor? mask, "
    "str combine, str phi, str normalization, int prior, str implementation"
)


def register(name: str, compute: Compute) -> None:
    """Make an implementation callable by name.

    Args:
        name: its name.
        compute: a function of query, key, value, form, prior and mask.
    """
    _IMPLEMENTATIONS[name] = compute


@torch.library.custom_op("invertible_attention::attend", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_prior: Tensor | None,
    mask: Tensor | None,
    combine: str,
    phi: str,
    normalization: str,
    prior: int,
    implementation: str,
) -> Tensor:
    """Compute attention with the named implementation; differentiable once, like all of a compiled graph."""
    form = Form(combine, phi, normalization, prior)
    return _IMPLEMENTATIONS[implementation](query, key, value, form, log_prior, mask).contiguous()


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


@torch.library.custom_op(
    "invertible_attention::attend_backward",
    mutates_args=(),
    schema=f"(Tensor cotangent, {_ARGUMENTS}) -> Tensor[]",
)
def _attend_backward(
    cotangent: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_prior: Tensor | None,
    mask: Tensor | None,
    combine: str,
    phi: str,
    normalization: str,
    prior: int,
    implementation: str,
) -> list[Tensor]:
    compute, form = _IMPLEMENTATIONS[implementation], Form(combine, phi, normalization, prior)
    differentiable = [query, key, value] if log_prior is None else [query, key, value, log_prior]

    def result(query: Tensor, key: Tensor, value: Tensor, log_prior: Tensor | None = None) -> Tensor:
        return compute(query, key, value, form, log_prior, mask)

    # An operator's body runs below autograd; a functional transform brings its own.
    pull = torch.func.vjp(result, *differentiable)[1]
    return [gradient.contiguous() for gradient in pull(cotangent)]


@_attend_backward.register_fake
def _(
    cotangent: Tensor, query: Tensor, key: Tensor, value: Tensor, log_prior: Tensor | None, *_: Any
) -> list[Tensor]:
    differentiable = [query, key, value] if log_prior is None else [query, key, value, log_prior]
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in differentiable]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.names = inputs[5:]


def _backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _attend_backward(cotangent, *ctx.saved_tensors, *ctx.names)
    to_prior = gradients[3] if len(gradients) == 4 else None
    return (*gradients[:3], to_prior, *[None] * (1 + len(ctx.names)))


attend.register_autograd(_backward, setup_context=_setup_context)
