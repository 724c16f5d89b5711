"""The equation a solver works on, for the samples that are still unsolved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from invertible_attention._differentiation import functional_transforms_active
from invertible_attention._mapped import is_mapped
from invertible_attention.solvers.batched import all_on_cpu, choose, sample_norm, wide_dtype
from invertible_attention.solvers.preconditioner import Preconditioner, gather

__all__ = ["Branch", "Count", "Problem", "Progress", "select", "update"]

Branch = Callable[..., Tensor]
"""A callable ``branch(x, *args) -> g(x)``; see the map of the code.

It may have a method ``linear_part(x, *args)``; or a method ``precondition(residual, *args)`` that returns about
``(I + J)^-1 residual``, linear in the residual and cheap compared with an evaluation, or about ``(I + J)^-T residual``
if called with ``transposed=True``. It must be invertible; solvers judge the steps it leads to, so it need not be good.
A method ``first_guess(z, *args)`` returns about the solution, or ``None``; where it is no use, solvers start at ``z``.
"""

State = TypeVar("State")

Count = Int[Tensor, " active"] | int
"""One number per sample, or the one they have in common."""

_MAPPED_BRANCH = (
    "torch.func.vmap maps over the weights of this branch, and every member of an ensemble stops on its own: solve or "
    "differentiate the members one by one, [member.inverse(z) for member in members]"
)


def select(state: State, keep: Int[Tensor, " kept"]) -> State:
    """Return a dataclass with every tensor in it indexed along its first axis, one that is there twice once."""
    values = {field.name: getattr(state, field.name) for field in fields(state)}  # pyright: ignore[reportArgumentType]
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    kept = {id(tensor): tensor for tensor in tensors.values()}
    kept = {key: tensor[keep] for key, tensor in kept.items()}
    return replace(state, **{name: kept[id(tensor)] for name, tensor in tensors.items()})  # pyright: ignore[reportArgumentType, reportReturnType]


def update(state: State, samples: Int[Tensor, " some"], part: State) -> State:
    """Return a dataclass with the entries of some samples replaced by those of another, which is of these."""
    names = [field.name for field in fields(state)]  # pyright: ignore[reportArgumentType]
    batch = next(len(value) for name in names if isinstance(value := getattr(state, name), Tensor))

    def entries(value: Tensor | int, count: int) -> Tensor:
        return value if isinstance(value, Tensor) else torch.full((count,), value, device=samples.device)

    changed = {}
    for name in names:
        old, new = getattr(state, name), getattr(part, name)
        if isinstance(old, Tensor) or isinstance(new, Tensor) or old != new:
            changed[name] = entries(old, batch).index_copy(0, samples, entries(new, len(samples)))
    return replace(state, **changed)  # pyright: ignore[reportArgumentType, reportReturnType]


@dataclass(frozen=True)
class Problem:
    """Solve ``x + branch(x, *args) = z`` for the active samples, flattened to ``(active, features)``.

    Args:
        branch: the callable ``g``.
        z: right-hand sides.
        args: further arguments of the branch, one entry per active sample.
        event_shape: the shape of one sample, as the branch expects it.
        contraction: a Lipschitz constant of the branch below 1, or ``None`` where none is known.
        tolerance: the relative residual to reach.
    """

    branch: Branch
    z: Float[Tensor, "active features"]
    args: tuple[Tensor | None, ...]
    event_shape: tuple[int, ...]
    contraction: float | None
    tolerance: float

    def evaluate(self, x: Float[Tensor, "active features"], samples: Tensor | None = None) -> Tensor:
        """Return ``branch(x)``, flattened; ``samples`` says which active samples the rows of ``x`` are.

        Raises:
            ValueError: the branch does not return one entry for each entry it was given.
            RuntimeError: it contains tensors that :func:`torch.func.vmap` maps over.
        """
        args = self.args if samples is None else gather(self.args, samples)
        shaped = x if x.shape[1:] == self.event_shape else x.reshape(x.shape[0], *self.event_shape)
        output = self.branch(shaped, *args)
        if functional_transforms_active() and is_mapped((output,)):
            raise RuntimeError(_MAPPED_BRANCH)
        if output.shape != shaped.shape:
            raise ValueError(
                f"the branch must return the shape of its input: {tuple(shaped.shape)}, got {tuple(output.shape)}"
            )
        flat = output if output.shape == x.shape else output.reshape(x.shape)
        return flat.to(x.dtype)

    def first_guess(self) -> Float[Tensor, "active features"] | None:
        """Return what the branch knows of the solution, ``z`` for samples of which that is not finite.

        Raises:
            ValueError: the guess has another shape than what it was given.
        """
        guess = getattr(self.branch, "first_guess", None)
        if guess is None or len(self.z) == 0 or self._is_ensemble():
            return None
        shaped = self.z.reshape(len(self.z), *self.event_shape)
        found = guess(shaped, *self.args)
        if found is None:
            return None
        if found.shape != shaped.shape:
            raise ValueError(
                f"the first guess must have the shape of z: {tuple(shaped.shape)}, got {tuple(found.shape)}"
            )
        found = found.reshape(self.z.shape).to(self.z.dtype)
        return choose(torch.isfinite(found).all(dim=1), found, self.z)

    def _is_ensemble(self) -> bool:
        """Whether the weights are mapped over, which the first evaluation refuses."""
        if not functional_transforms_active() or not isinstance(self.branch, nn.Module):
            return False
        return is_mapped((*self.branch.parameters(), *self.branch.buffers()))

    def residual(
        self, x: Float[Tensor, "active features"]
    ) -> tuple[Float[Tensor, "active features"], Float[Tensor, " active"]]:
        """Return ``x + branch(x) - z``, and the distance ``‖x - z‖``."""
        # (x - z) first: near the solution it cancels branch(x), and its rounding is that of branch(x),
        # where (x + branch(x)) would be rounded to the precision of z.
        difference = x - self.z
        distance = sample_norm(difference)
        return difference.add_(self.evaluate(x)), distance

    @property
    def has_preconditioner(self) -> bool:
        """Whether the branch knows about what ``I + J`` is."""
        return Preconditioner.known(self.branch)

    def preconditioner(
        self, at: Float[Tensor, "active features"], *, fixed: bool = False
    ) -> Callable[..., Float[Tensor, "rows features"]]:
        """Return a function of a residual that returns about ``(I + J)^-1 residual``, or it alone if not known.

        Samples for which the branch has none, or one that is not finite, get their residual back.

        Args:
            at: where the Jacobian is meant.
            fixed: whether the function must be linear. A second argument then says which active samples its rows are.
        """
        if not self.has_preconditioner:
            return lambda residual, samples=None: residual
        about = Preconditioner(self.branch, at.reshape(len(at), *self.event_shape), self.args)

        def precondition(residual: Tensor, samples: Tensor | None = None) -> Tensor:
            shaped = residual.reshape(residual.shape[0], *self.event_shape)
            found = about(shaped, samples, fixed=fixed).reshape(residual.shape).to(residual.dtype)
            return choose(torch.isfinite(found).all(dim=1), found, residual)

        return precondition

    def select(self, keep: Int[Tensor, " kept"]) -> Problem:
        """Return the problem of some of the active samples."""
        return replace(self, z=self.z[keep], args=gather(self.args, keep))


@dataclass(frozen=True)
class Progress:
    """Where the active samples stand: the newest iterate and the best so far.

    Args:
        x: newest iterate.
        residual: ``x + g(x) - z`` there.
        norm: its Euclidean norm, infinite where it is not finite.
        best_x: the iterate with the smallest residual.
        best_residual: the residual there.
        best_norm: its norm, infinite until an iterate had a finite residual.
        stalled: evaluations since the best iterate changed; an integer where that is the same for all.
    """

    x: Float[Tensor, "active features"]
    residual: Float[Tensor, "active features"]
    norm: Float[Tensor, " active"]
    best_x: Float[Tensor, "active features"]
    best_residual: Float[Tensor, "active features"]
    best_norm: Float[Tensor, " active"]
    stalled: Count

    @classmethod
    def start(cls, x: Float[Tensor, "active features"]) -> Progress:
        """Return the state before the first evaluation."""
        infinite = torch.full((x.shape[0],), torch.inf, dtype=wide_dtype(x.device), device=x.device)
        return cls(x, x, infinite, x, x, infinite, 0)

    @property
    def newest_is_best(self) -> bool:
        """Whether it is known of all samples that the newest iterate is the best.

        After an evaluation its residual is finite then.
        """
        return self.best_x is self.x

    def advance(
        self, x: Float[Tensor, "active features"], residual: Float[Tensor, "active features"]
    ) -> Progress:
        """Return the state after an evaluation at ``x``."""
        norm = sample_norm(residual)
        improved = norm < self.best_norm
        if all_on_cpu(improved):
            return Progress(x, residual, norm, x, residual, norm, 0)
        norm = norm.nan_to_num(nan=torch.inf, posinf=torch.inf)
        return Progress(
            x=x,
            residual=residual,
            norm=norm,
            best_x=choose(improved, x, self.best_x),
            best_residual=choose(improved, residual, self.best_residual),
            best_norm=torch.where(improved, norm, self.best_norm),
            stalled=torch.where(improved, 0, self.stalled + 1),
        )
