"""What modules that initialise themselves from their first batch have in common."""

from __future__ import annotations

import torch

__all__ = ["refuse_inside_transform"]


def refuse_inside_transform(what: str) -> None:
    """Raise if a ``torch.func`` transform is active, inside which parameters cannot be set.

    Raises:
        RuntimeError: Naming what would have been set and the remedy.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:  # pyright: ignore[reportAttributeAccessIssue]
        raise RuntimeError(
            f"{what} is set from the first batch, which cannot happen inside a torch.func transform: "
            "call the module once on data, or its initialize(x), before transforming it"
        )
