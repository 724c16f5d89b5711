r"""A backward pass that keeps no graph: it evaluates the branch again, per sample weighted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from invertible_attention._linear_part import LinearPart
from invertible_attention.logdet.linearization import Linearization, full_precision, unhooked
from invertible_attention.logdet.probes import average, inner_product

__all__ = ["captured_tensors", "recomputed_gradient", "surrogate"]

# Above what the order of summation changes in float32 on a device that does not fix it.
_SAME = 1e-5


def surrogate(
    linear: Linearization,
    part: LinearPart | None,
    left: Sequence[Tensor],
    reference: Sequence[Tensor],
    right: Sequence[Tensor],
) -> Float[Tensor, " batch"]:
    r"""Return a function whose gradient is that of the series, :math:`w^\top J v` averaged over the probes.

    Where there is a linear part, less :math:`w_0^\top J_0 v`.
    """
    slope = average(
        [inner_product(linear.vjp(w, differentiable=True), v) for w, v in zip(left, right, strict=True)],
        like=linear.point,
    )
    return slope if part is None else slope - _known(part, reference, right, like=linear.point)


def _known(
    part: LinearPart, reference: Sequence[Tensor], right: Sequence[Tensor], *, like: Tensor
) -> Float[Tensor, " batch"]:
    r"""Return the gradient's estimate for the linear part, :math:`w_0^\top J_0 v`."""
    slopes = [inner_product(part.apply(w, transposed=True), v) for w, v in zip(reference, right, strict=True)]
    return average(slopes, like=like)


def recomputed_gradient(
    branch: Callable[..., Tensor],
    x: Float[Tensor, "batch *event"],
    args: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    *,
    linear: Linearization,
    logdet: Float[Tensor, " batch"],
    left: Sequence[Tensor],
    reference: Sequence[Tensor],
    right: Sequence[Tensor],
    determinant: bool,
) -> tuple[Tensor, Tensor]:
    r"""Attach to ``g(x)`` its own gradient and to ``logdet`` that of the :func:`surrogate`.

    Backward receives an upstream gradient :math:`\ell_b` per sample, evaluates the branch with a graph,
    and differentiates the surrogates weighted by :math:`\ell_b`. So each sample counts with its own weight,
    and one block's graph exists at a time, for as long as it is needed.

    Args:
        branch: The residual branch; it must give the same value when evaluated again.
        x: The point.
        args: Further arguments of the branch.
        parameters: Tensors the branch captures; the leaves among them are found without being named.
        linear: The branch, evaluated apart from the graph of ``x`` and ``args``.
        logdet: The value of the log-determinant.
        left: The vectors :math:`w`, one per probe, if there are any.
        reference: The vectors :math:`w_0`, likewise, or none without a linear part.
        right: The probes :math:`v`.
        determinant: Whether the surrogate has the determinant of the linear part.
    """
    captured = captured_tensors(linear.value, parameters, [linear.point])
    tensors = [arg for arg in args if arg is not None]
    where = [i for i, arg in enumerate(args) if arg is not None]
    value = linear.value.detach()
    counts = (len(left), len(reference), len(right))
    sizes = _sizes(captured, value)
    lengths = torch.linalg.vector_norm(value, dim=tuple(range(1, value.ndim)))
    fingerprint = torch.cat([inner_product(value, _direction(right, value)), *sizes])
    tolerance = _SAME * torch.cat([lengths, *sizes])
    record = _Record(
        _AsItIs(branch), len(args), where, captured, counts, determinant, (fingerprint, tolerance)
    )
    constants = (*left, *reference, *right)
    return _Recompute.apply(record, (value, logdet), x, *constants, *tensors, *captured)


