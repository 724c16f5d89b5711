"""What every log-determinant estimator is called with, and returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["LogDetEstimator"]


Call = TypeVar("Call", bound=Callable[..., Any])


def _eager(call: Call) -> Call:
    """Return a function that a compiler calls instead of tracing it."""

    @wraps(call)
    def eager(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            from invertible_attention._compiler import eagerly

            return eagerly(call, *args, **kwargs)
        return call(*args, **kwargs)

    return eager  # pyright: ignore[reportReturnType]


class LogDetEstimator(ABC):
    r"""Computes :math:`\log|\det(I + J_g(x))|` per sample, together with :math:`g(x)`.

    Implementers **must**

    - return ``(g(x), logdet)`` with ``logdet: (B,)``, both attached to the autograd graph, so that gradients
      reach ``x``, ``args`` and everything the branch is computed from;
    - return a log-determinant, or an estimate of it, in every mode: never a quantity that only its gradient
      gives a meaning to;
    - weigh every sample by its own upstream gradient;
    - compute in ``float32`` or better, also inside :func:`torch.autocast`.

    Implementers **may** estimate, and then say whether they are biased and under what condition their
    variance is finite.

    Under :func:`torch.compile` an estimator runs eagerly: it differentiates the branch while it computes,
    which a traced graph cannot hold.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in cls.__dict__:
            cls.__call__ = _eager(cls.__call__)  # pyright: ignore[reportAttributeAccessIssue]

    @abstractmethod
    def __call__(
        self,
        branch: Callable[..., Tensor],
        x: Float[Tensor, "batch *event"],
        args: Sequence[Tensor | None] = (),
        *,
        parameters: Sequence[Tensor] = (),
        lipschitz: float | Tensor | None = None,
        training: bool = False,
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
        """Evaluate the branch and the log-determinant of ``x + branch(x, *args)``.

        Args:
            branch: The residual branch ``g``. Samples are independent of each other.
            x: Where to evaluate, ``(B, ...)``.
            args: Further arguments of the branch, first axis ``B``, or ``None``.
            parameters: Tensors the branch captures and whose gradients are wanted. Leaves of the autograd
                graph are found without being named here; name the constrained weights of a bound branch
                to keep a memory-saving backward from walking through the constraint again.
            lipschitz: An upper bound of the branch's Lipschitz constant where one is known.
            training: Whether the caller is in training mode.

        Returns:
            ``g(x)`` and the log-determinant per sample.
        """
