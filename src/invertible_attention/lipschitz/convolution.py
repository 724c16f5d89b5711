"""How large is the norm of a convolution: upper bounds for guarantees, estimates for everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from invertible_attention._differentiation import functional_transforms_active, is_differentiated
from invertible_attention.lipschitz.geometry import PaddingMode, Pads, check_kernel, per_axis, same_pads
from invertible_attention.lipschitz.gram import (
    exact_arithmetic,
    gram_bounds,
    repeated_twice,
    working_dtype,
)

__all__ = [
    "Symbols",
    "convolution_norm_estimate",
    "convolution_norm_upper_bound",
    "convolution_norm_upper_bounds",
    "convolution_power_iteration",
    "norm_upper_bounds",
]

_CHUNK = 2**21  # entries of the transform held at once: small enough for the cache of a CPU core


def convolution_norm_upper_bound(
    weight: Float[Tensor, "out_channels in_channels *kernel"],
    input_size: Sequence[int] | None = None,
    *,
    padding: PaddingMode = "zeros",
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
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
      :math:`\mathrm{Re}\,e^{i\theta(\omega)} u^*\hat K v`, with the phase that centres the kernel and makes
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
        padding: ``"zeros"`` (any amount, also none) or ``"circular"`` (at most the kernel's extent in all).
        stride: Any; does not change the bound.
        dilation: Per axis or one for all.
        groups: Number of groups.
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
        >>> convolution_norm_upper_bound(box, (32,), padding="circular", grid_size=32)
        tensor(3.0000)
    """
    settings: dict[str, Any] = {"padding": padding, "stride": stride, "dilation": dilation, "groups": groups}
    settings |= {"grid_size": grid_size, "iterations": iterations}
    return convolution_norm_upper_bounds(weight[None], input_size, **settings)[0]


def convolution_norm_upper_bounds(
    weights: Float[Tensor, "layers out_channels in_channels *kernel"],
    input_size: Sequence[int] | None = None,
    *,
    padding: PaddingMode = "zeros",
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    grid_size: int | None = None,
    iterations: int = 7,
) -> Float[Tensor, " layers"]:
    """Bound the norms of several convolutions that differ in nothing but their weights, all at once.

    See :func:`convolution_norm_upper_bound`, also for the errors it raises.
    """
    symbols = Symbols.of(
        weights, input_size, padding=padding, dilation=dilation, groups=groups, grid_size=grid_size
    )
    per_axis(stride, weights.ndim - 3, "stride")
    return norm_upper_bounds([symbols], iterations=iterations)[0]


def norm_upper_bounds(
    operators: Sequence[Tensor | Symbols], *, iterations: int
) -> list[Float[Tensor, "*batch"]]:
    """Bound the norms of stacks of matrices and of convolutions, all in as few operations as there can be.

    Only the frequency at which a convolution's symbol is largest is differentiated. It is found without gradients;
    where none are wanted that is all there is to do.
    """
    weights = [operator.weights if isinstance(operator, Symbols) else operator for operator in operators]
    differentiated = functional_transforms_active() or is_differentiated(weights)
    with exact_arithmetic(weights[0]):
        small = [o for o in operators if isinstance(o, Symbols) and o.fits]
        plain = [o for o in operators if not isinstance(o, Symbols)]
        with torch.no_grad():
            matrices = [o.every() for o in small]
            bounds = gram_bounds(matrices if differentiated else [*matrices, *plain], iterations=iterations)
            found = {id(o): o.largest(bound) for o, bound in zip(small, bounds, strict=False)}
            for o in operators:
                if isinstance(o, Symbols) and not o.fits:
                    found[id(o)] = o.search(iterations)
        if not differentiated:
            rest = iter(bounds[len(small) :])
            return [
                o.finish(found[id(o)][0], iterations) if isinstance(o, Symbols) else next(rest)
                for o in operators
            ]
        chosen = [o.at(found[id(o)][1]) if isinstance(o, Symbols) else o for o in operators]
        bounds = gram_bounds(chosen, iterations=iterations)
        return [
            # Alone, the matrix may be multiplied in another order and rounded otherwise: keep the larger.
            o.finish(bound + (found[id(o)][0] - bound.detach()).clamp_min(0), iterations)
            if isinstance(o, Symbols)
            else bound
            for o, bound in zip(operators, bounds, strict=True)
        ]


