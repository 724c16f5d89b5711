"""What a solver hands back, and the error that says which samples it could not solve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invertible_attention._mapped import is_mapped, plain

__all__ = ["ConvergenceError", "Solution"]

_NAMED_SAMPLES = 8

_REMEDIES = (
    "Remedies: raise max_evaluations; loosen tolerance, or solve in float64 where rounding is the limit; "
    "use a certified constraint, under which the inverse exists and is found; try NewtonKrylov where the "
    "branch is not a contraction. A map that is not injective has no inverse: no solver recovers its input."
)


@dataclass(frozen=True)
class Solution:
    r"""The solution of :math:`x + g(x) = z` for a batch, with its status per sample.

    Args:
        value: the iterate with the smallest residual, in the shape and dtype of :math:`z`; NaN where
            :math:`z` itself is not finite.
        converged: whether ``residual <= tolerance``. The residual is always one that was evaluated at
            the returned value, never predicted.
        iterations: steps taken from the first guess.
        evaluations: calls of the branch spent on the sample; a Jacobian–vector product counts as one.
        residual: :math:`(\|x + g(x) - z\| + \frac{\epsilon}{2}\|x - z\|) / (1 + \|z\|)`, with Euclidean norms over
            the flattened sample. The second term is the rounding of :math:`g(x)` to the working
            precision, below which no residual can be known; it is far below the tolerance except where
            the branch is much larger than :math:`z`. For ``bfloat16`` and ``float16`` it is the residual
            of the ``float32`` solution that was cast to ``value``. NaN where :math:`z` is not finite,
            infinite where the branch was not finite at any iterate.
        error_bound: an upper bound of :math:`\|x - x^\star\|`, where :math:`x^\star` is the exact solution:
            :math:`(\|x + g(x) - z\| + 4\epsilon(\|x\| + \|z\|)) / (1 - c)`, plus the error of casting
            ``value`` to half precision. The allowance of :math:`4\epsilon` covers the rounding of a
            branch whose own error is of the order of its input's. Infinite without a certificate
            :math:`c < 1`.
        trace: the residual after each evaluation (rows), per sample (columns), NaN once the sample has
            finished. An evaluation spent on a Jacobian–vector product repeats the residual before it.
    """

    value: Float[Tensor, "batch *event"]
    converged: Bool[Tensor, " batch"]
    iterations: Int[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    residual: Float[Tensor, " batch"]
    error_bound: Float[Tensor, " batch"]
    trace: Float[Tensor, "evaluations batch"] | None = None

    def check(self) -> Solution:
        """Return this solution, or raise if any sample failed.

        Raises:
            ConvergenceError: some samples did not converge. The others are in ``error.solution``.
        """
        if not bool(self.converged.all()):
            raise ConvergenceError(self)
        return self


class ConvergenceError(RuntimeError):
    """Some samples of a batch could not be solved.

    Args:
        solution: the solution of the whole batch. Samples that did converge are good as they are. Those that
            :func:`torch.func.vmap` maps over become one batch.
        problem: what was being solved, in words that finish "did not converge in …".

    Attributes:
        solution: the same, for the caller that wants to keep what was solved.
    """

    def __init__(self, solution: Solution, problem: str = "the inverse") -> None:
        self.solution = solution = _in_one_batch(solution)
        self.problem = problem
        super().__init__(_describe(solution, problem))

    def __reduce__(self) -> tuple[type[ConvergenceError], tuple[Solution, str]]:
        # The default would rebuild the error from its message, which loses the solution between processes.
        return type(self), (self.solution, self.problem)


def _in_one_batch(solution: Solution) -> Solution:
    if not is_mapped((solution.converged,)):
        return solution
    return Solution(
        value=plain(solution.value).reshape(-1, *solution.value.shape[1:]),
        converged=plain(solution.converged).flatten(),
        iterations=plain(solution.iterations).flatten(),
        evaluations=plain(solution.evaluations).flatten(),
        residual=plain(solution.residual).flatten(),
        error_bound=plain(solution.error_bound).flatten(),
        trace=None if solution.trace is None else plain(solution.trace).movedim(-2, 0).flatten(1),
    )


def _describe(solution: Solution, problem: str) -> str:
    failed = torch.nonzero(~solution.converged).flatten().tolist()
    batch = solution.converged.numel()
    residuals = solution.residual.tolist()
    evaluations = solution.evaluations.tolist()
    bad_input = [index for index in failed if residuals[index] != residuals[index]]

    def name(index: int) -> str:
        if residuals[index] != residuals[index]:
            return f"{index} (input not finite)"
        return f"{index} (residual {residuals[index]:.2e} after {evaluations[index]} evaluations)"

    names = ", ".join(name(index) for index in failed[:_NAMED_SAMPLES])
    if len(failed) > _NAMED_SAMPLES:
        names += f" and {len(failed) - _NAMED_SAMPLES} more"
    message = f"{len(failed)} of {batch} samples did not converge in {problem}: {names}."
    if bad_input:
        message += f" {len(bad_input)} of them had NaN or infinity in the input."
    if len(bad_input) < len(failed):
        message += f" {_REMEDIES}"
    return message