class _AsItIs(nn.Module):
    """A branch with the tensors its modules have now, whatever :func:`torch.func.functional_call` gives them later.

    Args:
        branch: A module, a bound branch with modules among its attributes, or any other callable.
    """

    def __init__(self, branch: Callable[..., Tensor]) -> None:
        super().__init__()
        self.branch = branch
        held = getattr(branch, "__dict__", {}).values()
        self.parts = nn.ModuleList(part for part in held if isinstance(part, nn.Module))
        # By their places: this is asked often, and names are wanted only where another tensor is in one of them.
        self.held = [
            (module, name, tensor)
            for module in self.modules()
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]

    def forward(self, method: str, *args: Any) -> Any:
        return getattr(self.branch, method)(*args)

    def evaluate(self, x: Tensor, *args: Tensor | None) -> Tensor:
        """Return ``g(x)``."""
        return self._call("__call__", x, *args)

    def pushforward(
        self, x: Tensor, tangents: Sequence[Tensor], *args: Tensor | None
    ) -> tuple[Tensor, Sequence[Tensor]] | None:
        """Return ``g(x)`` and ``J v`` for every tangent of a branch that offers it."""
        return self._call("pushforward", x, tangents, *args) if hasattr(self.branch, "pushforward") else None

    def linear_part(self, x: Tensor, *args: Tensor | None) -> LinearPart:
        """Return the linear part at ``x`` of a branch that has one."""
        return self._call("linear_part", x, *args)

    def _call(self, method: str, *args: Any) -> Any:
        if all(_tensor(module, name) is tensor for module, name, tensor in self.held):
            return self(method, *args)
        paths = {module: path for path, module in self.named_modules()}
        state = {f"{paths[module]}.{name}": tensor for module, name, tensor in self.held}
        return torch.func.functional_call(self, state, (method, *args))


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    """Return what a module has under a name, which may not be what an attribute of that name computes."""
    return module._parameters[name] if name in module._parameters else module._buffers.get(name)


def captured_tensors(value: Tensor, named: Sequence[Tensor], excluded: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors to differentiate ``value`` by, so that every leaf behind it counts once.

    These are the leaves of its graph and, instead of the leaves behind them, those of ``named`` that were
    computed from others. Where a leaf is reached on two ways, both are differentiated down to the leaf.
    """
    computed = [t for t in named if t.grad_fn is not None]
    reached = _reached([value], computed, excluded)
    ends = [t for t in reached if t.grad_fn is not None]
    behind = {id(t) for t in _reached(ends, computed, excluded)}
    # What two ends have behind them in common is reached through both, each with its own part of the gradient.
    if any(id(t) in behind for t in reached):
        return _reached([value], [], excluded)
    return reached


def _reached(values: Sequence[Tensor], ends: Sequence[Tensor], excluded: Sequence[Tensor]) -> list[Tensor]:
    """Return the leaves in the graph of ``values`` and those of ``ends``, behind which it is not searched."""
    known = {_edge(t): t for t in ends}
    seen: set[tuple[object, int]] = set()
    found: list[Tensor] = []
    stack = [value.grad_fn for value in values if value.grad_fn is not None]
    while stack:
        for node, output in stack.pop().next_functions:
            if node is None or (node, output) in seen:
                continue
            seen.add((node, output))
            end = known.get((node, output), getattr(node, "variable", None))
            if isinstance(end, Tensor):
                if not any(end is t for t in excluded):
                    found.append(end)
            else:
                stack.append(node)
    return found


def _edge(tensor: Tensor) -> tuple[object, int]:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


@torch.no_grad()
def _sizes(captured: Sequence[Tensor], like: Tensor) -> list[Float[Tensor, " captured"]]:
    """Return the norms of the captured tensors, if there are any."""
    norms = torch._foreach_norm(list(captured)) if captured else ()  # pyright: ignore[reportPrivateImportUsage]
    return [torch.stack([norm.to(like) for norm in norms])] if norms else []


def _direction(probes: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return a vector of about unit entries to distinguish values of a branch: a probe where there is one."""
    if probes:
        return probes[0]
    entries = torch.arange(math.prod(like.shape[1:]), device=like.device, dtype=like.dtype)
    return (2**0.5 * entries.sin()).view(like.shape[1:]).expand_as(like)


def _refuse_changes(found: Tensor, expected: Tensor, tolerance: Tensor) -> None:
    """Raise at the end of the backward pass if a fingerprint is another, so that a device is waited for once.

    Tensors count the changes made to them, but not those that go through ``.data`` or another view of the storage, and
    nothing counts what was drawn at random.
    """
    # A number that was not finite is not compared, and no sample's hides another's.
    changed = ((found - expected).abs() > tolerance).any()

    def check() -> None:
        if bool(changed):
            raise RuntimeError(
                "the branch is not what it was in the forward pass, so the gradients of this backward pass are wrong: "
                "its weights were changed in between (also through .data), or it is random, as with dropout. Call "
                "backward before changing weights; for a random branch use memory_saving=False and subsample=1"
            )

    torch.autograd.Variable._execution_engine.queue_callback(check)


@dataclass(frozen=True)
class _Record:
    """What backward needs besides tensors."""

    branch: _AsItIs
    number_of_args: int
    where: Sequence[int]
    captured: Sequence[Tensor]
    counts: tuple[int, int, int]
    determinant: bool
    fingerprint: tuple[Tensor, Tensor]  # and how far another may be from it


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, record: _Record, outputs: tuple[Tensor, Tensor], x: Tensor, *tensors: Tensor
    ) -> Any:
        ctx.record = record
        ctx.save_for_backward(x, *tensors)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the memory-saving gradient of the log-determinant cannot be differentiated again: use "
                "gradient='autograd'"
            )
        grad_value, grad_logdet = grad_outputs
        record: _Record = ctx.record
        n, m, _ = record.counts
        skipped = sum(record.counts)
        x, *rest = ctx.saved_tensors  # reading them also checks that no weight was changed in place
        left, reference, right = rest[:n], rest[n : n + m], rest[n + m : skipped]
        tensors = rest[skipped : skipped + len(record.where)]

        needed = ctx.needs_input_grad[3 + skipped :]
        args: list[Tensor | None] = [None] * record.number_of_args
        for i, tensor, need in zip(record.where, tensors, needed, strict=False):
            args[i] = tensor.detach().requires_grad_(need)
        with torch.enable_grad(), full_precision(x):
            upstream = (grad_logdet / n if n > 1 else grad_logdet).view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
            point, value, products = _products(record.branch, x, args, left, right, upstream)
            # A number per sample that another value of the branch would change, and the norm of every weight.
            with torch.no_grad():
                seen = torch.cat(
                    [inner_product(value, _direction(right, value)), *_sizes(record.captured, value)]
                )
            _refuse_changes(seen, *record.fingerprint)
            outputs = [(value, grad_value), *products]
            if record.determinant or reference:
                part = record.branch.linear_part(point, *args)
                known = -_known(part, reference, right, like=point)
                outputs.append((known + part.log_determinant() if record.determinant else known, grad_logdet))
            inputs = [point, *(args[i] for i in record.where), *record.captured]
            wanted = [ctx.needs_input_grad[2], *needed]
            return None, None, *_gradients(outputs, inputs, wanted, skipped)


