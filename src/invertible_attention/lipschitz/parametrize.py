r"""Parametrizations that keep the norm of a weight below a coefficient: :math:`W \min(1, c/\sigma)` (Eq. 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeGuard, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invertible_attention.lipschitz.convolution import (
    convolution_norm_upper_bound,
    convolution_power_iteration,
)
from invertible_attention.lipschitz.geometry import CONVOLUTIONS, Geometry
from invertible_attention.lipschitz.gram import working_dtype
from invertible_attention.lipschitz.norms import power_iteration, spectral_norm_upper_bound

__all__ = [
    "SpectralNormConstraint",
    "SpectralNormEstimate",
    "constrain",
    "constrain_by_estimate",
    "is_constrained",
    "limit_norm",
]

Norm = Callable[[Tensor], Tensor]


class SpectralNormConstraint(nn.Module):
    r"""Keep the norm of a weight at or below a coefficient, always: :math:`W \min(1, c/\sigma(W))`.

    :math:`\sigma` is an upper bound of the norm, so the result's exact norm is at most :math:`c`, also
    straight after an optimizer step and after rounding to the weight's precision. There is no state: one
    object can serve many weights, under :mod:`torch.func`, :func:`torch.compile` and data parallelism.

    By default the weight is a matrix or a batch of them, each constrained by itself. The weight of a
    convolution is neither: use :func:`constrain`, which chooses the norm.

    Args:
        coefficient: Largest norm :math:`c`.
        norm: Differentiable upper bound of the operator norm, given the weight: one number for the whole
            weight, or one per matrix.

    Raises:
        ValueError: If ``coefficient`` is not positive and finite.

    Shape:
        - Weight: ``(*batch, m, n)``, or whatever ``norm`` takes.
        - Output: the same.

    Example:
        >>> bound = SpectralNormConstraint(0.5)
        >>> bound(torch.diag(torch.tensor([2.0, 1.0])))
        tensor([[0.5000, 0.0000],
                [0.0000, 0.2500]])
    """

    def __init__(self, coefficient: float, norm: Norm = spectral_norm_upper_bound) -> None:
        super().__init__()
        self.coefficient = _check_coefficient(coefficient)
        self.norm = norm

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the constrained weight."""
        return limit_norm(weight, self.norm(weight), self.coefficient)

    def right_inverse(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the weight to store when a user assigns one: the assigned one, constrained when read."""
        return weight

    def extra_repr(self) -> str:
        """Show the coefficient."""
        return f"coefficient={self.coefficient}"


class SpectralNormEstimate(nn.Module):
    r"""The paper's own constraint: :math:`W \min(1, c/\hat\sigma(W))` with a *lower estimate* of the norm.

    Power iteration never overestimates the norm, so the result's norm can exceed :math:`c`, and does straight
    after an optimizer step. It is kept for comparison; guarantees rest on :class:`SpectralNormConstraint`.

    The vector of the iteration is a buffer. It is updated (warm start) in training mode only, at every
    evaluation of the weight, and therefore not under :mod:`torch.func`.

    Args:
        weight: The weight to be constrained: a matrix, or a kernel if ``geometry`` is given.
        coefficient: Target norm :math:`c`.
        n_power_iterations: Updates per evaluation (the paper: 5).
        geometry: Layout of the convolution.
        input_size: Spatial size of its input; needed with ``geometry``.

    Raises:
        ValueError: If ``coefficient`` is not positive and finite, ``n_power_iterations`` below one,
            ``input_size`` missing, or the weight not a matrix.

    Shape:
        - Weight: as given to the constructor.
        - Output: the same.
    """

    vector: Tensor

    def __init__(
        self,
        weight: Tensor,
        coefficient: float,
        *,
        n_power_iterations: int = 5,
        geometry: Geometry | None = None,
        input_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.coefficient = _check_coefficient(coefficient)
        if n_power_iterations < 1:
            raise ValueError(f"n_power_iterations must be at least 1, got {n_power_iterations}")
        self.n_power_iterations = n_power_iterations
        self.geometry = geometry
        if geometry is not None and input_size is None:
            raise ValueError("the power iteration of a convolution needs input_size, got None")
        if geometry is None and weight.ndim != 2:
            raise ValueError(f"expected a matrix, got a weight of shape {tuple(weight.shape)}")
        self.input_size = None if input_size is None else tuple(input_size)
        self.register_buffer("vector", self._iterate(weight.detach(), n_power_iterations + 15, None)[1])

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the weight divided by its estimated norm where that exceeds the coefficient."""
        iterations = self.n_power_iterations if self.training else 0
        norm, vector = self._iterate(weight, iterations, self.vector)
        if self.training:
            with torch.no_grad():
                self.vector.copy_(vector)
        return limit_norm(weight, norm, self.coefficient)

    def right_inverse(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the weight to store when a user assigns one."""
        return weight

    def extra_repr(self) -> str:
        """Show the coefficient and the number of updates."""
        return f"coefficient={self.coefficient}, n_power_iterations={self.n_power_iterations}"

    def _iterate(self, weight: Tensor, iterations: int, vector: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.geometry is None or self.input_size is None:
            return power_iteration(weight, iterations, vector=vector)
        return convolution_power_iteration(
            weight, self.input_size, iterations, geometry=self.geometry, vector=vector
        )


def constrain(
    module: nn.Module,
    coefficient: float,
    *,
    input_size: Sequence[int] | None = None,
    name: str = "weight",
    iterations: int = 7,
    grid_size: int | None = None,
) -> nn.Module:
    """Keep the operator norm of a linear or convolution layer at or below a coefficient, always.

    Registers a :class:`SpectralNormConstraint` with the norm that fits the layer: that of the matrix, or that of
    the convolution with its padding, dilation and groups
    (:func:`~invertible_attention.lipschitz.convolution_norm_upper_bound`).

    Args:
        module: ``nn.Linear``, ``nn.Conv1d/2d/3d``, or any module whose parameter ``name`` is a matrix.
        coefficient: Largest norm.
        input_size: Spatial size of a convolution's input; ``None`` keeps the norm for every size.
        name: Parameter to constrain.
        iterations: Gram products.
        grid_size: Frequencies per axis for a convolution.

    Returns:
        The module, changed in place.

    Raises:
        ValueError: If the coefficient is not positive and finite, or no norm is known for the parameter.

    Example:
        >>> layer = constrain(nn.Conv2d(3, 8, 3, padding=1), 0.9, input_size=(32, 32))
        >>> bool(convolution_norm_upper_bound(layer.weight, (32, 32)) <= 0.9001)
        True
    """
    if _is_kernel(module, name):
        norm: Norm = partial(
            convolution_norm_upper_bound,
            input_size=None if input_size is None else tuple(input_size),
            geometry=Geometry.of(module).of_norm,
            grid_size=grid_size,
            iterations=iterations,
        )
        norm(getattr(module, name).detach())  # sizes that make no sense are refused here, not in training
    else:
        _check_matrix(module, name)
        norm = partial(spectral_norm_upper_bound, iterations=iterations)
    parametrize.register_parametrization(module, name, SpectralNormConstraint(coefficient, norm))
    return module


def is_constrained(module: nn.Module, coefficient: float) -> bool:
    """Whether :func:`constrain` keeps the weight of a layer, as it is now, at or below a coefficient.

    Not if it is parametrized in further ways, or if the layer was given another layout.
    """
    if not parametrize.is_parametrized(module, "weight"):
        return False
    bound, *others = cast(Any, module).parametrizations.weight
    if others or type(bound) is not SpectralNormConstraint or not isinstance(bound.norm, partial):
        return False
    function, settings = bound.norm.func, bound.norm.keywords
    if _is_kernel(module, "weight"):
        # The shape is that of what is constrained; the weight itself would be computed for it.
        geometry = Geometry.of(module, cast(Any, module).parametrizations.weight.original)
        fits = function is convolution_norm_upper_bound and settings.get("geometry") == geometry.of_norm
    else:
        fits = function is spectral_norm_upper_bound
    return fits and bound.coefficient <= coefficient


def constrain_by_estimate(
    module: nn.Module,
    coefficient: float,
    *,
    input_size: Sequence[int] | None = None,
    name: str = "weight",
    n_power_iterations: int = 5,
) -> nn.Module:
    """Push a layer's norm towards a coefficient as the paper does; no guarantee may rest on it.

    Registers a :class:`SpectralNormEstimate`; see there for what it does not promise.

    Args:
        module: As in :func:`constrain`.
        coefficient: Target norm.
        input_size: Spatial size of a convolution's input, needed for convolutions.
        name: Parameter to constrain.
        n_power_iterations: Updates per evaluation.

    Returns:
        The module, changed in place.

    Raises:
        ValueError: As :class:`SpectralNormEstimate` and :func:`constrain`.
    """
    kernel = _is_kernel(module, name)
    if not kernel:
        _check_matrix(module, name)
    estimate = SpectralNormEstimate(
        getattr(module, name),
        coefficient,
        n_power_iterations=n_power_iterations,
        geometry=Geometry.of(module) if kernel else None,
        input_size=input_size if kernel else None,
    )
    parametrize.register_parametrization(module, name, estimate)
    return module


def _is_kernel(module: nn.Module, name: str) -> TypeGuard[nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    return isinstance(module, CONVOLUTIONS) and name == "weight"


def _check_matrix(module: nn.Module, name: str) -> None:
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"{type(module).__name__} has no parameter {name!r}")
    if weight.ndim != 2:
        shape = tuple(weight.shape)
        raise ValueError(f"no norm is known for {type(module).__name__}.{name} of shape {shape}")


def _check_coefficient(coefficient: float) -> float:
    if not 0 < coefficient < math.inf:
        raise ValueError(f"coefficient must be positive and finite, got {coefficient}")
    return float(coefficient)


def limit_norm(
    weight: Float[Tensor, "*shape"], norm: Float[Tensor, "*batch"], coefficient: float
) -> Float[Tensor, "*shape"]:
    """Return ``weight · min(1, coefficient / norm)``, with a norm that makes up for rounding the product.

    Args:
        weight: A matrix, a kernel, or a batch of either.
        norm: An upper bound for each of the batch.
        coefficient: Largest norm.
    """
    working = weight.to(working_dtype(weight))
    # An operator whose entries are each wrong by a factor 1 ± unit is wrong by at most √taps of its Frobenius norm, and
    # that is at most √rows of the norm: over the frequencies of a kernel, the mean of those of its symbols.
    taps = math.sqrt(math.prod(weight.shape[norm.ndim + 2 :]))
    spread: float | Tensor = taps * math.sqrt(weight.shape[norm.ndim])
    if working.dtype != weight.dtype:
        # In half precision the two differ by percents of the coefficient.
        frobenius = torch.linalg.vector_norm(working.detach(), dim=tuple(range(norm.ndim, weight.ndim)))
        spread = (taps * frobenius / norm.detach().clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(spread)
    unit = torch.finfo(weight.dtype).eps / 2
    excess = norm * ((1 + 4 * torch.finfo(norm.dtype).eps + unit * spread) / coefficient)
    factor = excess.clamp_min(1.0).reciprocal()
    return (working * factor.reshape(*factor.shape, *(1,) * (weight.ndim - norm.ndim))).to(weight.dtype)
