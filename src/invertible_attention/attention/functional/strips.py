"""Map a function over strips of rows, in memory that does not grow with their number, to any order of derivative.

Attention is a sum or a concatenation over strips of its score matrix. Autograd would keep every strip; here each
derivative (reverse, forward, and theirs in turn) is again a map over strips of a derived function, which
recomputes its strip.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["StripFunction", "batch_in_one_go", "has_few_rows", "map_strips", "run", "strip_map"]

# Tensors, or None for an argument that is absent.
Tensors = tuple[Any, ...]
Results = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]

# Scores in one strip. On a CPU a few strips must stay in a core's cache; elsewhere a strip must fill the device.
_STRIP_SCORES = {"cpu": 2**18}
_STRIP_SCORES_ELSEWHERE = 2**26
# Fewer rows, those of all samples together, make the matrix products inefficient: a batch too large for that is cut.
_FEWEST_ROWS = 16


class StripFunction(ABC):
    """A function of one strip of some tensors and the whole of others; it must be pure and differentiable.

    The map concatenates its first results (one per strip, along axis -2) and adds up its second ones.

    Attributes:
        pieces: how many results belong to the strip.
    """

    pieces: int

    @abstractmethod
    def __call__(self, strips: Tensors, wholes: Tensors) -> Results:
        """Return the results that belong to the strip, and those to be summed over strips."""

    def pullback(self, strips: int, wholes: int, wanted: Sequence[int]) -> StripFunction:
        """Return the vector–Jacobian product as a function of strips.

        Args:
            strips: number of strip arguments of this function.
            wholes: number of whole arguments.
            wanted: which arguments (strips first) need a gradient, in order.

        Returns:
            A function whose arguments are this one's with the cotangents of the results appended, strip
            cotangents to the strips and the others to the wholes, and whose results are the wanted gradients.
        """
        return _Pullback(self, strips, wholes, tuple(wanted))

    def pushforward(self, strips: int, wholes: int) -> StripFunction:
        """Return the Jacobian–vector product as a function of strips.

        Args:
            strips: number of strip arguments of this function.
            wholes: number of whole arguments.

        Returns:
            A function whose arguments are this one's with their tangents appended (``None`` for zero), strip
            tangents to the strips and the others to the wholes, and whose results are the tangents of the results.
        """
        return _Pushforward(self, strips, wholes)


def strip_map(function: StripFunction, rows: int, strips: Tensors, wholes: Tensors) -> tuple[Tensor, ...]:
    """Apply a function to strips of ``rows`` rows, concatenate its first results and add up its second.

    Args:
        function: what to compute for a strip.
        rows: rows in a strip.
        strips: tensors cut along axis -2, or ``None``.
        wholes: tensors passed whole, or ``None``.

    Returns:
        The concatenated results, then the sums. Differentiable to any order, in reverse and forward mode and under
        :mod:`torch.func`, always in the memory of one strip beyond inputs and outputs.
    """
    return _StripMap.apply(function, rows, len(strips), *strips, *wholes)  # type: ignore[return-value]


def map_strips(function: StripFunction, strips: Tensors, wholes: Tensors) -> tuple[Tensor, ...]:
    """Call :func:`strip_map` with strips that fit the device.

    Args:
        function: what to compute for a strip; its first strip and first whole argument are the tokens scored.
        strips: tensors cut along axis -2, or ``None``.
        wholes: tensors passed whole, or ``None``.

    Returns:
        The concatenated results, then the sums.
    """
    x, y = strips[0], wholes[0]
    scores_in_a_row = x.shape[0] * x.shape[1] * y.shape[-2]
    rows = max(_FEWEST_ROWS // x.shape[0], 1, _strip_scores(x) // scores_in_a_row)
    return strip_map(function, rows, strips, wholes)


def _strip_scores(tensor: Tensor) -> int:
    return _STRIP_SCORES.get(tensor.device.type, _STRIP_SCORES_ELSEWHERE)


def batch_in_one_go(query: Tensor, key: Tensor) -> int:
    """Return how many samples to compute at once: of more, a strip that fits would have too few rows."""
    scores_in_a_strip = query.shape[1] * _FEWEST_ROWS * max(query.shape[-2], key.shape[-2])
    return max(1, _strip_scores(query) // scores_in_a_strip)


def has_few_rows(tokens: Tensor) -> bool:
    """Return whether even a single sample's strips have so few rows that adding up what they sum costs most."""
    return tokens.shape[-2] * _FEWEST_ROWS > _strip_scores(tokens)


def run(function: StripFunction, rows: int, strips: Tensors, wholes: Tensors) -> tuple[Tensor, ...]:
    """Do the work of :func:`strip_map`, without derivatives."""
    length = next(tensor.shape[-2] for tensor in strips if tensor is not None)
    parts = min(_parts(strips + wholes), length)
    if parts == 1:
        pieces, sums = _run(function, rows, strips, wholes)
        return pieces + sums
    remainder = length % parts
    pieces, sums = _run_in_parts(function, parts, rows, _cut(strips, 0, length - remainder), wholes)
    if remainder:
        last, more = _run(function, rows, _cut(strips, length - remainder, remainder), wholes)
        pieces = tuple(torch.cat(pair, -2) for pair in zip(pieces, last, strict=True))
        sums = tuple(total + new for total, new in zip(sums, more, strict=True))
    return pieces + sums


