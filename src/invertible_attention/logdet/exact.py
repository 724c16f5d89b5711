"""The exact log-determinant, from the full Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention._differentiation import derivatives_wanted
from invertible_attention.logdet.base import LogDetEstimator
from invertible_attention.logdet.linearization import Linearization, full_precision, promote, unhooked

__all__ = ["Exact"]


@dataclass(frozen=True)
class Exact(LogDetEstimator):
    r"""The log-determinant itself, :math:`\log|\det(I + J)|`, for tests and small data.

    Costs one vector–Jacobian product per dimension :math:`d` of a sample and a factorization in
    :math:`O(d^3)`; memory :math:`O(B d^2)`. Differentiable to any order.

    Args:
        chunk_size: How many rows of the Jacobian are computed at once with ``torch.vmap``. With 1 no
            ``vmap`` is used, which serves branches it does not support.

    Raises:
        ValueError: If ``chunk_size`` is below 1.

    Examples:
        >>> import torch
        >>> x = torch.zeros(2, 3)
        >>> value, logdet = Exact()(lambda x: 0.5 * x, x)
        >>> logdet  # 3 log 1.5
        tensor([1.2164, 1.2164])
    """

    chunk_size: int = 32

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}")

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
        """Return ``g(x)`` and its exact log-determinant. See :class:`LogDetEstimator`.

        ``parameters``, ``lipschitz`` and ``training`` make no difference.
        """
        branch, x, args = promote(branch, x, args)
        attached = derivatives_wanted()
        with full_precision(x), unhooked():
            linear = Linearization(branch, x, args, attached=attached)
            jacobian = self._jacobian(linear, x, differentiable=attached)
            wide = torch.promote_types(jacobian.dtype, torch.float32)
            identity = torch.eye(jacobian.shape[-1], dtype=wide, device=x.device)
            logdet = torch.linalg.slogdet(identity + jacobian.to(wide)).logabsdet
        return (linear.value if attached else linear.value.detach()), logdet

    def _jacobian(
        self, linear: Linearization, x: Tensor, *, differentiable: bool
    ) -> Float[Tensor, "batch dim dim"]:
        """Stack the rows of the Jacobian of each sample; samples are independent: one product serves all."""
        dim = x[0].numel() if x.shape[0] else 0
        basis = torch.eye(dim, dtype=x.dtype, device=x.device)

        def row(unit: Tensor) -> Tensor:
            cotangent = unit.view(1, *x.shape[1:]).expand(x.shape)
            return linear.vjp(cotangent, differentiable=differentiable).flatten(1)

        if self.chunk_size == 1:
            rows = torch.stack([row(unit) for unit in basis])
        else:
            rows = torch.vmap(row, chunk_size=self.chunk_size)(basis)
        return rows.movedim(0, 1)