@dataclass(frozen=True)
class Symbols:
    r"""The matrices :math:`\hat K(\omega)` of several convolutions of one layout, over the frequencies to be looked at.

    Attributes:
        weights: The kernels, divided by their largest entries.
        peak: These.
        taps: The kernels again, ``(taps, layers · groups · out · in)``.
        phases: Of :math:`e^{i\omega}` as a real matrix, ``(2, 2, frequencies, taps)``; ``None`` where zero is the only
            frequency.
        groups: Number of groups.
        correction: Factor that makes up for the frequencies that are not looked at.
    """

    weights: Float[Tensor, "layers out_channels in_channels *kernel"]
    peak: Float[Tensor, " layers"]
    taps: Float[Tensor, "taps entries"]
    phases: Float[Tensor, "2 2 frequencies taps"] | None
    groups: int
    correction: float

    @staticmethod
    def of(
        weights: Float[Tensor, "layers out_channels in_channels *kernel"],
        input_size: Sequence[int] | None,
        *,
        padding: PaddingMode,
        dilation: int | Sequence[int],
        groups: int,
        grid_size: int | None,
    ) -> Symbols:
        """Return the symbols of kernels, after checking what belongs to them; see :func:`convolution_norm_upper_bound`.

        Raises:
            ValueError: With the offending value.
        """
        kernel = check_kernel(weights[0], padding, input_size, groups)
        dilations = per_axis(dilation, len(kernel), "dilation")
        sizes = [None] * len(kernel) if input_size is None else list(input_size)
        counts, correction = [], 1.0
        for k, n, d in zip(kernel, sizes, dilations, strict=True):
            count, factor = _frequencies(k, n, d, padding, grid_size)
            counts.append(count)
            correction *= factor
        with exact_arithmetic(weights):
            weights = weights.to(working_dtype(weights))
            peak = weights.detach().abs().flatten(1).amax(1)
            peak = peak + (peak == 0)
            weights = weights / peak.reshape(-1, *[1] * (weights.ndim - 1))
            taps = weights.flatten(3).permute(3, 0, 1, 2).flatten(1)
            phases = None if math.prod(counts) == 1 else _phases(kernel, counts, weights)
        return Symbols(weights, peak, taps, phases, groups, correction)

    @property
    def fits(self) -> bool:
        """Whether the symbols of all frequencies may be held at once."""
        return self.phases is None or self.phases.shape[2] * 4 * self.taps.shape[1] <= _CHUNK

    def every(self, phases: Tensor | None = None) -> Float[Tensor, "frequencies groups m n"]:
        """Return the matrices at all frequencies, or those of ``phases``; layers and groups are one axis."""
        phases, taps = self.phases if phases is None else phases, self.taps.detach()
        if phases is None:
            return taps.sum(0).reshape(1, *self._shape)
        return _as_real((phases.flatten(0, 2) @ taps).unflatten(0, (2, 2, -1)), self._shape)

    @property
    def _shape(self) -> tuple[int, int, int]:
        layers, out_channels, in_channels = self.weights.shape[:3]
        return layers * self.groups, out_channels // self.groups, in_channels

    def largest(self, bounds: Float[Tensor, "frequencies groups"]) -> tuple[Tensor, Tensor]:
        """Return each layer's largest bound over frequencies and groups, and where it is."""
        every = bounds.unflatten(-1, (-1, self.groups)).transpose(0, 1).flatten(1)
        largest, index = every.max(1)
        return largest, index

    def search(self, iterations: int) -> tuple[Tensor, Tensor]:
        """Return what :meth:`largest` does, of bounds computed some frequencies at a time."""
        assert self.phases is not None
        rows = max(1, _CHUNK // (4 * self.taps.shape[1]))
        parts = [self.every(part) for part in self.phases.split(rows, dim=2)]
        return self.largest(torch.cat([gram_bounds([part], iterations=iterations)[0] for part in parts]))

    def at(self, index: Int[Tensor, " layers"]) -> Float[Tensor, "layers m n"]:
        """Return the matrix of each layer at a place that :meth:`largest` named."""
        layers = self.weights.shape[0]
        frequency, group = index // self.groups, index % self.groups
        group = group + self.groups * torch.arange(layers, device=index.device)
        taps = self.taps.unflatten(1, self._shape).index_select(1, group)
        if self.phases is None:
            return taps.sum(0)
        symbols = torch.einsum("ablt,tlmn->ablmn", self.phases.index_select(2, frequency), taps)
        return _as_real(symbols, (layers, *self._shape[1:]))[0]

    def finish(self, bounds: Float[Tensor, " layers"], iterations: int) -> Float[Tensor, " layers"]:
        """Return the bounds of the convolutions from those of their symbols."""
        taps, unit = self.taps.shape[0], torch.finfo(bounds.dtype).eps / 2
        # The transform itself is rounded: a sum of `taps` products at every frequency. The squared Frobenius norm of a
        # kernel is the mean of those of its symbols, each at most its rank times the square of its norm.
        rank = min(self.weights.shape[1], self.groups * self.weights.shape[2])
        rounding = (taps + 8) * unit * math.sqrt(taps * rank)
        twice = 1.0 if self.phases is None else repeated_twice(iterations)
        return bounds * (self.peak * ((1 + rounding) * self.correction * (1 + 6 * unit) / twice))


def _as_real(symbols: Float[Tensor, "2 2 frequencies entries"], shape: tuple[int, int, int]) -> Tensor:
    """Return complex matrices as real ones of twice the size, see :func:`.gram.gram_bound`."""
    groups, rows, columns = shape
    parts = symbols.reshape(2, 2, -1, groups, rows, columns).permute(2, 3, 0, 4, 1, 5)
    return parts.reshape(-1, groups, 2 * rows, 2 * columns)


def _frequencies(
    k: int, n: int | None, dilation: int, padding: PaddingMode, grid_size: int | None
) -> tuple[int, float]:
    """Return how many frequencies one axis needs and the factor that makes up for the others."""
    count = 8 * (k - 1) if grid_size is None else grid_size
    if k == 1:
        return 1, 1.0
    if count <= k - 1:
        raise ValueError(f"grid_size must exceed {k - 1} for a kernel of size {k}, got {grid_size}")
    if n is not None:
        exact = n // math.gcd(n, dilation) if padding == "circular" else -(-n // dilation) + k - 1
        if exact <= count:
            return exact, 1.0
    return count, 1 / math.cos(math.pi * (k - 1) / (2 * count))


def _phases(kernel: Sequence[int], counts: Sequence[int], like: Tensor) -> Tensor:
    """Return :math:`e^{i\\omega}` as real matrices, ``(2, 2, frequencies, taps)``; the last axis skips conjugates."""
    halves = [count // 2 + 1 if axis == len(counts) - 1 else count for axis, count in enumerate(counts)]
    angles: Tensor | None = None
    for k, count, kept in zip(kernel, counts, halves, strict=True):
        # whole turns are dropped, which is exact, so large sizes lose nothing
        steps = torch.arange(kept, dtype=torch.float64)[:, None] * torch.arange(k, dtype=torch.float64)
        axis = steps.remainder(count) * (2 * math.pi / count)
        angles = (
            axis if angles is None else (angles[:, None, :, None] + axis[:, None]).flatten(2).flatten(0, 1)
        )
    assert angles is not None
    angles = angles.to(like.device)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([cos, -sin, sin, cos]).unflatten(0, (2, 2)).to(like.dtype)


def convolution_power_iteration(
    weight: Float[Tensor, "out_channels in_channels *kernel"],
    input_size: Sequence[int],
    iterations: int,
    *,
    padding: PaddingMode = "zeros",
    pads: Pads | None = None,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    vector: Float[Tensor, "1 channels *spatial"] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "1 channels *spatial"]]:
    """Estimate a convolution's operator norm from below, and return the input that attains the estimate.

    Power iteration with the convolution and its transpose, as in i-ResNet.

    Args:
        weight: The kernel as PyTorch stores it.
        input_size: Spatial size of the input.
        iterations: Updates of the vector; zero evaluates the start.
        padding: ``"zeros"`` or ``"circular"``.
        pads: Entries added before and after every axis; ``None`` keeps the size at stride 1.
        stride: Per axis or one for all.
        dilation: Per axis or one for all.
        groups: Number of groups.
        vector: Where to start, for example from the previous call; ``None`` draws it.
        generator: Source of the random start.

    Returns:
        The estimate, differentiable in the weight with the vector held fixed, and the unit vector, detached.

    Raises:
        ValueError: Shapes, sizes or a padding that make no sense, with the offending value.
    """
    kernel = check_kernel(weight, padding, input_size, groups)
    strides = per_axis(stride, len(kernel), "stride")
    dilations = per_axis(dilation, len(kernel), "dilation")
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")
    pads = same_pads(kernel, dilations) if pads is None else pads
    mode = "constant" if padding == "zeros" else "circular"
    widths = [width for before_after in reversed(pads) for width in before_after]
    apply = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
    shape = (1, weight.shape[1] * groups, *input_size)
    with exact_arithmetic(weight):
        weight = weight.to(working_dtype(weight))
        if vector is None:
            vector = torch.randn(shape, dtype=weight.dtype, device=weight.device, generator=generator)
        if vector.shape != shape:
            raise ValueError(f"expected a start of shape {shape}, got {tuple(vector.shape)}")

        def convolve(v: Tensor, weight: Tensor) -> Tensor:
            return apply(F.pad(v, widths, mode), weight, None, strides, 0, dilations, groups)

        v = _unit(vector.detach().to(weight.dtype))
        for _ in range(iterations):
            image, transpose = torch.func.vjp(lambda v: convolve(v, weight.detach()), v)[:2]
            product = _unit(transpose(_unit(image))[0])
            v = torch.where((product == 0).all(), v, product)
        v = v.detach()
        return torch.linalg.vector_norm(convolve(v, weight)), v


def convolution_norm_estimate(
    weight: Float[Tensor, "out_channels in_channels *kernel"],
    input_size: Sequence[int],
    iterations: int = 30,
    *,
    padding: PaddingMode = "zeros",
    pads: Pads | None = None,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
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
        weight,
        input_size,
        iterations,
        padding=padding,
        pads=pads,
        stride=stride,
        dilation=dilation,
        groups=groups,
        vector=vector,
        generator=generator,
    )[0]


def _unit(v: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(v)
    return v / torch.where(norm == 0, torch.ones_like(norm), norm)