def _products(
    branch: _AsItIs,
    x: Tensor,
    args: Sequence[Tensor | None],
    left: Sequence[Tensor],
    right: Sequence[Tensor],
    weight: Tensor,
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """Return a point at ``x``, ``g`` there, and for every probe two factors of the weighted ``wᵀ J v``.

    The first of them is to be differentiated: ``J v`` of a branch that knows how, else ``wᵀ J``.
    """
    with unhooked():
        point = x.detach().requires_grad_()
        pushed = branch.pushforward(point, right, *args) if left else None
    if pushed is not None:
        value, products = pushed
        return point, value, [(Jv, weight * w) for Jv, w in zip(products, left, strict=True)]
    linear = Linearization(branch.evaluate, x, args, attached=False)
    products = [(linear.vjp(w, differentiable=True), weight * v) for w, v in zip(left, right, strict=True)]
    return linear.point, linear.value, products


def _gradients(
    outputs: Sequence[tuple[Tensor, Tensor]],
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
    constants: int,
) -> list[Tensor | None]:
    """Differentiate all outputs at once; the gap after ``x`` is for the probes, which need no gradient."""
    chosen = [t for t, want in zip(inputs, wanted, strict=True) if want]
    pairs = [(out, grad) for out, grad in outputs if out.requires_grad]
    found: list[Tensor | None] = [None] * len(chosen)
    if pairs and chosen:
        outs, grads = zip(*pairs, strict=True)
        # The constraint of a bound branch is shared with other evaluations, so its graph must survive.
        found = list(torch.autograd.grad(outs, chosen, grads, retain_graph=True, allow_unused=True))
    supply = iter(found)
    result = [next(supply) if want else None for want in wanted]
    return [result[0], *[None] * constants, *result[1:]]
