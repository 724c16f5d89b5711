r"""Position priors: doubly stochastic factors of the attention weights.

The response is multiplied by a prior, :math:`R_{ij} \propto \pi_{ij} e^{\sigma_{ij}}`, whose rows and columns sum
to one. Then :math:`R_{ij} \le M \pi_{ij}`, so row sums stay below :math:`M` and the bounds of
:mod:`invertible_attention.lipschitz.certificate` hold unchanged, with :math:`M` taken over :math:`\sigma` alone: a
head may be as sharp in position as it likes at no cost.

Under a mask, in causal order and with context tokens the rows and columns that are seen no longer sum to one. What
they do sum to is measured at every evaluation and enters the bound, so the certificate holds. The prior is that of the
whole grid: a padded sample sees it wrap around where the grid does, not where the sample ends.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Factors", "PositionPrior", "TorusPrior"]

Factors = tuple[Float[Tensor, "#heads tokens rank"], Float[Tensor, "#heads tokens rank"]]


class PositionPrior(nn.Module, ABC):
    """Base class of position priors. One per layer; it may be learned.

    Attributes:
        heads: Number of heads with their own kernels, 1 or that of the layer; ``None`` where any number will do.
    """

    heads: int | None = None

    @abstractmethod
    def forward(self, spatial: Sequence[int]) -> Float[Tensor, "#heads tokens tokens"]:
        r"""Return :math:`\log \pi_{ij}` for a grid of the given size.

        Rows and columns of :math:`\pi` must sum to one up to rounding, or the certificate does not hold.
        """

    def factors(self, spatial: Sequence[int]) -> Factors | None:
        r"""Return :math:`q', k'` with :math:`\log \pi_{ij} = q'_i \cdot k'_j` up to a constant, if there are any.

        Attention then takes O(N) memory, and fused kernels where the response is exponential. ``None``, unless
        overridden: the whole matrix is formed.
        """
        return None

    def log_rounding(self) -> Float[Tensor, "#heads"] | float:
        """Return what the logarithm of a bound is raised by because :meth:`factors` are rounded."""
        return 0.0

    def kernel(self, spatial: Sequence[int]) -> Float[Tensor, "#heads *spatial"] | None:
        r"""Return :math:`\pi` by relative position on the torus, :math:`\pi_{ij} = k(p_i - p_j)`.

        ``None``, as here, for a prior that is no function of it. One that is gives a layer its exact linear part, with
        which log-determinants and inverses take fewer evaluations.
        """
        return None


class TorusPrior(PositionPrior):
    r"""A kernel of relative position on the torus, learned: one wrapped bump per head.

    .. math:: \pi_{ij} \propto \prod_a \exp\!\big(\kappa_a \cos(2\pi (p_{ia} - p_{ja}) / n_a - \theta_a)\big)

    with a concentration :math:`\kappa_a` and an offset :math:`\theta_a` per head and spatial axis (a von Mises
    density). It depends on the difference of positions alone and wraps around, hence rows and columns sum to the
    same. Works for every grid size.

    Args:
        axes: Number of spatial axes.
        heads: Number of heads.
        width: Initial standard deviation of the bump, in tokens for a grid of ``reference`` tokens a side.
        reference: Grid size ``width`` refers to.

    Raises:
        ValueError: If an argument is not positive.
    """

    def __init__(self, axes: int = 2, heads: int = 1, *, width: float = 1.0, reference: int = 16) -> None:
        super().__init__()
        if axes < 1 or heads < 1 or reference < 1 or not width > 0:
            raise ValueError(
                f"axes, heads, width and reference must be positive, got {axes}, {heads}, {width}, {reference}"
            )
        self.heads = heads
        concentration = (reference / (2 * math.pi * width)) ** 2
        self.log_concentration = nn.Parameter(torch.full((heads, axes), math.log(concentration)))
        # Spread around the circle of directions, so that heads look to different sides from the start.
        angle = torch.arange(heads) * 2 * math.pi / heads
        step = 2 * math.pi / reference if heads > 1 else 0.0
        offset = torch.stack([step * torch.cos(angle - axis * math.pi / 2) for axis in range(axes)], dim=-1)
        self.offset = nn.Parameter(offset)

    def forward(self, spatial: Sequence[int]) -> Float[Tensor, "heads tokens tokens"]:
        """Return the logarithm of the prior; raises :class:`ValueError` for another number of axes."""
        log_prior = self.offset.new_zeros(len(self.offset), 1, 1)
        for kernel in self._log_kernels(spatial):
            # Every row is the same numbers in another order, so that columns sum to what rows do, exactly.
            size, n = kernel.shape[-1], log_prior.shape[-1]
            position = torch.arange(size, device=kernel.device)
            rows = kernel[:, (position[:, None] - position) % size]
            log_prior = log_prior[:, :, None, :, None] + rows[:, None, :, None, :]
            log_prior = log_prior.reshape(len(kernel), n * size, n * size)
        return log_prior

    def kernel(self, spatial: Sequence[int]) -> Float[Tensor, "heads *spatial"]:
        """Return the prior by relative position; raises :class:`ValueError` for another number of axes."""
        log_kernel = self.offset.new_zeros(len(self.offset))
        for kernel in self._log_kernels(spatial):
            log_kernel = log_kernel[..., None] + kernel.view(len(kernel), *[1] * (log_kernel.ndim - 1), -1)
        return log_kernel.exp()

    def _log_kernels(self, spatial: Sequence[int]) -> list[Float[Tensor, "heads size"]]:
        """Return the logarithm of the factor of each axis, by relative position along it."""
        offset, concentration = self._wide(spatial)
        kernels = []
        for axis, size in enumerate(spatial):
            angle = 2 * math.pi * torch.arange(size, dtype=offset.dtype, device=offset.device) / size
            kernel = concentration[:, axis, None] * torch.cos(angle - offset[:, axis, None])
            kernels.append(kernel.log_softmax(-1))
        return kernels

    def factors(self, spatial: Sequence[int]) -> Factors:
        r"""Return a cosine and a sine per axis: :math:`\cos(a - b - \theta)` is an inner product of two such pairs."""
        offset, concentration = self._wide(spatial)
        grid = torch.meshgrid(
            *(2 * math.pi * torch.arange(n, dtype=offset.dtype, device=offset.device) / n for n in spatial),
            indexing="ij",
        )
        angle = torch.stack(grid, -1).flatten(0, -2)
        moved = angle - offset[:, None]
        query = torch.cat((torch.cos(moved), torch.sin(moved)), -1) * concentration.repeat(1, 2)[:, None]
        return query, torch.cat((torch.cos(angle), torch.sin(angle)), -1)[None]

    def log_rounding(self) -> Float[Tensor, " heads"]:
        r"""Return :math:`4 (2 a + 4) \varepsilon \sum_a \kappa_a`.

        A weight is off by a few roundings :math:`\varepsilon` of a sum of :math:`2 a` terms of size :math:`\kappa_a`,
        and a sum of weights, normalized by another such sum, by twice that.
        """
        _, concentration = self._wide()
        roundings = 4 * (2 * concentration.shape[1] + 4)
        return roundings * torch.finfo(concentration.dtype).eps * concentration.sum(1)

    def _wide(self, spatial: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return offsets and concentrations, wide enough, for a grid with as many axes as there are."""
        axes = self.offset.shape[1]
        if spatial is not None and len(spatial) != axes:
            raise ValueError(
                f"TorusPrior(axes={axes}) expects {axes} spatial axes, got {len(spatial)}: {tuple(spatial)}; use "
                f"TorusPrior(axes={len(spatial)}), or a view (C, *spatial) with {axes} spatial axes"
            )
        # In half precision rows and columns would sum to one only up to a percent, and the certificate not hold.
        dtype = torch.promote_types(self.offset.dtype, torch.float32)
        return self.offset.to(dtype), self.log_concentration.to(dtype).exp()
