from __future__ import annotations

import math
import pickle

import pytest
import torch

from invertible_attention.solvers import ConvergenceError, Solution


def make(converged: list[bool], residual: list[float], evaluations: int = 7) -> Solution:
    n = len(converged)
    return Solution(
        value=torch.arange(n, dtype=torch.float64)[:, None],
        converged=torch.tensor(converged),
        iterations=torch.full((n,), evaluations - 1),
        evaluations=torch.full((n,), evaluations),
        residual=torch.tensor(residual, dtype=torch.float64),
        error_bound=torch.full((n,), math.inf, dtype=torch.float64),
    )


def test_check_returns_a_converged_solution_unchanged():
    solution = make([True, True], [0.0, 1e-9])
    assert solution.check() is solution


def test_check_raises_with_the_solution_attached():
    solution = make([True, False], [0.0, 0.5])
    with pytest.raises(ConvergenceError) as caught:
        solution.check()
    assert caught.value.solution is solution


def test_message_names_the_samples_their_residuals_and_remedies():
    message = str(ConvergenceError(make([True, False, True, False], [0.0, 0.25, 0.0, 1e-3])))
    assert "2 of 4 samples" in message
    assert "1 (residual 2.50e-01 after 7 evaluations)" in message
    assert (
        "inverse: 1 (residual 2.50e-01 after 7 evaluations), 3 (residual 1.00e-03 after 7 evaluations). "
        in message
    )
    assert "0 (" not in message
    assert "2 (" not in message
    for remedy in ("max_evaluations", "tolerance", "float64", "NewtonKrylov", "certified"):
        assert remedy in message
    assert "infinity" not in message


def test_message_points_to_bad_input():
    message = str(ConvergenceError(make([True, False], [0.0, math.nan])))
    assert "1 (input not finite)" in message
    assert "1 of them had NaN or infinity in the input" in message
    assert "Remedies" not in message


def test_message_covers_mixed_failures():
    message = str(ConvergenceError(make([False, False], [0.5, math.nan])))
    assert "1 (input not finite)" in message
    assert "Remedies" in message


@pytest.mark.parametrize(("failures", "tail"), [(8, None), (9, "and 1 more"), (500, "and 492 more")])
def test_message_stays_short(failures: int, tail: str | None):
    message = str(ConvergenceError(make([False] * failures, [0.5] * failures)))
    assert message.count("(residual") == 8
    assert ("more" in message.split("Remedies")[0]) == (tail is not None)
    assert tail is None or tail in message


def test_message_names_the_equation():
    assert "in the adjoint system" in str(ConvergenceError(make([False], [0.5]), "the adjoint system"))


def test_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(ConvergenceError(make([True, False], [0.0, 0.5]), "a test")))
    assert isinstance(error, ConvergenceError)
    assert str(error) == str(ConvergenceError(make([True, False], [0.0, 0.5]), "a test"))
    assert error.solution.converged.tolist() == [True, False]


def test_solutions_are_frozen():
    with pytest.raises(AttributeError):
        make([True], [0.0]).value = torch.zeros(1)  # pyright: ignore[reportAttributeAccessIssue]
