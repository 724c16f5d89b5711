"""Guarantees shared by every solver."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invertible_attention.solvers import Anderson, FixedPoint, NewtonKrylov, Solver
from invertible_attention.solvers.problem import Problem

SOLVERS = [FixedPoint(max_evaluations=None), Anderson(), NewtonKrylov()]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
seeds = st.integers(0, 2**31)


def true_residual(branch, x: Tensor, z: Tensor) -> Tensor:
    """The relative residual, recomputed in float64."""
    x, z = x.double().flatten(1), z.double().flatten(1)
    return (x + branch(x) - z).norm(dim=1) / (1 + z.norm(dim=1))


# Laws


@each_solver
@settings(deadline=None, max_examples=20)
@given(data=st.data(), c=st.floats(0.05, 0.99), size=st.integers(1, 20), seed=seeds)
def test_inverse_agrees_with_the_forward_map(
    contractions, solver: Solver, data, c: float, size: int, seed: int
):
    name = data.draw(st.sampled_from([name for name in contractions if name != "badly_scaled"]))
    branch = contractions[name](c, size, seed)
    x = torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z = x + branch(x)
    solution = solver.solve(branch, z, lipschitz=c)
    assert solution.converged.all()
    error = (solution.value - x).norm(dim=1)
    assert (error <= 2e-12 * (1 + z.norm(dim=1)) / (1 - c)).all()
    if c <= 0.9:
        assert (error <= 1e-10).all()


@each_solver
@settings(deadline=None, max_examples=20)
@given(data=st.data(), c=st.floats(0.05, 0.97), size=st.integers(1, 12), seed=seeds, scale=st.integers(-3, 3))
def test_error_bound_holds_in_float32(
    contractions, solver: Solver, data, c: float, size: int, seed: int, scale: int
):
    branch = contractions[data.draw(st.sampled_from(list(contractions)))](c, size, seed)
    generator = torch.Generator().manual_seed(seed)
    z = 10.0**scale * torch.randn(3, size, generator=generator)
    solution = solver.solve(branch, z, lipschitz=c)
    exact = Anderson().solve(branch, z.double(), lipschitz=c)
    error = (solution.value.double() - exact.value).norm(dim=1)
    assert (error <= solution.error_bound + exact.error_bound).all()
    # The bound is informative: not far above what tolerance and precision allow.
    size_of = z.norm(dim=1) + solution.value.norm(dim=1)
    assert (
        solution.error_bound <= (solution.residual * (1 + z.norm(dim=1)) + 1e-6 * size_of) / (1 - c)
    ).all()


@each_solver
@settings(deadline=None, max_examples=20)
@given(
    c=st.floats(0.01, 0.999),
    tolerance=st.sampled_from([1e-1, 1e-4, 1e-8, 1e-12, 1e-15]),
    size=st.integers(1, 3),
    seed=seeds,
)
def test_error_bound_holds_in_exact_arithmetic(
    solver: Solver, c: float, tolerance: float, size: int, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, size, dtype=torch.float64, generator=generator)
    weight *= c / weight.norm()
    z = torch.randn(1, size, dtype=torch.float64, generator=generator)
    solver = type(solver)(tolerance=tolerance, max_evaluations=30)
    # The Frobenius norm bounds the spectral norm; the margin covers its rounding.
    solution = solver.solve(lambda x: x @ weight.T, z, lipschitz=weight.norm() * (1 + 1e-12))
    exact = solve_exactly(weight, z[0])
    squared = sum((Fraction(v) - e) ** 2 for v, e in zip(solution.value[0].tolist(), exact, strict=True))
    assert squared <= Fraction(solution.error_bound.item()) ** 2


@each_solver
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_error_bound_is_the_documented_one(solver: Solver, dtype: torch.dtype):
    z = torch.tensor([[3.0, -4.0, 12.0], [0.1, 0.2, -0.3], [50.0, 1.0, 0.0]], dtype=dtype)
    solution = solver.solve(lambda x: 0.5 * x.sin(), z, lipschitz=0.5)
    working = dtype if dtype == torch.float64 else torch.float32
    x, z, eps = solution.value.double(), z.double(), torch.finfo(working).eps
    residual = solution.residual * (1 + z.norm(dim=1)) - eps / 2 * (x - z).norm(dim=1)
    expected = (residual + 4 * eps * (x.norm(dim=1) + z.norm(dim=1))) / (1 - 0.5)
    if dtype == working:
        torch.testing.assert_close(solution.error_bound.double(), expected, rtol=1e-3, atol=0)
    else:
        # Rounding to nearest moves an entry by at most half a unit in its last place.
        rounding = torch.finfo(dtype).eps / 2 * x.norm(dim=1)
        assert (solution.error_bound <= 1.01 * (expected + rounding)).all()
        assert (solution.error_bound > 10 * expected).any()


def solve_exactly(weight: Tensor, z: Tensor) -> list[Fraction]:
    """Solve (I + W) x = z in rational arithmetic by Gauss–Jordan elimination."""
    rows = [
        [Fraction(v) for v in row] + [Fraction(r)] for row, r in zip(weight.tolist(), z.tolist(), strict=True)
    ]
    for i, row in enumerate(rows):
        row[i] += 1
    for i in range(len(rows)):
        pivot = max(range(i, len(rows)), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for k in range(len(rows)):
            if k != i:
                rows[k] = [v - rows[k][i] * w for v, w in zip(rows[k], rows[i], strict=True)]
    return [row[-1] for row in rows]


@each_solver
@settings(deadline=None, max_examples=15)
@given(data=st.data(), gain=st.floats(0.5, 1e3), size=st.integers(1, 8), seed=seeds)
def test_converged_implies_small_residual(wild, solver: Solver, data, gain: float, size: int, seed: int):
    branch = wild[data.draw(st.sampled_from(list(wild)))](gain, size, seed)
    z = torch.randn(5, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    tolerance = 1e-8
    solution = type(solver)(tolerance=tolerance).solve(branch, z)
    recomputed = true_residual(branch, solution.value, z)
    assert (recomputed[solution.converged] <= tolerance * (1 + 1e-4)).all()
    # The other way round too: what is reported as failed has not been solved.
    assert (recomputed[~solution.converged] > tolerance * (1 - 1e-4)).all()
    assert solution.error_bound.isinf().all()


@each_solver
@settings(deadline=None, max_examples=20)
@given(data=st.data(), gain=st.floats(0.5, 1e2), size=st.integers(1, 8), seed=seeds)
def test_converged_implies_small_residual_in_float32(
    wild, solver: Solver, data, gain: float, size: int, seed: int
):
    branch = wild[data.draw(st.sampled_from(["linear", "rotation", "network", "stretching"]))](
        gain, size, seed
    )
    z = torch.randn(5, size, generator=torch.Generator().manual_seed(seed))
    solution = type(solver)().solve(branch, z)
    rounding = (branch(solution.value).double() - branch(solution.value.double())).norm(dim=1)
    slack = rounding / (1 + z.double().norm(dim=1))
    recomputed = true_residual(branch, solution.value, z)
    assert (recomputed <= 1e-6 + slack)[solution.converged].all()


@each_solver
def test_slow_contraction_is_solved_to_tolerance(solver: Solver):
    # g = -0.97 x: the Picard iterates move little long before they are near the solution.
    z = torch.ones(1, 1, dtype=torch.float64)
    solution = solver.solve(lambda x: -0.97 * x, z, lipschitz=0.97)
    assert solution.converged.all()
    assert abs(solution.value.item() - 1 / 0.03) < 1e-9


@each_solver
@settings(deadline=None, max_examples=15)
@given(data=st.data(), limit=st.integers(1, 40), gain=st.floats(0.5, 20.0), seed=seeds)
def test_evaluation_limit_is_respected(
    wild, counting, solver: Solver, data, limit: int, gain: float, seed: int
):
    branch = wild[data.draw(st.sampled_from(list(wild)))](gain, 6, seed)
    z = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    counted = counting(branch)
    solution = type(solver)(max_evaluations=limit).solve(counted.branch, z)
    assert solution.evaluations.max() <= limit
    assert sum(shape[0] for shape in counted.calls) == solution.evaluations.sum()


def test_solver_may_have_limits_of_its_own():
    class Hasty(FixedPoint):
        def evaluation_limit(self, residual: Tensor, problem: Problem) -> Tensor:
            return torch.full_like(residual, 5).long()

    solution = Hasty(max_evaluations=None).solve(lambda x: 0.99 * x.sin(), torch.randn(3, 4), lipschitz=0.99)
    assert solution.evaluations.tolist() == [5, 5, 5]


@each_solver
def test_finite_samples_are_solved_whose_norm_is_not(solver: Solver):
    z = torch.full((2, 4), 1.5e308, dtype=torch.float64)
    z[1] = 1.0
    solution = solver.solve(torch.zeros_like, z)
    assert solution.converged.all()
    assert torch.equal(solution.value, z)
    z[0, 0] = torch.inf
    solution = solver.solve(torch.zeros_like, z)
    assert solution.converged.tolist() == [False, True]
    assert solution.value[0].isnan().all()


# Independence of samples


@each_solver
def test_finished_samples_leave_the_batch(contractions, counting, solver: Solver):
    branch = contractions["network"](0.9, 8, 0)
    z = torch.randn(6, 8, dtype=torch.float64) * torch.logspace(-12, 1, 6, dtype=torch.float64)[:, None]
    z[0] = branch(torch.zeros(1, 8, dtype=torch.float64))  # solved by x = 0
    counted = counting(branch)
    solution = solver.solve(counted.branch, z, lipschitz=0.9)
    assert solution.converged.all()
    assert len(set(solution.evaluations.tolist())) > 1
    assert sum(shape[0] for shape in counted.calls) == solution.evaluations.sum()
    if not isinstance(solver, NewtonKrylov):
        expected = [
            (int((solution.evaluations > k).sum()), 8) for k in range(int(solution.evaluations.max()))
        ]
        assert counted.calls == expected


@each_solver
def test_a_solved_sample_costs_one_evaluation(counting, solver: Solver):
    counted = counting(lambda x: torch.zeros_like(x))
    solution = solver.solve(counted.branch, torch.randn(3, 4), lipschitz=0.0)
    assert counted.calls == [(3, 4)]
    assert solution.evaluations.tolist() == [1, 1, 1]
    assert solution.iterations.tolist() == [0, 0, 0]
    assert solution.residual.tolist() == [0, 0, 0]


@each_solver
@settings(deadline=None, max_examples=15)
@given(data=st.data(), seed=seeds)
def test_sample_result_is_independent_of_its_batch(contractions, solver: Solver, data, seed: int):
    branch = contractions[data.draw(st.sampled_from(list(contractions)))](0.8, 7, seed)
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1e-3, 1.0, 1.0, 30.0], dtype=torch.float64)[:, None]
    z = torch.randn(4, 7, dtype=torch.float64, generator=generator) * scale
    together = solver.solve(branch, z)
    for i in range(4):
        alone = solver.solve(branch, z[i : i + 1])
        bound = 4e-12 * (1 + z[i].norm()) / (1 - 0.8)
        assert (alone.value[0] - together.value[i]).norm() <= bound
        assert abs(int(alone.evaluations[0]) - int(together.evaluations[i])) <= 1


@each_solver
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_input_stays_in_its_sample(contractions, solver: Solver, bad: float):
    branch = contractions["attention"](0.9, 8, 0)
    z = torch.randn(4, 8, dtype=torch.float64)
    clean = solver.solve(branch, z, lipschitz=0.9)
    z[2, 5] = bad

    def finite_only(x: Tensor) -> Tensor:
        assert torch.isfinite(x).all()
        return branch(x)

    solution = solver.solve(finite_only, z, lipschitz=0.9)
    assert solution.converged.tolist() == [True, True, False, True]
    others = [0, 1, 3]
    torch.testing.assert_close(solution.value[others], clean.value[others], rtol=0, atol=1e-10)
    assert solution.value[2].isnan().all()
    assert solution.evaluations[2] == solution.iterations[2] == 0
    assert solution.residual[2].isnan()
    assert solution.error_bound[2].isinf()
    assert solution.trace is not None
    assert solution.trace[:, 2].isnan().all()


@each_solver
def test_branch_that_is_not_finite_for_one_sample(solver: Solver):
    def branch(x: Tensor) -> Tensor:
        return torch.where(x.abs().amax(dim=1, keepdim=True) > 100, torch.nan, 0.5 * x.sin())

    z = torch.tensor([[1.0, 2.0], [500.0, 1.0], [0.0, -3.0]], dtype=torch.float64)
    solution = solver.solve(branch, z, lipschitz=0.5)
    assert solution.converged.tolist() == [True, False, True]
    assert solution.residual[1].isinf()
    assert solution.error_bound[1].isinf()
    assert solution.evaluations[1] == 1
    torch.testing.assert_close(solution.value[1], z[1])


@each_solver
def test_best_iterate_is_returned_when_a_sample_fails(solver: Solver):
    def branch(x: Tensor) -> Tensor:
        return -x + x.sin() + 3  # x + g(x) = sin(x) + 3 is at least 2: no solution for z = 0

    solution = type(solver)(max_evaluations=25).solve(branch, torch.zeros(1, 1, dtype=torch.float64))
    assert not solution.converged.any()
    assert solution.trace is not None
    reported = solution.trace[:, 0].nan_to_num(nan=torch.inf).min()
    assert solution.residual[0] == pytest.approx(reported.item(), rel=1e-9)
    assert true_residual(branch, solution.value, torch.zeros(1, 1))[0] == pytest.approx(
        reported.item(), rel=1e-9
    )


# Traces


@each_solver
@settings(deadline=None, max_examples=15)
@given(data=st.data(), seed=seeds)
def test_trace_records_every_residual(contractions, solver: Solver, data, seed: int):
    branch = contractions[data.draw(st.sampled_from(list(contractions)))](0.7, 5, seed)
    z = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    solution = solver.solve(branch, z)
    trace, count = solution.trace, solution.evaluations
    assert trace is not None
    assert trace.shape == (int(count.max()), 3)
    rows = torch.arange(trace.shape[0])[:, None]
    assert (trace.isnan() == (rows >= count)).all()
    torch.testing.assert_close(trace[count - 1, torch.arange(3)], solution.residual, rtol=0, atol=0)
    torch.testing.assert_close(trace[0], true_residual(branch, z, z), rtol=1e-9, atol=1e-15)


def test_the_last_residual_is_that_of_the_trace_to_the_last_bit(contractions):
    # Computed again for the samples that did not converge alone, it was rounded differently.
    seed = 707573
    z = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    solution = FixedPoint().solve(contractions["badly_scaled"](0.7, 5, seed), z)
    assert solution.trace is not None
    assert not solution.converged.all()
    assert torch.equal(solution.trace[solution.evaluations - 1, torch.arange(3)], solution.residual)


# Shapes and dtypes


@each_solver
@pytest.mark.parametrize("shape", [(4,), (1, 3), (2, 3, 4), (2, 3, 4, 5), (2, 1, 1, 1, 1)])
def test_events_of_any_rank(solver: Solver, shape: tuple[int, ...]):
    x = torch.randn(shape, dtype=torch.float64)
    solution = solver.solve(lambda x: 0.5 * x.sin(), x + 0.5 * x.sin(), lipschitz=0.5)
    torch.testing.assert_close(solution.value, x, rtol=0, atol=1e-11)
    assert solution.converged.shape == solution.residual.shape == shape[:1]


@each_solver
@pytest.mark.parametrize("shape", [(0, 3), (0,), (3, 0), (0, 0)])
def test_empty_batch_is_solved(solver: Solver, shape: tuple[int, ...]):
    solution = solver.solve(lambda x: x, torch.zeros(shape), lipschitz=0.5)
    assert solution.value.shape == shape
    assert solution.converged.tolist() == [True] * shape[0]
    assert solution.trace is not None
    assert solution.trace.shape == (min(shape[0], 1), shape[0])
    assert solution.check() is solution


@each_solver
def test_memory_layout_does_not_matter(solver: Solver):
    weight = 0.2 * torch.randn(3, 3, 1, 1, dtype=torch.float64)

    def branch(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, weight).tanh() / 2

    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    z = x + branch(x)
    for layout in (
        z.contiguous(memory_format=torch.channels_last),
        z.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert not layout.is_contiguous()
        torch.testing.assert_close(solver.solve(branch, layout).value, x, rtol=0, atol=1e-10)


@each_solver
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_solved_in_float32(contractions, solver: Solver, dtype: torch.dtype):
    branch = contractions["attention"](0.9, 10, 0)
    z = torch.randn(5, 10).to(dtype)

    def only_float32(x: Tensor) -> Tensor:
        assert x.dtype in (torch.float32, torch.float64)
        return branch(x)

    solution = solver.solve(only_float32, z, lipschitz=0.9)
    assert solution.value.dtype == dtype
    assert solution.converged.all()
    assert (solution.residual <= 1e-6).all()
    exact = Anderson().solve(branch, z.double(), lipschitz=0.9).value
    error = (solution.value.double() - exact).norm(dim=1)
    assert (error <= solution.error_bound).all()
    assert (error > 1e-4).any()  # the cast is the larger part, and the bound covers it


@each_solver
def test_autocast_does_not_reach_the_branch(solver: Solver):
    linear = torch.nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight.mul_(0.5)
    x = torch.randn(3, 4)

    def branch(x: Tensor) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        return linear(x).tanh()

    with torch.no_grad():
        z = x + branch(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            solution = solver.solve(branch, z)
    assert solution.converged.all()
    assert solution.value.dtype == torch.float32


@each_solver
def test_no_gradients_are_recorded(solver: Solver):
    weight = torch.tensor(0.5, requires_grad=True)
    z = torch.ones(2, 2, requires_grad=True)
    solution = solver.solve(lambda x: weight * x.sin(), z, lipschitz=weight)
    for name in ("value", "residual", "error_bound"):
        assert not getattr(solution, name).requires_grad


@each_solver
def test_inputs_are_not_modified(solver: Solver):
    z = torch.randn(4, 3)
    arg = torch.rand(4, 1) / 2
    before, arg_before = z.clone(), arg.clone()
    solver.solve(lambda x, a: a * x.sin(), z, (arg,))
    assert torch.equal(z, before)
    assert torch.equal(arg, arg_before)


@each_solver
def test_arguments_follow_their_samples(solver: Solver):
    z = torch.linspace(0.1, 3, 5, dtype=torch.float64)[:, None] * torch.ones(2, dtype=torch.float64)
    rate = torch.tensor([0.0, 0.9, 0.1, 0.5, 0.3], dtype=torch.float64)[:, None]
    solution = solver.solve(lambda x, rate, mask: rate * x, z, (rate, None), lipschitz=0.9)
    torch.testing.assert_close(solution.value, z / (1 + rate), rtol=1e-11, atol=0)


# Precision


@each_solver
def test_precision_floor_is_reported_without_using_the_budget(contractions, solver: Solver):
    branch = contractions["network"](0.5, 10, 0)
    solution = type(solver)(tolerance=1e-12, max_evaluations=10_000).solve(
        branch, torch.randn(4, 10), lipschitz=0.5
    )
    assert not solution.converged.any()
    assert (solution.residual > 1e-12).all()
    assert (solution.residual < 1e-6).all()
    assert (solution.evaluations < 100).all()


def test_branch_too_large_for_the_precision_is_not_reported_as_solved():
    # In float32 the branch is known to 1e-7 of its size, which is more than 1e-6 of z.
    for dtype, solvable in ((torch.float32, False), (torch.float64, True)):
        solution = Anderson(tolerance=1e-6).solve(lambda x: 10 * x - 1e3, torch.ones(2, 3, dtype=dtype))
        assert solution.converged.all() == solvable


@each_solver
@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-20, 1e20, 1e160, 1e290])
def test_extreme_scales(solver: Solver, scale: float):
    z = scale * torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    solution = solver.solve(lambda x: -0.5 * x.roll(1, 1), z, lipschitz=0.5)
    assert solution.converged.all()
    unit = solver.solve(lambda x: -0.5 * x.roll(1, 1), z / scale, lipschitz=0.5).value
    # Tolerances are relative to 1 + ‖z‖, so tiny samples are solved to an absolute 1e-12.
    torch.testing.assert_close(solution.value / max(scale, 1), unit * min(scale, 1), rtol=0, atol=1e-11)


@each_solver
def test_float32_spans_its_range(solver: Solver):
    z = torch.tensor([[1e30, -2e30], [1e-30, 3e-30]])
    solution = solver.solve(lambda x: -0.5 * x.roll(1, 1), z, lipschitz=0.5)
    assert solution.converged.all()
    assert solution.value[0, 0].item() == pytest.approx(0.0, abs=1e25)


# Bad arguments


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("cls", [FixedPoint, Anderson, NewtonKrylov])
@pytest.mark.parametrize("value", [0, -3, 2.5, "7", True])
def test_limit_must_be_a_positive_integer(cls: type[Solver], value: object):
    with pytest.raises(ValueError, match=f"max_evaluations.*{value}"):
        cls(max_evaluations=value)  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("cls", [FixedPoint, Anderson, NewtonKrylov])
@pytest.mark.parametrize("value", [-1e-6, math.nan, math.inf, "1e-3", False])
def test_tolerance_must_be_a_number(cls: type[Solver], value: object):
    with pytest.raises(ValueError, match=f"tolerance.*{value}"):
        cls(tolerance=value)  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("untyped")
@each_solver
def test_bad_right_hand_sides(solver: Solver):
    with pytest.raises(ValueError, match=r"torch\.int64"):
        solver.solve(lambda x: x, torch.arange(3))
    with pytest.raises(ValueError, match="complex"):
        solver.solve(lambda x: x, torch.ones(3, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="scalar"):
        solver.solve(lambda x: x, torch.tensor(1.0))


@each_solver
@pytest.mark.parametrize("arg", [torch.tensor(1.0), torch.ones(2, 3)])
def test_arguments_must_have_one_entry_per_sample(solver: Solver, arg: Tensor):
    with pytest.raises(ValueError, match=r"args\[1\].*3 samples"):
        solver.solve(lambda x, a, b: x, torch.ones(3, 2), (None, arg))


@each_solver
@pytest.mark.parametrize("value", [-0.5, math.nan, torch.tensor(-1.0), torch.tensor([0.5, 0.5])])
def test_invalid_lipschitz_constant_is_refused(solver: Solver, value: float | Tensor):
    with pytest.raises(ValueError, match="lipschitz"):
        solver.solve(lambda x: 0 * x, torch.ones(3, 2), lipschitz=value)


@each_solver
@pytest.mark.parametrize("value", [1.0, math.inf, torch.tensor(math.inf), 3.0, None])
def test_uncertified_solution_has_no_error_bound(solver: Solver, value: float | Tensor | None):
    assert solver.solve(lambda x: 0.5 * x, torch.ones(3, 2), lipschitz=value).error_bound.isinf().all()


def test_a_bound_computed_in_low_precision_may_have_been_rounded_down():
    nearly_one = torch.tensor(1 - 2**-24)  # the largest float32 below 1
    solution = Anderson().solve(lambda x: 0.5 * x, torch.ones(3, 2), lipschitz=nearly_one)
    assert solution.error_bound.isinf().all()
    exact = Anderson().solve(lambda x: 0.5 * x, torch.ones(3, 2), lipschitz=nearly_one.item())
    assert exact.error_bound.isfinite().all()


# Evaluation budget from a certificate


@pytest.mark.parametrize(
    "solver", [FixedPoint(max_evaluations=None), Anderson()], ids=["FixedPoint", "Anderson"]
)
@pytest.mark.parametrize("c", [0.9, 0.97])
def test_certified_contractions_are_always_solved(contractions, solver: Solver, c: float):
    branch = contractions["rotation"](c, 400, 0)  # no Krylov space of small dimension helps
    z = torch.randn(2, 400, dtype=torch.float64)
    assert not type(solver)(max_evaluations=100).solve(branch, z).converged.any()
    solution = solver.solve(branch, z, lipschitz=c)
    assert solution.converged.all()
    worst = math.log(1e-12) / math.log(c)
    assert (solution.evaluations > 100).all()
    assert (solution.evaluations <= 3 + type(solver).evaluations_per_contraction * worst).all()


def test_without_a_certificate_the_budget_is_100():
    solution = Anderson().solve(lambda x: -x + 1, torch.zeros(1, 3, dtype=torch.float64))
    assert not solution.converged.any()
    assert solution.evaluations.item() == 100


def test_tolerance_of_zero_runs_all_evaluations(counting):
    counted = counting(lambda x: 0.5 * x)
    solution = FixedPoint(max_evaluations=60, tolerance=0.0).solve(
        counted.branch, torch.tensor([[3.0], [0.3]])
    )
    assert len(counted.calls) == 60
    assert solution.evaluations.tolist() == [60, 60]
    assert not solution.converged.any()
    torch.testing.assert_close(solution.value, torch.tensor([[2.0], [0.2]]))
