"""The solver of layers that are invertible by order: one block of tokens after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int
from torch import Tensor

from invertible_attention.solvers.base import Solver, Step, check_count
from invertible_attention.solvers.problem import Problem, Progress

__all__ = ["Blockwise"]


@dataclass(frozen=True)
class Blockwise(Solver):
    r"""Solves blocks of tokens one after another, each by parallel iteration; exact after one evaluation per token.

    Within a block, :math:`x_i \leftarrow (z_i - \mu(x_{<i}))\, e^{-\alpha(x_{<i})}` for all its tokens at once. Each
    evaluation makes at least one more token exact, most many. Keys and values of blocks before are kept. One token per
    block is sequential sampling with a cache; all in one block is fixed-point iteration.

    Only for layers that are invertible by order (:class:`Triangular`).

    Args:
        max_evaluations: Most evaluations per sample; ``None``: as many as there are tokens, which always suffice.
        tolerance: See :class:`~invertible_attention.solvers.Solver`.
        block: Tokens per block. ``None`` chooses what is faster: all tokens for small batches, one for large ones on a
            CPU.

    Raises:
        ValueError: If an argument is out of its range, or a block without an order is to be solved.
    """

    block: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block is not None:
            check_count("block", self.block)

    def start(self, problem: Problem) -> Any:
        """Refuse: without an order there are no tokens before others."""
        raise ValueError(
            "Blockwise solves layers that are invertible by order only: use Anderson or FixedPoint"
        )

    def step(
        self, problem: Problem, state: Any, progress: Progress, budget: Callable[[], Int[Tensor, " active"]]
    ) -> Step:
        """Never called: see :meth:`start`."""
        raise ValueError("Blockwise solves layers that are invertible by order only")
