"""Norms of convolutions: upper bounds for guarantees, estimates for everything else."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import wraps
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from invertible_attention._differentiation import functional_transforms_active, is_differentiated
from invertible_attention.lipschitz.geometry import Geometry, per_axis, same_pads
from invertible_attention.lipschitz.gram import exact_arithmetic, gram_bounds, stack_key, working_dtype
from invertible_attention.lipschitz.symbols import Symbols

__all__ = [
    "convolution_norm_estimate",
    "convolution_norm_upper_bound",
    "convolution_power_iteration",
    "norm_upper_bounds",
]

PLAIN = Geometry()
"""Padding with zeros that keeps the size, without stride, dilation or groups."""

_PARTS = tuple(field.name for field in fields(Geometry))

Function = TypeVar("Function", bound=Callable[..., Any])


def _takes_geometry(function: Function) -> Function:
    """Accept the fields of a geometry as separate arguments, as before, for one release."""

    @wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        parts = {name: keywords.pop(name) for name in _PARTS if name in keywords}
        if parts:
            warnings.warn(
                f"{function.__name__} takes geometry=Geometry({', '.join(f'{k}={v!r}' for k, v in parts.items())}); "
                f"{', '.join(parts)} as separate arguments will be removed in the next release",
                DeprecationWarning,
                stacklevel=2,
            )
            keywords["geometry"] = Geometry(**parts)
        return function(*arguments, **keywords)

    return cast(Function, call)


@_takes_geometry
def convolution_norm_upper_bound(
    weight: Float[Tensor, "out_channels in_channels *kernel"],
    input_size: Sequence[int] | None = None,
    *,
    geometry: Geometry = PLAIN,
    grid_size: int | None = None,
    iterations: int = 7,
) -> Float[Tensor, ""]:
    r"""Bound the operator norm of a 1-, 2- or 3-dimensional convolution from above.

    A convolution with circular padding on a grid of :math:`n` points (per axis) is block diagonal in the
    Fourier basis, so with :math:`\hat K(\omega) = \sum_t W_t e^{-i\omega t}` its norm is

    .. math:: \max_j \|\hat K(2\pi j/n)\|_2,

    each of which Gram iteration bounds. Everything else is reduced to this:

    - **Zero padding.** Extend the :math:`n` entries by :math:`k-1` zeros and convolve on the circle of
      :math:`n+k-1` points. No product of the kernel wraps around onto an output that the padded convolution
      has, so its output, for any amount of padding, is a part of the circular output: it is
      :math:`R\,T\,E` with :math:`T` the circular convolution, :math:`E` an isometry and :math:`R` a
      restriction, hence :math:`\|RTE\| \le \|T\|`.
    - **Any size** (``input_size=None``). :math:`\sup_\omega\|\hat K(\omega)\|_2` bounds them all. Let it be
      attained at :math:`\omega^*` with unit vectors :math:`u, v`. In each variable
      :math:`\mathrm{Re}\,e^{i\theta(\omega)} u^*\hat K v`, with the phase that centers the kernel and makes
      the value at :math:`\omega^*` real, is a real trigonometric polynomial of degree :math:`(k-1)/2`; by
      M. Riesz it lies above :math:`\cos((k-1)\delta/2)` times its maximum within :math:`\delta` of it, and
      of :math:`N > k-1` frequencies one has :math:`\delta \le \pi/N`. Axis by axis,

      .. math:: \sup_\omega\|\hat K(\omega)\|_2 \le
          \max_{\omega\in\text{grid}}\|\hat K(\omega)\|_2 \prod_{\text{axes}} \frac{1}{\cos(\pi(k-1)/2N)} .

      Large inputs are bounded in this way too, because the cost then does not depend on their size.
    - **Dilation.** Zero padded: the entries fall into residue classes that do not meet, each convolved
      without dilation. Circular: the frequencies are multiplied by the dilation.
    - **Stride.** The output is a part of that of stride 1. (Not tight.)
    - **Groups.** Block diagonal: the largest group counts.

    The value has no state, is differentiable (where the maximum is attained once), and is inflated by
    what rounding may have cost. Only the frequency that attains the maximum is differentiated, so memory in
    training is that of one matrix.

    Args:
        weight: The kernel as PyTorch stores it, ``in_channels`` per group.
        input_size: Spatial size of the input, ``None`` for a bound that holds for every size.
        geometry: Layout of the convolution. The bound holds for any amount of zeros, for circular padding of at most
            the kernel's extent in all, and for every stride.
        grid_size: Frequencies per axis ``N``; by default ``8 (k − 1)``, which costs at most 1.95 % per axis.
        iterations: Gram products.

    Returns:
        One bound, in ``float32`` or better.

    Raises:
        ValueError: Shapes, sizes or a padding that make no sense, with the offending value.

    References:
        Sedghi et al. 2019 (circular); Delattre et al. 2023, 2024 (Gram iteration, both paddings);
        Pfister and Bresler 2018 (trigonometric polynomials in several variables).

    Example:
        >>> box = torch.ones(1, 1, 3)
        >>> convolution_norm_upper_bound(box, (32,), geometry=Geometry("circular"), grid_size=32)
        tensor(3.0000)
    """
    symbols = Symbols.of(weight[None], input_size, geometry, grid_size)
    return norm_upper_bounds([symbols], iterations=iterations)[0][0]


def norm_upper_bounds(
    operators: Sequence[Tensor | Symbols], *, iterations: int
) -> list[Float[Tensor, "*batch"]]:
    """Bound the norms of stacks of matrices and of convolutions, all in as few operations as there can be.

    Only the frequency at which a convolution's symbol is largest is differentiated. It is found without gradients;
    where none are wanted that is all there is to do.
    """
    weights = [operator.weights if isinstance(operator, Symbols) else operator for operator in operators]
    differentiated = functional_transforms_active() or is_differentiated(weights)
    if not iterations:  # A square is the result of one.
        operators = [replace(o, squares=None) if isinstance(o, Symbols) else o for o in operators]
    small = [o for o in operators if isinstance(o, Symbols) and o.fits]
    plain = [o for o in operators if not isinstance(o, Symbols)]
    # Training and evaluation compute with the same weights: the value of a bound is that without gradients, or the
    # matrix is in a stack of the same matrices, where it is multiplied and rounded alike.
    with exact_arithmetic(weights[0]):
        with torch.no_grad():
            matrices = [(o.every(), o.products(iterations)) for o in small]
            keys = {stack_key(matrix) for matrix, products in matrices if products == iterations}
            scanned = [*small, *(o for o in plain if not differentiated or stack_key(o) in keys)]
            matrices += [(o, iterations) for o in scanned if not isinstance(o, Symbols)]
            found = dict(zip(map(id, scanned), _bounds(matrices), strict=True))
            best = {
                id(o): o.largest(found[id(o)]) if o.fits else o.search(iterations)
                for o in operators
                if isinstance(o, Symbols)
            }
        found |= {key: bound for key, (bound, _) in best.items()}
        if differentiated:
            alone = [o for o in plain if id(o) not in found]
            found |= zip(map(id, alone), gram_bounds(alone, iterations=iterations), strict=True)
            again = [o for o in operators if id(o) not in set(map(id, alone))]
            chosen = [o.at(best[id(o)][1]) if isinstance(o, Symbols) else o for o in again]
            bounds = gram_bounds(chosen, iterations=iterations)
            found |= {id(o): b + (found[id(o)] - b.detach()) for o, b in zip(again, bounds, strict=True)}
        return [
            o.finish(found[id(o)], iterations) if isinstance(o, Symbols) else found[id(o)] for o in operators
        ]


def _bounds(matrices: Sequence[tuple[Tensor, int]]) -> list[Tensor]:
    """Bound matrices after so many Gram products each."""
    found: dict[int, Tensor] = {}
    for iterations in {count for _, count in matrices}:
        own = [index for index, (_, count) in enumerate(matrices) if count == iterations]
        found |= zip(
            own, gram_bounds([matrices[index][0] for index in own], iterations=iterations), strict=True
        )
    return [found[index] for index in range(len(matrices))]


@_takes_geometry
def convolution_power_iteration(
    weight: Float[Tensor, "out_channels in_channels *kernel"],
    input_size: Sequence[int],
    iterations: int,
    *,
    geometry: Geometry = PLAIN,
    vector: Float[Tensor, "1 channels *spatial"] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "1 channels *spatial"]]:
    """Estimate a convolution's operator norm from below, and return the input that attains the estimate.

    Power iteration with the convolution and its transpose, as in i-ResNet.

    Args:
        weight: The kernel as PyTorch stores it.
        input_size: Spatial size of the input.
        iterations: Updates of the vector; zero evaluates the start.
        geometry: Layout of the convolution.
        vector: Where to start, for example from the previous call; ``None`` draws it.
        generator: Source of the random start.

    Returns:
        The estimate, differentiable in the weight with the vector held fixed, and the unit vector, detached.

    Raises:
        ValueError: Shapes, sizes or a padding that make no sense, with the offending value.
    """
    kernel = geometry.check(weight, input_size)
    strides, dilations = (per_axis(v, len(kernel), "") for v in (geometry.stride, geometry.dilation))
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")
    pads = same_pads(kernel, dilations) if geometry.pads is None else geometry.pads
    mode = "constant" if geometry.padding == "zeros" else "circular"
    widths = [width for before_after in reversed(pads) for width in before_after]
    apply = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
    shape = (1, weight.shape[1] * geometry.groups, *input_size)
    with exact_arithmetic(weight):
        weight = weight.to(working_dtype(weight))
        if vector is None:
            vector = torch.randn(shape, dtype=weight.dtype, device=weight.device, generator=generator)
        if vector.shape != shape:
            raise ValueError(f"expected a start vector of shape {shape}, got {tuple(vector.shape)}")

        def convolve(v: Tensor, weight: Tensor) -> Tensor:
            return apply(F.pad(v, widths, mode), weight, None, strides, 0, dilations, geometry.groups)

        v = _unit(vector.detach().to(weight.dtype))
        for _ in range(iterations):
            image, transpose = torch.func.vjp(lambda v: convolve(v, weight.detach()), v)[:2]
            product = _unit(transpose(_unit(image))[0])
            v = torch.where((product == 0).all(), v, product)
        v = v.detach()
        return torch.linalg.vector_norm(convolve(v, weight)), v


@_takes_geometry
def convolution_norm_estimate(
    weight: Float[Tensor, "out_channels in_channels *kernel"],
    input_size: Sequence[int],
    iterations: int = 30,
    *,
    geometry: Geometry = PLAIN,
    vector: Float[Tensor, "1 channels *spatial"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Estimate a convolution's operator norm from below; no guarantee may rest on it.

    Arguments and errors are those of :func:`convolution_power_iteration`, which also returns the vector for
    a warm start.

    Example:
        >>> convolution_norm_estimate(torch.ones(1, 1, 1), (8,))
        tensor(1.)
    """
    return convolution_power_iteration(
        weight, input_size, iterations, geometry=geometry, vector=vector, generator=generator
    )[0]


def _unit(v: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(v)
    return v / torch.where(norm == 0, torch.ones_like(norm), norm)
