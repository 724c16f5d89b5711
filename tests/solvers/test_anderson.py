from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invertible_attention.solvers import Anderson, FixedPoint


@settings(deadline=None, max_examples=20)
@given(c=st.floats(0.3, 0.99), size=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_linear_problems_are_solved_in_as_many_steps_as_dimensions(
    contractions, c: float, size: int, seed: int
):
    # With memory for every dimension it is GMRES: at most size + 1 directions, and the first and last evaluation.
    branch = contractions["linear"](c, size, seed)
    z = torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    solution = Anderson(memory=size, tolerance=1e-8).solve(branch, z)
    assert solution.converged.all()
    assert (solution.evaluations <= size + 3).all()


@settings(deadline=None, max_examples=20)
@given(data=st.data(), c=st.floats(0.5, 0.99), seed=st.integers(0, 2**31), certified=st.booleans())
def test_never_much_slower_than_picard(contractions, data, c: float, seed: int, certified: bool):
    branch = contractions[data.draw(st.sampled_from(list(contractions)))](c, 30, seed)
    z = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    lipschitz = c if certified else None
    picard = FixedPoint(max_evaluations=5000, tolerance=1e-9).solve(branch, z)
    anderson = Anderson(max_evaluations=5000, tolerance=1e-9).solve(branch, z, lipschitz=lipschitz)
    assert anderson.converged.all()
    assert (anderson.evaluations <= picard.evaluations + 3).all()


@pytest.mark.parametrize("seed", range(3))
def test_far_fewer_evaluations_than_picard_with_few_slow_directions(seed: int):
    generator = torch.Generator().manual_seed(seed)
    rates = torch.full((1, 200), 0.1, dtype=torch.float64)
    rates[0, :3] = torch.tensor([0.9, -0.9, 0.8])
    z = torch.randn(4, 200, dtype=torch.float64, generator=generator)

    def branch(x):
        return (rates * x).sin()

    picard = FixedPoint(max_evaluations=1000).solve(branch, z)
    anderson = Anderson().solve(branch, z)
    assert anderson.converged.all()
    assert (3 * anderson.evaluations < picard.evaluations).all()


# Singular least-squares problems, where other implementations raise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("regularization", [0.0, 1e-10])
@pytest.mark.parametrize("memory", [1, 5, 12])
def test_singular_least_squares_systems_are_handled(dtype: torch.dtype, regularization: float, memory: int):
    solver = Anderson(memory=memory, regularization=regularization)
    branches = {
        "zero": lambda x: torch.zeros_like(x),
        "constant": lambda x: torch.full_like(x, 2.5),
        "one direction": lambda x: 0.9 * x.mean(dim=1, keepdim=True).expand_as(x),
        "multiple of the identity": lambda x: 0.5 * x,
        "piecewise constant": lambda x: 0.1 * torch.sign(x),
    }
    for size in (1, 2, 3, 10):
        z = torch.randn(4, size, dtype=dtype)
        for name, branch in branches.items():
            solution = solver.solve(branch, z)
            assert solution.value.isfinite().all(), name
            if name != "piecewise constant":
                assert solution.converged.all(), name


def test_batch_with_one_singular_sample_solves_the_others():
    rate = torch.tensor([[0.0], [0.9], [0.5]], dtype=torch.float64)
    z = torch.randn(3, 6, dtype=torch.float64)
    solution = Anderson().solve(lambda x, rate: rate * x.roll(1, 1).sin() + (rate == 0), z, (rate,))
    assert solution.converged.all()


# The safeguard


def misleading(x: Tensor) -> Tensor:
    """A contraction whose slope jumps between -0.9 and 0.9 on a fine scale: secants are misleading."""
    folded = torch.remainder(x, 0.2)
    return 0.9 * torch.minimum(folded, 0.2 - folded)


@pytest.mark.parametrize("lipschitz", [0.9, None])
@pytest.mark.parametrize("memory", [1, 5])
def test_contraction_on_which_extrapolation_fails_is_solved(lipschitz: float | None, memory: int):
    z = torch.randn(50, 4, dtype=torch.float64)
    solution = Anderson(memory=memory, max_evaluations=2000).solve(misleading, z, lipschitz=lipschitz)
    assert solution.converged.all()
    assert solution.trace is not None
    # Some extrapolations really were rejected: the residual went up.
    assert (solution.trace[1:] > solution.trace[:-1]).any()


@pytest.mark.parametrize("lipschitz", [0.9, 0.99])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31))
def test_residual_shrinks_at_the_guaranteed_rate_over_any_window(lipschitz: float, seed: int):
    z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def branch(x):
        return misleading(x) * (lipschitz / 0.9)

    trace = Anderson().solve(branch, z, lipschitz=lipschitz).trace
    assert trace is not None
    best = trace.nan_to_num(nan=torch.inf).cummin(dim=0).values
    best = torch.where(trace.isnan(), torch.nan, best)
    for n in range(1, len(best)):
        ratio = (best[n:] - 1e-14) / best[:-n]
        assert (ratio[~ratio.isnan()] <= lipschitz ** ((n - 1) / 2) * (1 + 1e-9)).all()


class Preconditioned:
    """A branch with a preconditioner of a given factor, right or wrong."""

    def __init__(self, branch, factor: float):
        self.branch, self.factor = branch, factor

    def __call__(self, x: Tensor) -> Tensor:
        return self.branch(x)

    def precondition(self, residual: Tensor) -> Tensor:
        return self.factor * residual


