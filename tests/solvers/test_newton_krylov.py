from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invertible_attention.solvers import FixedPoint, NewtonKrylov


def gradient_of_convex(gain: float, size: int, seed: int):
    """g = ∇φ with φ convex, Lipschitz constant about ``gain``: x + g(x) is a bijection, and Picard diverges."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, size, dtype=torch.float64, generator=generator)
    weight *= gain**0.5 / torch.linalg.matrix_norm(weight, 2)
    return lambda x: (torch.tanh(x @ weight.to(x.dtype).T) + x @ weight.to(x.dtype).T) @ weight.to(x.dtype)


@settings(deadline=None, max_examples=20)
@given(gain=st.floats(2.0, 50.0), size=st.integers(1, 10), seed=st.integers(0, 2**31))
def test_monotone_branches_of_any_gain_are_solved(gain: float, size: int, seed: int):
    branch = gradient_of_convex(gain, size, seed)
    x = torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z = x + branch(x)
    solution = NewtonKrylov().solve(branch, z)
    assert solution.converged.all()
    # x + g(x) is expansive: the error is at most the residual.
    assert ((solution.value - x).norm(dim=1) <= 2e-12 * (1 + z.norm(dim=1))).all()


def test_solves_where_picard_diverges():
    branch = gradient_of_convex(20, 8, 0)
    z = torch.randn(4, 8, dtype=torch.float64)
    assert not FixedPoint().solve(branch, z).converged.any()
    assert NewtonKrylov().solve(branch, z).converged.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotation_with_large_gain(dtype: torch.dtype):
    rotation = torch.tensor([[0.0, -30.0], [30.0, 0.0]], dtype=dtype)
    x = torch.randn(5, 2, dtype=dtype)
    z = x + x @ rotation.T
    solution = NewtonKrylov(tolerance=1e-5).solve(lambda x: x @ rotation.T, z)
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, x, rtol=1e-4, atol=1e-4)


def test_convergence_is_superlinear():
    branch = gradient_of_convex(10, 6, 1)
    trace = NewtonKrylov().solve(branch, torch.randn(1, 6, dtype=torch.float64)).trace
    assert trace is not None
    values = trace[:, 0].unique_consecutive()
    assert (values[1:] < values[:-1]).all()
    ratios = values[1:] / values[:-1]
    assert ratios[-1] < 1e-3
    assert ratios[-1] < ratios[0] / 10


def test_line_search_shortens_steps_that_overshoot():
    # Newton's full step on atan diverges from here; x + g(x) = atan(x) has the solution tan(z).
    solution = NewtonKrylov().solve(lambda x: x.atan() - x, torch.tensor([[1.5]], dtype=torch.float64))
    assert solution.converged.all()
    full = solution.trace
    assert full is not None
    assert solution.value.item() == pytest.approx(torch.tensor(1.5).double().tan().item(), rel=1e-8)
    far = NewtonKrylov().solve(lambda x: (x - 8).atan() - x, torch.tensor([[0.0]], dtype=torch.float64))
    assert far.converged.all()
    assert far.value.item() == pytest.approx(8, rel=1e-8)
    assert far.trace is not None
    assert (far.trace[1:] > far.trace[:-1]).any()  # a trial step overshot and was rejected


def test_iterations_count_newton_directions_and_evaluations_products_too():
    products, evaluations = [], []

    class Linear:
        def __call__(self, x: Tensor) -> Tensor:
            evaluations.append(x.shape[0])
            return 3 * x

        def jvp(self, x: Tensor, v: Tensor) -> Tensor:
            products.append(x.shape[0])
            return 3 * v

    solution = NewtonKrylov().solve(Linear(), torch.ones(2, 3, dtype=torch.float64))
    assert solution.converged.all()
    assert solution.iterations.tolist() == [1, 1]
    assert products == [2]
    assert evaluations == [2, 2]
    assert solution.evaluations.tolist() == [3, 3]
    assert solution.trace is not None
    assert solution.trace[1].tolist() == solution.trace[0].tolist()  # a product leaves the residual as it was


def test_local_minimum_of_the_residual_ends_the_search():
    # x + g(x) = x² + 1 does not reach 0: the residual is least at x = 0, where I + J is singular.
    solution = NewtonKrylov(max_evaluations=10_000).solve(
        lambda x: x * x + 1 - x, torch.full((1, 1), 0.0, dtype=torch.float64)
    )
    assert not solution.converged.any()
    assert solution.evaluations.item() < 200


def test_singular_jacobian_at_the_start_is_reported():
    solution = NewtonKrylov().solve(lambda x: -x + 0 * x.sum(), torch.ones(2, 3, dtype=torch.float64))
    assert not solution.converged.any()
    assert solution.iterations.tolist() == [1, 1]


def test_non_contractive_relaxed_attention():
    generator = torch.Generator().manual_seed(0)
    weight = 1.5 * torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q

    def branch(x: Tensor) -> Tensor:
        scores = x @ x.mT
        return torch.softmax(scores, dim=1) @ x @ weight

    x = torch.randn(6, 10, 3, dtype=torch.float64, generator=generator) / 2
    z = x + branch(x)
    solution = NewtonKrylov().solve(branch, z)
    assert solution.converged.float().mean() > 0.5
    residual = (solution.value + branch(solution.value) - z).flatten(1).norm(dim=1)
    assert (residual[solution.converged] < 1e-10).all()


@pytest.mark.parametrize(("name", "value"), [("krylov_dimension", 0), ("forcing", -0.1), ("forcing", 0.95)])
def test_bad_arguments(name: str, value: float):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        NewtonKrylov(**{name: value})


def test_evaluation_limit_is_required():
    with pytest.raises(ValueError, match=r"max_evaluations.*None"):
        NewtonKrylov(max_evaluations=None)
