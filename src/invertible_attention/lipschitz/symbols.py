"""Symbols of a convolution: its matrices in the Fourier basis, the largest norm of which is its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invertible_attention._precision import wide_dtype
from invertible_attention.lipschitz.geometry import Geometry, PaddingMode, per_axis
from invertible_attention.lipschitz.gram import exact_arithmetic, gram_bounds, repeated_twice, working_dtype

__all__ = ["Squares", "Symbols"]

_CHUNK = 2**21  # entries of the transform held at once: small enough for the cache of a CPU core
_MOST_COLUMNS, _MOST_PHASES = 512, 2**20  # of kernels whose autocorrelation and its phases are held at once


@dataclass(frozen=True)
class Symbols:
    r"""The matrices :math:`\hat K(\omega)` of several convolutions of one layout, over the frequencies to be looked at.

    Attributes:
        weights: The kernels, divided by their largest entries.
        peak: These.
        taps: The kernels again, ``(taps, layers · groups · out · in)``.
        phases: Of :math:`e^{i\omega}` as a real matrix, ``(2, 2, frequencies, taps)``; ``None`` where zero is the only
            frequency.
        squares: How to get at :math:`\hat K^*\hat K` instead, where that is much smaller; ``None`` where it is not.
        groups: Number of groups.
        correction: Factor that makes up for the frequencies that are not looked at.
    """

    weights: Float[Tensor, "layers out_channels in_channels *kernel"]
    peak: Float[Tensor, " layers"]
    taps: Float[Tensor, "taps entries"]
    phases: Float[Tensor, "2 2 frequencies taps"] | None
    squares: Squares | None
    groups: int
    correction: float

    @staticmethod
    def of(
        weights: Float[Tensor, "layers out_channels in_channels *kernel"],
        input_size: Sequence[int] | None,
        geometry: Geometry,
        grid_size: int | None,
    ) -> Symbols:
        """Return the symbols of kernels, after checking what belongs to them; see :func:`convolution_norm_upper_bound`.

        Raises:
            ValueError: With the offending value.
        """
        kernel = geometry.check(weights[0], input_size)
        dilations = per_axis(geometry.dilation, len(kernel), "dilation")
        sizes = [None] * len(kernel) if input_size is None else list(input_size)
        counts, correction = [], 1.0
        for k, n, d in zip(kernel, sizes, dilations, strict=True):
            count, factor = _frequencies(k, n, d, geometry.padding, grid_size)
            counts.append(count)
            correction *= factor
        with exact_arithmetic(weights):
            weights = weights.to(working_dtype(weights))
            peak = weights.detach().abs().flatten(1).amax(1)
            peak = peak + (peak == 0)
            weights = weights / peak.reshape(-1, *[1] * (weights.ndim - 1))
            taps = weights.flatten(3).permute(3, 0, 1, 2).flatten(1)
            squares = Squares.of(weights.detach(), counts, geometry.groups)
            if squares is not None:
                phases = squares.phases_of_taps(kernel, weights.dtype)
            else:
                phases = None if math.prod(counts) == 1 else _phases(kernel, counts, weights)
        return Symbols(weights, peak, taps, phases, squares, geometry.groups, correction)

    @property
    def fits(self) -> bool:
        """Whether the symbols of all frequencies may be held at once."""
        return self.phases is None or self._scanned[1].shape[2] * 4 * self._scanned[0].shape[1] <= _CHUNK

    @property
    def _scanned(self) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
        """Coefficients, phases, and shapes of the matrices whose norms say which frequency's is largest."""
        assert self.phases is not None
        if self.squares is None:
            return self.taps.detach(), self.phases, self._shape
        return self.squares.lags, self.squares.phases, self.squares.shape

    def products(self, iterations: int) -> int:
        """Return how many Gram products are left for the matrices of :meth:`every`."""
        return iterations - 1 if self.squares is not None and iterations else iterations

    def every(self, phases: Tensor | None = None) -> Float[Tensor, "frequencies groups m n"]:
        """Return the matrices at all frequencies, or those of ``phases``; layers and groups are one axis."""
        if self.phases is None:
            return self.taps.detach().sum(0).reshape(1, *self._shape)
        taps, every, shape = self._scanned
        phases = every if phases is None else phases
        return _as_real((phases.flatten(0, 2) @ taps).unflatten(0, (2, 2, -1)).to(self.taps.dtype), shape)

    @property
    def _shape(self) -> tuple[int, int, int]:
        layers, out_channels, in_channels = self.weights.shape[:3]
        return layers * self.groups, out_channels // self.groups, in_channels

    def largest(self, bounds: Float[Tensor, "frequencies groups"]) -> tuple[Tensor, Tensor]:
        """Return each layer's largest bound over frequencies and groups, and where it is."""
        if self.squares is not None:
            bounds = self.squares.roots(bounds)
        every = bounds.unflatten(-1, (-1, self.groups)).transpose(0, 1).flatten(1)
        largest, index = every.max(1)
        return largest, index

    def search(self, iterations: int) -> tuple[Tensor, Tensor]:
        """Return what :meth:`largest` does, of bounds computed some frequencies at a time."""
        taps, phases, _ = self._scanned
        rows = max(1, _CHUNK // (4 * taps.shape[1]))
        parts, products = [self.every(part) for part in phases.split(rows, dim=2)], self.products(iterations)
        return self.largest(torch.cat([gram_bounds([part], iterations=products)[0] for part in parts]))

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


@dataclass(frozen=True)
class Squares:
    r"""The squares :math:`\hat K^*\hat K(\omega) = \sum_s R_s e^{-i\omega s}` of symbols that are tall or flat.

    :math:`R_s = \sum_t W_t^* W_{t+s}` is the autocorrelation of the kernel: one of 512 by 12 channels has symbols of
    that size, and squares of 12 by 12.

    Attributes:
        lags: The autocorrelation, in the wide dtype, ``(lags, layers · groups · n · n)``.
        phases: As those of the symbols, at the same frequencies.
        shape: Of the squares: layers · groups, n, n.
        error: By how much rounding may have changed the norm of a square, at any frequency.
    """

    lags: Float[Tensor, "lags entries"]
    phases: Float[Tensor, "2 2 frequencies lags"]
    shape: tuple[int, int, int]
    error: Float[Tensor, " groups"]

    @staticmethod
    def of(
        weights: Float[Tensor, "layers out_channels in_channels *kernel"], counts: Sequence[int], groups: int
    ) -> Squares | None:
        """Return the squares of kernels, ``None`` where they are not much smaller than symbols."""
        kernel, taps = weights.shape[3:], math.prod(weights.shape[3:])
        sides = weights.shape[1] // groups, weights.shape[2]
        n, m = min(sides), max(sides)
        frequencies, apart = _kept(counts), math.prod([2 * k - 1 for k in kernel])
        # Multiplications of either way up to the first square: of pairs of taps and two transforms, and one product.
        here = (taps * n) ** 2 * m + 4 * frequencies * apart * n * n
        there = 4 * frequencies * taps * m * n + 8 * frequencies * n * n * m
        if (
            math.prod(counts) == 1
            or 4 * here > there
            or taps * n > _MOST_COLUMNS
            or frequencies * apart > _MOST_PHASES
        ):
            return None
        wide = weights.flatten(3).unflatten(1, (groups, -1)).flatten(0, 1).to(wide_dtype(weights.device))
        tall = wide if wide.shape[1] == m else wide.transpose(1, 2)
        columns = tall.permute(0, 3, 2, 1).flatten(1, 2)
        # Of every pair of taps, then of pairs that are as far apart.
        pairs = (columns @ columns.mT).unflatten(2, (taps, n)).unflatten(1, (taps, n))
        lags = _apart(kernel, wide) @ pairs.permute(1, 3, 0, 2, 4).reshape(taps * taps, -1)
        # No square exceeds the sum of the autocorrelations, and none of these the sum of products of taps.
        most = torch.linalg.vector_norm(columns.unflatten(1, (taps, n)), dim=(2, 3)).sum(1).square()
        unit, own = torch.finfo(wide.dtype).eps / 2, torch.finfo(weights.dtype).eps / 2
        error = most * (2 * own + 2 * (taps * m + len(lags) + 32) * unit)
        phases = _phases([2 * k - 1 for k in kernel], counts, wide)
        return Squares(lags, phases, (len(wide), n, n), error)

    def phases_of_taps(
        self, kernel: Sequence[int], dtype: torch.dtype
    ) -> Float[Tensor, "2 2 frequencies taps"]:
        """Return the phases of the symbols, which are among those of the squares."""
        lags = self.phases.unflatten(3, [2 * k - 1 for k in kernel])
        for axis, k in enumerate(kernel):
            lags = lags.narrow(3 + axis, 0, k)
        return lags.flatten(3).to(dtype)

    def roots(self, bounds: Float[Tensor, "frequencies groups"]) -> Float[Tensor, "frequencies groups"]:
        """Return bounds of symbols from those of their squares."""
        roots = (bounds + self.error).sqrt() * (1 + 4 * torch.finfo(bounds.dtype).eps)
        return roots.to(bounds.dtype)


def _apart(kernel: Sequence[int], like: Tensor) -> Float[Tensor, "lags pairs"]:
    """Return which pairs of taps are how far apart, as ones among zeros."""
    place = torch.zeros(1, 1, dtype=torch.int64)
    for k in kernel:
        axis = torch.arange(k)
        apart = axis - axis[:, None] + k - 1
        place = (place[:, None, :, None] * (2 * k - 1) + apart[:, None]).flatten(2).flatten(0, 1)
    lags = torch.arange(math.prod([2 * k - 1 for k in kernel]))
    return (lags[:, None] == place.flatten()).to(like.device, like.dtype)


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


def _kept(counts: Sequence[int]) -> int:
    """Return how many frequencies are left without conjugates."""
    return math.prod([*counts[:-1], counts[-1] // 2 + 1])


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
