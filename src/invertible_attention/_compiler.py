"""What a compiler must not trace.

To be imported only where one traces: it imports the compiler, which takes as long as importing torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["constant", "eagerly"]

P = ParamSpec("P")
Result = TypeVar("Result")


@torch.compiler.assume_constant_result
def constant(function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """Return what a function returns now, as a constant of the compiled program."""
    return function(*args, **kwargs)


@torch.compiler.disable(reason="it differentiates what it computes")
def eagerly(function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """Call a function apart from the compiled program."""
    return function(*args, **kwargs)
