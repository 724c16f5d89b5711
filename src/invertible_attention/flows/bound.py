"""A flow with all its residual blocks bound: constraints of all blocks are evaluated together, once per pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn

from invertible_attention._differentiation import functional_transforms_active
from invertible_attention._initialize import SetFromData
from invertible_attention._mapped import is_mapped
from invertible_attention.bijection import Bijection
from invertible_attention.lipschitz.bind import Bindable, bind_together, replicate
from invertible_attention.lipschitz.known import has_global_hooks, has_hooks
from invertible_attention.residual import Residual

__all__ = ["bound_blocks"]


def bound_blocks(bijections: Sequence[Bijection]) -> list[Bijection]:
    """Return the bijections with the branches of their blocks bound, see :func:`~.lipschitz.bind.bind`.

    Only blocks and containers of this library are rebuilt, around their branches: any other may keep a state of its
    own, and binds what is inside when it is called. So does a block that has yet to see its first batch, or whose
    branch has ways of its own, and one with hooks, which are called with the module they were registered on. The
    weights of an ensemble, which are mapped over, are bound member by member.
    """
    if torch.compiler.is_compiling() or has_global_hooks():
        return list(bijections)
    blocks = [block for bijection in bijections for block in _blocks(bijection)]
    if functional_transforms_active() and any(is_mapped(block.parameters()) for block in blocks):
        return list(bijections)
    branches = bind_together([block.branch for block in blocks])
    bound = {id(block.branch): branch for block, branch in zip(blocks, branches, strict=True)}
    return [cast(Bijection, _around(bijection, bound)) for bijection in bijections]


def _is_rebuilt(module: nn.Module) -> bool:
    ours = type(module).__module__.startswith(("invertible_attention.", "torch.nn."))
    return ours and isinstance(module, Bijection | nn.ModuleList) and not has_hooks(module)


def _blocks(module: nn.Module) -> list[Residual]:
    if not _is_rebuilt(module):
        return []
    if not isinstance(module, Residual):
        return [block for child in module.children() for block in _blocks(child)]
    branch = module.branch
    own = hasattr(branch, "solve") or getattr(type(branch), "bind", Bindable.bind) is not Bindable.bind
    ready = not isinstance(branch, SetFromData) or branch.is_initialized()
    return [module] if ready and not own else []


def _around(module: nn.Module, bound: Mapping[int, nn.Module]) -> nn.Module:
    """Return the module with the bound branches in place of the branches, itself where there is none."""
    if id(module) in bound or not _is_rebuilt(module):
        return bound.get(id(module), module)
    children = {name: child and _around(child, bound) for name, child in module._modules.items()}
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    return replicate(module, children=children)
