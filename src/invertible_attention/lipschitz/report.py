"""The report of an audit, as text and as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["AuditReport"]

_ROWS = 12  # samples shown in the table; the verdict speaks of all of them


@dataclass(frozen=True, eq=False)
class AuditReport:
    """What an audit found, one entry per sample. ``print`` it, or store :meth:`to_dict`.

    Attributes:
        module: Type of the module.
        event_shape: Shape of one input.
        dtype: Precision of the inputs.
        tolerance: Relative error up to which an input counts as recovered.
        certificate: Certified Lipschitz constant of the residual branch (of several, the largest);
            ``inf`` where nothing is promised.
        absolute_error: Largest entry of ``|inverse(f(x)) − x|``; NaN where the inverse returned nothing.
        relative_error: ``‖inverse(f(x)) − x‖ / ‖x‖``.
        tolerated_error: Relative error up to which this sample counts as recovered: the tolerance, or what follows from
            the tolerance that the module's own solver promises where that is larger.
        residual: ``‖f(inverse(z)) − z‖ / (1 + ‖z‖)``: whether what came back solves the equation at all.
        tolerated_residual: Residual up to which it does: the tolerance, or the one that the module's solver promises
            where that is larger; of a chain what its blocks promise together.
        variation: Relative difference of two evaluations of the map at the same input: zero unless it is random.
        converged: What the module itself said; ``None`` where it has no way to say.
        evaluations: Evaluations of the branch by the module's solver; ``None`` where it does not say.
        error_bound: The module's own bound of the distance to the true inverse; ``None`` where it has none.
        exceeds_error_bound: Whether the input is further from what came back than that bound.
        inverse_errors: What the inverse raised, by sample.
        lipschitz_estimate: Local Lipschitz constant of the residual branch at the sample (of several branches,
            the largest), from below; ``None`` where the map has no residual form.
        exceeds_certificate: Whether a branch's local Lipschitz constant is above its own certificate.
        smallest_stretch: Smallest factor by which the map stretches any direction there, from above.
        second_preimage_distance: Distance to another input with the same output; NaN where none was found.
        second_preimage_residual: Relative difference of the two outputs; NaN likewise.
        second_preimage: The other input; the sample itself where none was found.
        searched: Whether a second preimage was looked for. A certificate below one excludes it.
        by_order: Whether every block is a bijection, one or more of them because a token sees earlier tokens only and
            the others by their certificate, which :attr:`certificate` is about then.
    """

    module: str
    event_shape: tuple[int, ...]
    dtype: str
    tolerance: float
    certificate: float
    absolute_error: Float[Tensor, " batch"]
    relative_error: Float[Tensor, " batch"]
    tolerated_error: Float[Tensor, " batch"]
    residual: Float[Tensor, " batch"]
    tolerated_residual: Float[Tensor, " batch"]
    variation: Float[Tensor, " batch"]
    converged: Bool[Tensor, " batch"] | None
    evaluations: Int[Tensor, " batch"] | None
    error_bound: Float[Tensor, " batch"] | None
    exceeds_error_bound: Bool[Tensor, " batch"]
    inverse_errors: dict[int, str]
    lipschitz_estimate: Float[Tensor, " batch"] | None
    exceeds_certificate: Bool[Tensor, " batch"]
    smallest_stretch: Float[Tensor, " batch"]
    second_preimage_distance: Float[Tensor, " batch"]
    second_preimage_residual: Float[Tensor, " batch"]
    second_preimage: Float[Tensor, "batch *event"]
    searched: bool
    by_order: bool = False

    @property
    def recovered(self) -> list[int]:
        """Samples whose inverse is the input, to what is tolerated."""
        return _where(self.relative_error <= self.tolerated_error)

    @property
    def random(self) -> list[int]:
        """Samples at which two evaluations of the map differ."""
        return _where(self.variation > self.tolerance)

    @property
    def silently_wrong(self) -> list[int]:
        """Samples for which something that does not solve the equation, to what is promised, came back as if it did.

        Where the map is random there is no one equation to solve, and nothing is said.
        """
        wrong = ~(self.residual <= self.tolerated_residual) & ~(self.variation > self.tolerance)
        if self.converged is not None:
            wrong = wrong & self.converged
        return [i for i in _where(wrong) if i not in self.inverse_errors]

    @property
    def failed(self) -> list[int]:
        """Samples for which the inverse said that it failed."""
        said = set() if self.converged is None else set(_where(~self.converged))
        return sorted(said | set(self.inverse_errors))

    @property
    def not_injective(self) -> list[int]:
        """Samples for which another input has the same output."""
        return _where(self.second_preimage_distance.isfinite())

    @property
    def expansive(self) -> list[int]:
        """Samples at which the residual branch is not a contraction."""
        return [] if self.lipschitz_estimate is None else _where(self.lipschitz_estimate >= 1)

    @property
    def certified(self) -> bool:
        """Whether the module promises that its inverse exists everywhere."""
        return self.certificate < 1 or self.by_order

    @property
    def passed(self) -> bool:
        """Whether every sample was recovered and nothing contradicts what the module promises."""
        return len(self.recovered) == len(self.residual) and not (
            self.silently_wrong
            or self.not_injective
            or _where(self.exceeds_certificate)
            or _where(self.exceeds_error_bound)
        )

    def verdict(self) -> list[str]:
        """Say in sentences what the numbers mean."""
        count = len(self.residual)
        sentences = [self._existence()]
        if over := _where(self.exceeds_certificate):
            sentences.append(
                f"THE CERTIFICATE IS WRONG: the local Lipschitz constant exceeds it at {_samples(over)}."
            )
        if over := _where(self.exceeds_error_bound):
            sentences.append(
                f"THE ERROR BOUND IS WRONG: the input is further away than it says at {_samples(over)}."
            )
        if self.random:
            sentences.append(
                f"RANDOM: two evaluations differ at {_samples(self.random)}, so residual, stretch and Lipschitz "
                "constant of the whole mean nothing there. Audit the part after the noise."
            )
        if self.not_injective:
            sentences.append(
                f"NOT INJECTIVE: at {_samples(self.not_injective)} a different input, at distance "
                f"{_span(self.second_preimage_distance)}, has the same output to a relative "
                f"{float(self.second_preimage_residual.nan_to_num(0).max()):.1e}. Which of the two was meant is not "
                "in the output: no solver can recover it."
            )
        elif self.searched:
            sentences.append("No second preimage was found. That proves nothing: the search is local.")
        if self.silently_wrong:
            sentences.append(
                f"WRONG WITHOUT SAYING SO: at {_samples(self.silently_wrong)} the inverse returned, as if it had "
                "succeeded, something that the map does not send to the output."
            )
        if self.failed:
            sentences.append(f"The inverse said that it failed at {_samples(self.failed)}.")
        other = set(range(count)) - {*self.recovered, *self.failed, *self.silently_wrong, *self.random}
        if other:
            sentences.append(
                f"At {_samples(sorted(other))} the inverse solves the equation but is not the input: "
                "it is another preimage, or the problem is too ill-conditioned for the precision."
            )
        sentences.append(f"Recovered: {len(self.recovered)} of {count} samples.")
        return sentences

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers, strings, lists and ``None`` (also for what is not finite)."""
        report = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        del report["second_preimage"]
        report["event_shape"] = list(self.event_shape)
        report["inverse_errors"] = {str(i): message for i, message in self.inverse_errors.items()}
        report |= {
            "certified": self.certified,
            "recovered": self.recovered,
            "random": self.random,
            "failed": self.failed,
            "silently_wrong": self.silently_wrong,
            "not_injective": self.not_injective,
            "expansive": self.expansive,
            "passed": self.passed,
            "verdict": self.verdict(),
        }
        return report

    def cpu(self) -> AuditReport:
        """Return the report with its tensors in main memory."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value.cpu() for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def __str__(self) -> str:
        count = len(self.residual)
        shape = " × ".join(map(str, self.event_shape))
        lines = [f"Audit of {self.module}: {count} samples of {shape}, {self.dtype}", ""]
        lines += self._table()
        for index, message in list(self.inverse_errors.items())[:3]:
            lines.append(f"  sample {index}: {message.splitlines()[0] if message else 'error'}")
        lines += ["", *(f"- {sentence}" for sentence in self.verdict())]
        return "\n".join(lines)

    def _existence(self) -> str:
        expansive = self.expansive
        if self.by_order:
            others = (
                ""
                if math.isinf(self.certificate)
                else f", the other blocks by a bound of {self.certificate:.4g}"
            )
            return (
                "Invertible by order: a token is moved by earlier tokens only, so the Jacobian is triangular and the "
                f"inverse exists and is unique whatever the weights{others}."
            )
        if self.certified:
            return (
                f"Certified: the residual branch has a Lipschitz constant of at most {self.certificate:.4g}, so "
                "the inverse exists, is unique, and fixed-point iteration converges to it."
            )
        if self.lipschitz_estimate is None:
            return "Nothing is certified, and the map has no residual form to measure."
        if not expansive:
            return (
                "Nothing is certified. At these samples the residual branch is locally a contraction "
                f"(at most {float(self.lipschitz_estimate.max()):.3g}, a lower estimate); elsewhere it may not be."
            )
        return (
            f"NOT A CONTRACTION at {_samples(expansive)}: the residual branch stretches up to "
            f"{float(self.lipschitz_estimate.max()):.3g}. Fixed-point iteration need not converge."
        )

    def _table(self) -> list[str]:
        columns: dict[str, Tensor | None] = {
            "max error": self.absolute_error,
            "rel. error": self.relative_error,
            "residual": self.residual,
            "converged": self.converged,
            "evaluations": self.evaluations,
            "Lipschitz": self.lipschitz_estimate,
            "stretch": self.smallest_stretch,
            "2nd preimage": self.second_preimage_distance,
        }
        shown = {name: column for name, column in columns.items() if column is not None}
        lines = ["  sample " + " ".join(f"{name:>12}" for name in shown)]
        count = len(self.residual)
        for i in range(min(count, _ROWS)):
            lines.append(f"  {i:>6} " + " ".join(f"{_cell(column[i]):>12}" for column in shown.values()))
        if count > _ROWS:
            lines.append(f"  … and {count - _ROWS} more")
        return lines


def _where(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def _samples(indices: list[int]) -> str:
    few = ", ".join(map(str, indices[:6])) + (", …" if len(indices) > 6 else "")
    return f"{len(indices)} sample{'s' if len(indices) > 1 else ''} ({few})"


def _span(values: Tensor) -> str:
    values = values[values.isfinite()]
    low, high = float(values.min()), float(values.max())
    return f"{low:.3g}" if len(values) == 1 else f"{low:.3g} to {high:.3g}"


def _cell(value: Tensor) -> str:
    number = value.item()
    if isinstance(number, bool):
        return "yes" if number else "no"
    if isinstance(number, int):
        return str(number)
    return "–" if math.isnan(number) else f"{number:.3g}"


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
