"""How large is the norm of a convolution: upper bounds for guarantees, estimates for everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from invertible_attention.lipschitz.geometry import PaddingMode, Pads, check_kernel, per_axis, same_pads
from invertible_attention.lipschitz.gram import exact_arithmetic, gram_bound, rescale, working_dtype

__all__ = [
    "convolution_norm_estimate",
    "convolution_norm_upper_bound",
    "convolution_norm_upper_bounds",
    "convolution_power_iteration",
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
    kernel = check_kernel(weights[0], padding, input_size, groups)
    per_axis(stride, len(kernel), "stride")
    dilations = per_axis(dilation, len(kernel), "dilation")
    sizes = [None] * len(kernel) if input_size is None else list(input_size)
    counts, correction = [], 1.0
    for k, n, d in zip(kernel, sizes, dilations, strict=True):
        count, factor = _frequencies(k, n, d, padding, grid_size)
        counts.append(count)
        correction *= factor
    with exact_arithmetic(weights):
        weights = weights.to(working_dtype(weights))
        (weights, _), scale, zero = rescale(weights, dims=weights.ndim - 1)
        bound = _largest_symbols(weights, _phases(kernel, counts, weights), groups, iterations)
        taps = math.prod(kernel)
        unit = torch.finfo(weights.dtype).eps / 2
        # the transform itself is rounded: a sum of `taps` products at every frequency
        rounding = (taps + 8) * unit * math.sqrt(taps) * weights.detach().square().flatten(1).sum(1).sqrt()
        bound = (bound + rounding) * (scale * correction * (1 + 4 * unit))
        return torch.where(zero, torch.zeros_like(bound), bound)


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
    """Return cosines and sines ``(2, frequencies, taps)``; the last axis skips conjugate frequencies."""
    halves = [count // 2 + 1 if axis == len(counts) - 1 else count for axis, count in enumerate(counts)]
    turns = torch.zeros((1, 1), dtype=torch.float64)
    for k, count, kept in zip(kernel, counts, halves, strict=True):
        # whole turns are dropped in integers, so large sizes lose nothing
        axis = torch.outer(torch.arange(kept), torch.arange(k)).remainder(count).double() / count
        turns = (turns[:, None, :, None] + axis[None, :, None, :]).reshape(turns.shape[0] * kept, -1)
    angles = 2 * math.pi * turns
    return torch.stack([angles.cos(), angles.sin()]).to(like)


def _largest_symbols(weights: Tensor, phases: Tensor, groups: int, iterations: int) -> Tensor:
    """Return each layer's largest Gram bound over frequencies and groups; only the largest carries a gradient."""
    layers, out_channels, in_channels = weights.shape[0], weights.shape[1] // groups, weights.shape[2]
    # axes: taps, layers and groups, entries of the matrix
    taps = weights.reshape(layers * groups, out_channels * in_channels, -1).permute(2, 0, 1)

    def bounds(symbols: Tensor) -> Tensor:
        real, imag = symbols.unflatten(-1, (out_channels, in_channels))
        return gram_bound(real, imag, iterations=iterations)

    frequencies = phases.shape[1]
    if frequencies == 1:
        real = taps.sum(0).reshape(layers, groups, out_channels, in_channels)
        return gram_bound(real, iterations=iterations).amax(1)
    with torch.no_grad():
        rows = max(1, _CHUNK // (2 * taps[0].numel()))
        matrix = taps.detach().flatten(1)
        found = [bounds((part @ matrix).unflatten(-1, taps.shape[1:])) for part in phases.split(rows, dim=1)]
        # axes: layers, frequencies and groups
        every = torch.cat(found).unflatten(-1, (layers, groups)).transpose(0, 1).flatten(1)
        largest, index = every.max(1)
        chosen_phases = phases.index_select(1, index // groups)
        chosen_taps = index % groups + groups * torch.arange(layers, device=index.device)
    # axes: parts, layers, entries of the matrix
    symbols = torch.einsum("plt,tle->ple", chosen_phases, taps.index_select(1, chosen_taps))
    chosen = bounds(symbols)
    # alone, the matrix may be multiplied in another order and rounded otherwise: keep the larger
    return chosen + (largest - chosen.detach()).clamp_min(0)


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