def _parts(tensors: Tensors) -> int:
    """Return how many parts of the rows are computed side by side.

    PyTorch divides each operation among the cores by the leading axes. With fewer samples and heads than cores,
    one operation gives a core other rows than the next, and the strip travels between their caches: where these are
    far apart that takes longer than the arithmetic. A part for each core stays where it is.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    heads = {tensor.shape[1] for tensor in given}
    if given[0].device.type != "cpu" or len(heads) > 1:
        return 1
    samples = max(tensor.shape[0] for tensor in given)
    return max(1, torch.get_num_threads() // (samples * heads.pop()))


def _run_in_parts(
    function: StripFunction, parts: int, rows: int, strips: Tensors, wholes: Tensors
) -> Results:
    """Let every part of the rows be its own head."""
    pieces, sums = _run(
        function,
        max(1, rows // parts),
        tuple(
            None if tensor is None else tensor.unflatten(-2, (parts, -1)).flatten(1, 2) for tensor in strips
        ),
        tuple(None if tensor is None else tensor.repeat_interleave(parts, 1) for tensor in wholes),
    )
    return (
        tuple(piece.unflatten(1, (-1, parts)).flatten(2, 3) for piece in pieces),
        tuple(total.unflatten(1, (-1, parts)).sum(2) for total in sums),
    )


def _run(function: StripFunction, rows: int, strips: Tensors, wholes: Tensors) -> Results:
    """Call the function strip by strip."""
    length = next(tensor.shape[-2] for tensor in strips if tensor is not None)
    pieces: list[tuple[Tensor, ...]] = []
    sums: tuple[Tensor, ...] = ()
    for start in range(0, length, rows):
        piece, part = function(_cut(strips, start, min(rows, length - start)), wholes)
        pieces.append(piece)
        if start == 0:
            sums = part
        elif start == rows:
            # The first part may share memory with an argument, so it is not added to in place.
            sums = tuple(total + new for total, new in zip(sums, part, strict=True))
        else:
            sums = tuple(total.add_(new) for total, new in zip(sums, part, strict=True))
    return tuple(torch.cat(parts, -2) for parts in zip(*pieces, strict=True)), sums


def _cut(strips: Tensors, start: int, size: int) -> Tensors:
    return tuple(None if tensor is None else tensor.narrow(-2, start, size) for tensor in strips)


class _StripMap(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        function: StripFunction, rows: int, count: int, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        return run(function, rows, tensors[:count], tensors[count:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.function, ctx.rows, ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        tensors, count = ctx.saved_tensors, ctx.count
        strips, wholes = tensors[:count], tensors[count:]
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        pullback = ctx.function.pullback(len(strips), len(wholes), wanted)
        pieces = ctx.function.pieces
        gradients = strip_map(pullback, ctx.rows, strips + cotangents[:pieces], wholes + cotangents[pieces:])
        by_index = dict(zip(wanted, gradients, strict=True))
        return (None, None, None, *(by_index.get(index) for index in range(len(tensors))))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        tensors, count = ctx.saved_tensors, ctx.count
        given = tangents[3:]
        pushforward = ctx.function.pushforward(count, len(tensors) - count)
        return strip_map(
            pushforward, ctx.rows, tensors[:count] + given[:count], tensors[count:] + given[count:]
        )


class _Pullback(StripFunction):
    """Vector–Jacobian product of a strip function, by automatic differentiation of the strip."""

    def __init__(self, function: StripFunction, strips: int, wholes: int, wanted: tuple[int, ...]) -> None:
        self.function, self.strips, self.wholes, self.wanted = function, strips, wholes, wanted
        self.pieces = sum(index < strips for index in wanted)

    def __call__(self, strips: Tensors, wholes: Tensors) -> Results:
        arguments = strips[: self.strips] + wholes[: self.wholes]
        cotangents = strips[self.strips :] + wholes[self.wholes :]

        def results(*wanted: Tensor) -> tuple[Tensor, ...]:
            filled = list(arguments)
            for index, tensor in zip(self.wanted, wanted, strict=True):
                filled[index] = tensor
            pieces, parts = self.function(tuple(filled[: self.strips]), tuple(filled[self.strips :]))
            return pieces + parts

        pull = torch.func.vjp(results, *(arguments[index] for index in self.wanted))[1]
        gradients = pull(cotangents)
        return gradients[: self.pieces], gradients[self.pieces :]


class _Pushforward(StripFunction):
    """Jacobian–vector product of a strip function: arguments, then their tangents (``None`` for zero)."""

    def __init__(self, function: StripFunction, strips: int, wholes: int) -> None:
        self.function, self.strips, self.wholes = function, strips, wholes
        self.pieces = function.pieces

    def __call__(self, strips: Tensors, wholes: Tensors) -> Results:
        arguments = strips[: self.strips] + wholes[: self.wholes]
        tangents = strips[self.strips :] + wholes[self.wholes :]
        moving = [index for index, tangent in enumerate(tangents) if tangent is not None]

        def results(*moved: Tensor) -> tuple[Tensor, ...]:
            filled = list(arguments)
            for index, tensor in zip(moving, moved, strict=True):
                filled[index] = tensor
            pieces, parts = self.function(tuple(filled[: self.strips]), tuple(filled[self.strips :]))
            return pieces + parts

        # The transpose of the transpose: forward mode itself does not nest in a plain forward-mode level.
        primals = tuple(arguments[index] for index in moving)
        out, pull = torch.func.vjp(results, *primals)[:2]
        transpose = torch.func.vjp(pull, tuple(torch.zeros_like(result) for result in out))[1]
        (pushed,) = transpose(tuple(tangents[index] for index in moving))
        return pushed[: self.pieces], pushed[self.pieces :]
