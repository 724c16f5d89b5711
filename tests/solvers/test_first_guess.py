"""Where solvers start: at what the branch knows of its solution, if it knows anything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import invertible_attention as ia
from invertible_attention.attention.branch import AttentionBranch
from invertible_attention.attention.evaluation import Evaluation
from invertible_attention.attention.frozen import FrozenAttentionBranch
from invertible_attention.solvers import FixedPoint, implicit_gradient
from invertible_attention.solvers.adjoint import VectorJacobian

SOLVERS = [ia.Anderson(), ia.NewtonKrylov()]


class Multiple:
    """A multiple of its input, with a multiple of the solution for a guess."""

    def __init__(self, factor: float | None) -> None:
        self.factor, self.seen = factor, []

    def __call__(self, x: Tensor, slope: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return slope[:, None] * x

    def first_guess(self, z: Tensor, slope: Tensor) -> Tensor | None:
        return None if self.factor is None else self.factor * z / (1 + slope[:, None])


def problem() -> tuple[Tensor, Tensor]:
    return torch.tensor([[3.0, -1.0], [2.0, 0.5]], dtype=torch.float64), torch.tensor([0.5, 0.25]).double()


@pytest.mark.parametrize("solver", SOLVERS, ids=["anderson", "newton-krylov"])
def test_a_right_guess_takes_one_evaluation(solver):
    z, slope = problem()
    solution = solver.solve(Multiple(1.0), z, (slope,), lipschitz=0.5)
    assert solution.converged.all()
    assert solution.evaluations.tolist() == [1, 1]
    assert solution.iterations.tolist() == [0, 0]
    torch.testing.assert_close(solution.value, z / (1 + slope[:, None]))


@pytest.mark.parametrize("solver", SOLVERS, ids=["anderson", "newton-krylov"])
@pytest.mark.parametrize("factor", [-1e300, -1e6, 0.0, 0.9, 1e6])
def test_a_wrong_guess_does_no_harm(solver, factor: float):
    z, slope = problem()
    solution = solver.solve(Multiple(factor), z, (slope,), lipschitz=0.5)
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, z / (1 + slope[:, None]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", SOLVERS, ids=["anderson", "newton-krylov"])
@pytest.mark.parametrize("most", [None, 1, 2])
def test_guesses_that_are_no_use_cost_other_samples_nothing(solver, most: int | None):
    class Guess(Multiple):
        def __call__(self, x: Tensor, slope: Tensor, factor: Tensor) -> Tensor:
            return super().__call__(x, slope) + 0.01 * x.sin()

        def first_guess(self, z: Tensor, slope: Tensor, factor: Tensor) -> Tensor:
            return factor[:, None] * z / (1 + slope[:, None])

    solver = replace(solver, max_evaluations=most or type(solver)().max_evaluations)
    z, slope = torch.randn(6, 3, dtype=torch.float64), torch.linspace(-0.5, 0.5, 6, dtype=torch.float64)
    factor = torch.tensor([1.0, -1e6, 1.0, 0.9, torch.nan, 1e9]).double()
    branch = Guess(1.0)
    together = solver.solve(branch, z, (slope, factor), lipschitz=0.6)
    assert sum(map(len, branch.seen)) <= together.evaluations.sum()
    for i in range(6):
        alone = solver.solve(Guess(1.0), z[i : i + 1], (slope[i : i + 1], factor[i : i + 1]), lipschitz=0.6)
        assert (alone.evaluations, alone.iterations) == (together.evaluations[i], together.iterations[i])
        assert alone.converged == together.converged[i]
        torch.testing.assert_close(alone.value[0], together.value[i])
        spent = len(alone.trace)
        torch.testing.assert_close(alone.trace[:, 0], together.trace[:spent, i])
        assert together.trace[spent:, i].isnan().all()


@pytest.mark.parametrize("solver", [*SOLVERS, FixedPoint()], ids=["anderson", "newton-krylov", "fixed-point"])
@pytest.mark.parametrize("factor", [None, torch.nan, torch.inf])
def test_without_a_guess_or_with_one_that_is_not_finite_solvers_start_at_z(solver, factor: float | None):
    z, slope = problem()
    branch = Multiple(factor)
    assert solver.solve(branch, z, (slope,), lipschitz=0.5).converged.all()
    torch.testing.assert_close(branch.seen[0], z, rtol=0, atol=0)


def test_the_published_iteration_starts_at_z():
    z, slope = problem()
    branch = Multiple(1.0)
    FixedPoint().solve(branch, z, (slope,), lipschitz=0.5)
    torch.testing.assert_close(branch.seen[0], z, rtol=0, atol=0)


def trained_like(constraint: ia.Certified | ia.Relaxed) -> ia.InvertibleAttention:
    torch.manual_seed(0)
    layer = ia.InvertibleAttention(6, constraint=constraint).double()
    layer.initialize(torch.rand(4, 6, 8, 8, dtype=torch.float64))
    return layer


def bound(layer: ia.InvertibleAttention) -> Evaluation:
    found = cast(Any, layer.branch).bind()
    assert isinstance(found, Evaluation)
    return found


def first_residual(layer: ia.InvertibleAttention, z: Tensor) -> Tensor:
    trace = layer.solve_inverse(z).trace
    assert trace is not None
    return trace[0]


def test_certified_attention_starts_at_its_mean_field():
    layer = trained_like(ia.Certified(0.9))
    z = layer(torch.rand(4, 6, 8, 8, dtype=torch.float64)).detach()
    branch = bound(layer)
    first = first_residual(layer, z)
    before = branch(z).flatten(1).norm(dim=1) / (1 + z.flatten(1).norm(dim=1))
    assert (first < 0.1 * before).all()
    from_z = FixedPoint(tolerance=1e-12).solve(branch, z, lipschitz=0.9)
    torch.testing.assert_close(layer.inverse(z), from_z.value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
@pytest.mark.parametrize("normalization", ["column", "row", "all"])
def test_certified_attention_starts_where_weights_follow_their_queries(normalization, outside: bool):
    torch.manual_seed(0)
    layer = ia.InvertibleAttention(6, response="embedded_gaussian", normalization=normalization).double()
    x = torch.rand(4, 6, 8, 8, dtype=torch.float64)
    layer.initialize(x)
    with torch.no_grad():
        for parameter in layer.branch.response.parameters():
            parameter.mul_(0.1)
        if outside:
            layer.branch.log_radius.copy_(0.9 * x.norm(dim=1).median().log())
    z = layer(x).detach()
    before = bound(layer)(z).flatten(1).norm(dim=1) / (1 + z.flatten(1).norm(dim=1))
    first = first_residual(layer, z)
    assert (first < (3e-3 if outside else 3e-4) * before).all()


def test_what_is_not_certified_starts_at_z():
    layer = trained_like(ia.Relaxed(0.9))
    z = layer(torch.rand(4, 6, 8, 8, dtype=torch.float64)).detach()
    before = bound(layer)(z).flatten(1).norm(dim=1) / (1 + z.flatten(1).norm(dim=1))
    torch.testing.assert_close(first_residual(layer, z), before)


def test_implicit_gradients_start_at_what_is_known_of_the_adjoint(monkeypatch: pytest.MonkeyPatch):
    layer = trained_like(ia.Certified(0.9))
    z = layer(torch.rand(4, 6, 8, 8, dtype=torch.float64)).detach().requires_grad_()
    products = []
    product = VectorJacobian.__call__

    def counted(self, u: Tensor, samples: Tensor) -> Tensor:
        products.append(u.clone())
        return product(self, u, samples)

    monkeypatch.setattr(VectorJacobian, "__call__", counted)
    branch = bound(layer)
    value = implicit_gradient(branch, layer.solve_inverse(z.detach()).value, z, solver=ia.Anderson())
    upstream = torch.randn_like(value)
    (gradient,) = torch.autograd.grad(value, z, upstream)
    unit = upstream / upstream.flatten(1).norm(dim=1)[:, None, None, None]
    part = branch.linear_part(value.detach())
    assert part is not None
    expected = part.solve(unit, transposed=True)
    torch.testing.assert_close(products[0], expected, rtol=0, atol=1e-10)
    _, back = torch.autograd.functional.vjp(lambda x: x + branch(x), value.detach(), gradient)
    torch.testing.assert_close(back, upstream, rtol=0, atol=1e-9)


class Bounded(Multiple):
    """Not finite far from zero, as the guess is."""

    def __call__(self, x: Tensor, slope: Tensor) -> Tensor:
        return torch.where(x.abs() < 100, super().__call__(x, slope), torch.nan)


@pytest.mark.parametrize("solver", SOLVERS, ids=["anderson", "newton-krylov"])
def test_a_guess_where_the_branch_is_not_finite_does_no_harm(solver):
    z, slope = problem()
    solution = solver.solve(Bounded(1e3), z, (slope,), lipschitz=0.5)
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, z / (1 + slope[:, None]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("factor", [1.0, 1e6])
def test_a_guess_is_within_the_budget(factor: float):
    z, slope = problem()
    branch = Multiple(factor)
    solution = ia.Anderson(max_evaluations=1).solve(branch, z, (slope,), lipschitz=0.5)
    assert len(branch.seen) == 1
    assert solution.evaluations.tolist() == [1, 1]
    assert solution.converged.all() == (factor == 1.0)


def test_a_guess_of_another_shape_is_refused():
    class Turned(Multiple):
        def first_guess(self, z: Tensor, slope: Tensor) -> Tensor:
            return z.mT

    z, slope = torch.ones(2, 3).double(), torch.tensor([0.5, 0.25]).double()
    with pytest.raises(ValueError, match=r"shape of z: \(2, 3\), got \(3, 2\)"):
        ia.Anderson().solve(Turned(1.0), z, (slope,))


def test_samples_of_no_value_are_not_guessed():
    assert ia.Anderson().solve(Multiple(1.0), torch.ones(2, 0), (torch.ones(2) / 2,)).converged.all()


@pytest.mark.parametrize("prior", [False, True])
def test_a_batch_without_a_finite_sample(prior: bool):
    layer = ia.InvertibleAttention(6, position_prior=ia.TorusPrior() if prior else None)
    layer.initialize(torch.rand(2, 6, 4, 4))
    solution = layer.solve_inverse(torch.full((2, 6, 4, 4), torch.nan))
    assert not solution.converged.any()
    assert solution.value.isnan().all()
    z = layer(torch.rand(2, 6, 4, 4)).detach().requires_grad_()
    (layer.inverse(z).sum() * torch.nan).backward()
    assert z.grad is not None
    assert z.grad.isnan().all()


class Preconditioned:
    """A linear map that is no contraction, with a preconditioner that is far from its inverse."""

    def __init__(self, matrix: Tensor, factor: float) -> None:
        self.matrix, self.factor = matrix, factor

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT

    def precondition(self, residual: Tensor, *, transposed: bool = False) -> Tensor:
        return self.factor * residual


@pytest.mark.parametrize("factor", [1e4, 1e8, 1e12])
def test_gradients_survive_a_preconditioner_that_is_far_off(factor: float):
    torch.manual_seed(0)
    matrix = torch.randn(30, 30).double()
    branch = Preconditioned(1.5 * matrix / torch.linalg.matrix_norm(matrix, 2), factor)
    system = torch.eye(30).double() + branch.matrix
    z = torch.randn(2, 30).double().requires_grad_()
    value = implicit_gradient(branch, torch.linalg.solve(system, z.detach().mT).mT, z, solver=ia.Anderson())
    upstream = torch.randn_like(z)
    (gradient,) = torch.autograd.grad(value, z, upstream)
    torch.testing.assert_close(gradient, torch.linalg.solve(system.mT, upstream.mT).mT, rtol=0, atol=1e-8)


def test_frozen_layers_start_at_their_mean_field():
    layer = trained_like(ia.Certified(0.9))
    z = layer(torch.rand(4, 6, 8, 8, dtype=torch.float64)).detach()
    assert isinstance(layer.branch, AttentionBranch)
    frozen = FrozenAttentionBranch(layer.branch).bind()
    torch.testing.assert_close(frozen.first_guess(z), bound(layer).first_guess(z))


@pytest.mark.parametrize("prior", [False, True])
def test_an_ensemble_is_told_what_to_do(prior: bool):
    layer = ia.InvertibleAttention(6, position_prior=ia.TorusPrior() if prior else None)
    x = torch.rand(2, 6, 4, 4)
    layer.initialize(x / 2)
    weights = {name: torch.stack([value, value]) for name, value in layer.branch.state_dict().items()}

    def solve(weights: dict[str, Tensor]) -> Tensor:
        with torch.nn.utils.stateless._reparametrize_module(layer.branch, weights):
            return ia.Anderson().solve(bound(layer), x).value

    with pytest.raises(RuntimeError, match="one by one"):
        torch.func.vmap(solve)(weights)
