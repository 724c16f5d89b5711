"""Iterative solves under :func:`torch.func.vmap`, which cannot trace iterations that stop depending on the data.

A mapped axis of samples is folded into their batch; members of an ensemble, whose weights are mapped, are taken one by
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

__all__ = ["is_mapped", "outside_vmap", "plain"]

Result = TypeVar("Result")

_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]


def is_mapped(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a tensor is mapped over."""
    return any(_level(tensor) for tensor in tensors)


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor without its vmap wrappers, with one more leading axis for each level it is mapped at."""
    while level := _level(tensor):
        tensor = _unmapped(tensor, level)
    return _values(tensor)


def outside_vmap(
    function: Callable[..., Result], *tensors: Tensor | None, module: nn.Module | None = None
) -> Result:
    """Call a function of values (no gradients) outside of vmap: mapped axes are folded into the batch.

    Args:
        function: Treats samples independently, and returns a tensor or a dataclass of tensors with one entry per
            sample along the first axis (along the second, in a field called ``trace``).
        *tensors: What it is called with, one entry per sample.
        module: What it computes with, whose weights may be mapped over too.
    """
    state = {} if module is None else {**dict(module.named_parameters()), **dict(module.named_buffers())}
    level = max(_level(tensor) for tensor in (None, *tensors, *state.values()))
    if not level:
        return function(*(None if tensor is None else _values(tensor) for tensor in tensors))
    inputs = [t for t in (*tensors, *state.values()) if _level(t) == level and t is not None]
    size = len(_unmapped(inputs[0], level))

    def member(tensor: Tensor | None, index: int) -> Any:
        return tensor if tensor is None or _level(tensor) != level else _unmapped(tensor, level)[index]

    def fold(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        whole = _unmapped(tensor, level) if _level(tensor) == level else tensor.expand(size, *tensor.shape)
        return whole.reshape(size * tensor.shape[0], *tensor.shape[1:])

    def unfold(name: str, tensor: Tensor) -> Tensor:
        axis = int(name == "trace")
        return _mapped(tensor.unflatten(axis, (size, -1)), axis, level)

    def stack(name: str, *members: Tensor) -> Tensor:
        longest = max(len(tensor) for tensor in members)
        padded = [
            torch.cat([t, t.new_full((longest - len(t), *t.shape[1:]), torch.nan)]) if len(t) < longest else t
            for t in members
        ]
        return _mapped(torch.stack(padded), 0, level)

    if module is None or not any(_level(value) == level for value in state.values()):
        return _combine(unfold, outside_vmap(function, *map(fold, tensors), module=module))
    results = []
    for index in range(size):
        with _reparametrize_module(module, {name: member(value, index) for name, value in state.items()}):
            results.append(outside_vmap(function, *(member(t, index) for t in tensors), module=module))
    return _combine(stack, *results)


def _combine(function: Callable[..., Tensor], *results: Any) -> Any:
    """Apply a function of a name and tensors to the tensors of results, field by field."""
    if not is_dataclass(results[0]):
        return function("", *results)
    values = {f.name: [getattr(result, f.name) for result in results] for f in fields(results[0])}
    changed = {name: function(name, *found) for name, found in values.items() if found[0] is not None}
    return replace(results[0], **changed)  # pyright: ignore[reportArgumentType]


def _level(tensor: Tensor | None) -> int:
    """Return the innermost level a tensor is mapped at, counted from 1; 0 if it is not."""
    if tensor is None:
        return 0
    tensor = _values(tensor)
    if _functorch.is_legacy_batchedtensor(tensor):
        raise RuntimeError(
            "an inverse cannot be mapped over by torch.autograd (vectorize=True, is_grads_batched=True): "
            "use torch.func.jacrev or torch.func.vmap"
        )
    return _functorch.maybe_get_level(tensor) if _functorch.is_batchedtensor(tensor) else 0


def _values(tensor: Tensor) -> Tensor:
    """Return a tensor without what ``torch.func.grad`` wraps around it."""
    while _functorch.is_gradtrackingtensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def _unmapped(tensor: Tensor, level: int) -> Tensor:
    """Return a tensor that is mapped at a level with that axis in front."""
    tensor = _values(tensor)
    return _functorch.get_unwrapped(tensor).movedim(_functorch.maybe_get_bdim(tensor), 0)


def _mapped(tensor: Tensor, axis: int, level: int) -> Tensor:
    """Return a tensor that is mapped over an axis; what wraps levels further in is none of this level."""
    return _functorch._add_batch_dim(_values(tensor), axis, level)