def test_exact_preconditioner_solves_at_once():
    z = torch.randn(5, 4, dtype=torch.float64)
    solution = Anderson().solve(Preconditioned(lambda x: -0.9 * x, 10.0), z, lipschitz=0.9)
    assert solution.converged.all()
    assert (solution.evaluations == 2).all()


@pytest.mark.parametrize("factor", [-3.0, 0.0, 1e30, float("nan")])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_wrong_preconditioner_costs_one_evaluation_and_keeps_the_guarantee(factor: float, seed: int):
    z = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for branch in (misleading, lambda x: 0.9 * x.roll(1, 1).sin()):
        solution = Anderson().solve(Preconditioned(branch, factor), z, lipschitz=0.9)
        plain = Anderson().solve(branch, z, lipschitz=0.9)
        assert solution.converged.all()
        assert solution.trace is not None
        best = solution.trace.nan_to_num(nan=torch.inf).cummin(dim=0).values
        n = torch.arange(1, len(best), dtype=torch.float64)[:, None]
        shrunk = best[1:] - 1e-14 <= best[0] * 0.9 ** ((n - 1) / 2) * (1 + 1e-9)
        assert (shrunk | solution.trace[1:].isnan()).all()
        if branch is not misleading:
            assert (solution.evaluations <= plain.evaluations + 1).all()


@pytest.mark.parametrize("memory", [1, 3])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31))
def test_residual_of_a_contraction_never_stalls_even_without_a_certificate(memory: int, seed: int):
    z = torch.randn(10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    trace = Anderson(memory=memory, tolerance=1e-9).solve(misleading, z).trace
    assert trace is not None
    best = trace.nan_to_num(nan=torch.inf).cummin(dim=0).values
    best = torch.where(trace.isnan(), torch.nan, best)
    window = memory + 2  # memory + 1 evaluations without success, and the Picard step
    ratio = best[window:] / best[:-window]
    assert (ratio[~ratio.isnan()] <= 0.999).all()


def test_steep_branches_need_shorter_steps():
    # Picard and the first extrapolations overshoot by orders of magnitude.
    z = torch.tensor([[3.0], [10.0], [30.0], [-100.0]], dtype=torch.float64)
    solution = Anderson().solve(lambda x: 10 * x**3, z)
    assert solution.converged.all()
    torch.testing.assert_close(solution.value + 10 * solution.value**3, z, rtol=0, atol=1e-9)


def test_expansive_branches_can_still_be_solved():
    # g = -2x, where Picard diverges: I + J = -1 is as invertible as 1.
    z = torch.randn(3, 1, dtype=torch.float64)
    solution = Anderson().solve(lambda x: -2 * x, z)
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, -z, rtol=1e-11, atol=1e-11)


def test_sample_recovers_from_non_finite_iterates():
    # The first Picard step leaves the domain of the logarithm; shorter ones do not.
    def branch(x):
        return 10 * torch.log(x)

    z = torch.tensor([[5.0], [2.0]], dtype=torch.float64)
    assert not torch.isfinite(branch(z - branch(z))).any()
    solution = Anderson().solve(branch, z)
    assert solution.converged.all()
    torch.testing.assert_close(solution.value + branch(solution.value), z, rtol=0, atol=1e-10)


# Arguments


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("memory", [0, -1, 2.0, None])
def test_memory_must_be_a_positive_integer(memory: object):
    with pytest.raises(ValueError, match=f"memory.*{memory}"):
        Anderson(memory=memory)  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("regularization", [-1e-9, float("nan"), "small"])
def test_regularization_must_be_a_number(regularization: object):
    with pytest.raises(ValueError, match=f"regularization.*{regularization}"):
        Anderson(regularization=regularization)  # pyright: ignore[reportArgumentType]


class Scaled:
    """``g(x) = gain x`` with the exact inverse of ``1 + gain``."""

    def __init__(self, gain: float) -> None:
        self.gain = gain

    def __call__(self, x: Tensor) -> Tensor:
        return self.gain * x

    def precondition(self, residual: Tensor) -> Tensor:
        return residual / (1 + self.gain)


@pytest.mark.parametrize(("dtype", "gain"), [(torch.float32, 10.0), (torch.float64, 200.0)])
def test_exact_preconditioner_leads_to_the_solution_in_a_step(dtype: torch.dtype, gain: float):
    # Residuals are ``gain`` times as large as what is left of them: their rounding must not be added to the iterate.
    solution = Anderson().solve(Scaled(gain), torch.randn(500, 6, dtype=dtype))
    assert (solution.evaluations == 2).all()


def test_rounding_of_large_residuals_does_not_slow_down():
    gain, generator = 1e6, torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix = 0.3 * torch.eye(6, dtype=torch.float64) + root @ root.T / 6
    matrix = (gain * matrix / torch.linalg.matrix_norm(matrix, 2)).float()

    class Branch(Scaled):
        def __call__(self, x: Tensor) -> Tensor:
            return x @ matrix + 0.3 * x.sin()

    solution = Anderson().solve(Branch(gain), torch.randn(150, 6, generator=generator))
    assert solution.converged.all()
    assert solution.evaluations.float().mean() < 21


def test_infinite_difference_of_finite_residuals_is_not_used():
    def solve(*spikes: float) -> int:
        values = iter(spikes)

        def branch(x: Tensor) -> Tensor:
            return torch.full_like(x, next(values, 0.0)) + 0.1 * x.clamp(-1, 1)

        solution = Anderson().solve(branch, torch.tensor([[0.5]]))
        assert solution.converged.all()
        return int(solution.evaluations)

    # The second difference is beyond the largest number there is, as an accelerated step after it would be.
    assert solve(3e38, -0.9e38) == 9
