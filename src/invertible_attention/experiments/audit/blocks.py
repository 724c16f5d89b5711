"""The residual blocks inside any module, and what each of them sees when the module is applied."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...residual import Residual

__all__ = ["Block", "exact_branch", "trace_blocks"]


@dataclass(frozen=True)
class Block:
    """A residual block and its input.

    Args:
        name: its path inside the module, or what else to call it.
        module: the block.
        x: what it was given.
    """

    name: str
    module: Residual
    x: Tensor


@torch.no_grad()
def trace_blocks(module: nn.Module, apply: Callable[[], Any]) -> list[Block]:
    """Return every residual block of ``module`` with what it is given while ``apply`` runs.

    Args:
        module: holds the blocks.
        apply: evaluates the module once.
    """
    found: list[Block] = []

    def record(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(block: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(block, Residual)
            found.append(Block(name, block, args[0].detach()))

        return hook

    handles = [
        part.register_forward_pre_hook(record(name))
        for name, part in module.named_modules()
        if isinstance(part, Residual)
    ]
    try:
        apply()
    finally:
        for handle in handles:
            handle.remove()
    return found


def exact_branch(block: Residual) -> nn.Module:
    """Return a copy of the branch that a block's weights define, evaluated in float64.

    Constraints are applied in the block's own precision, as they are when it is used; only the arithmetic of the
    evaluation is more precise.
    """
    branch = copy.deepcopy(block.branch)
    if next(branch.parameters()).dtype == torch.float64 or hasattr(branch, "log_radius"):
        # Attention works in the precision of its input, with factors computed in that of its weights.
        return branch
    for part in branch.modules():
        if parametrize.is_parametrized(part):
            constrained: Any = part.parametrizations
            for name, parametrization in constrained.items():
                weight = getattr(part, name).detach()
                # Not removed: that would change the class, which the copy shares with the original.
                parametrization.original = nn.Parameter(weight.double())
                for index in range(len(parametrization)):
                    parametrization[index] = nn.Identity()
    return branch.double()
