from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invertible_attention.solvers.gmres import LinearSolution, gmres


def run(matrix: Tensor, b: Tensor, tolerance: float = 1e-12, limit: int = 50) -> LinearSolution:
    return gmres(
        lambda v, rows: (matrix[rows] @ v[:, :, None])[:, :, 0],
        b,
        tolerance=torch.full(b.shape[:1], tolerance, dtype=torch.float64),
        limit=torch.full(b.shape[:1], limit),
    )


def residual(matrix: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return (b - (matrix @ x[:, :, None])[:, :, 0]).norm(dim=1) / b.norm(dim=1)


@settings(deadline=None, max_examples=25)
@given(size=st.integers(1, 15), seed=st.integers(0, 2**31))
def test_full_krylov_space_solves_the_system(size: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    matrix = (
        torch.eye(size, dtype=torch.float64)
        + 0.9 * torch.linalg.qr(torch.randn(4, size, size, dtype=torch.float64, generator=generator)).Q
    )
    b = torch.randn(4, size, dtype=torch.float64, generator=generator)
    solution = run(matrix, b, limit=size)
    torch.testing.assert_close(solution.x, torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-8)
    assert (solution.products <= size).all()


@settings(deadline=None, max_examples=25)
@given(size=st.integers(2, 12), limit=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_solution_minimizes_the_residual_over_the_krylov_space(size: int, limit: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(1, size, size, dtype=torch.float64, generator=generator)
    b = torch.randn(1, size, dtype=torch.float64, generator=generator)
    krylov = [b[0] / b.norm()]
    for _ in range(min(limit, size) - 1):
        following = matrix[0] @ krylov[-1]
        krylov.append(following / following.norm())
    space = matrix[0] @ torch.linalg.qr(torch.stack(krylov, dim=1)).Q
    orthonormal = torch.linalg.qr(space).Q
    least = (b[0] - orthonormal @ (orthonormal.T @ b[0])).norm() / b.norm()
    solution = run(matrix, b, limit=limit)
    assert residual(matrix, b, solution.x)[0].item() == pytest.approx(least.item(), abs=1e-7)
    assert solution.residual[0].item() == pytest.approx(least.item(), abs=1e-7)


def test_each_sample_stops_at_its_own_tolerance_and_limit():
    matrix = torch.eye(30, dtype=torch.float64) + torch.randn(3, 30, 30, dtype=torch.float64) / 20
    b = torch.randn(3, 30, dtype=torch.float64)
    rows_seen = []

    def product(v: Tensor, rows: Tensor) -> Tensor:
        rows_seen.append(rows.tolist())
        return (matrix[rows] @ v[:, :, None])[:, :, 0]

    tolerance = torch.tensor([1e-1, 1e-10, 1e-10], dtype=torch.float64)
    solution = gmres(product, b, tolerance=tolerance, limit=torch.tensor([50, 50, 3]))
    assert [sum(i in rows for rows in rows_seen) for i in range(3)] == solution.products.tolist()
    assert solution.products[2] == 3
    assert solution.products[0] < solution.products[1]
    assert (residual(matrix, b, solution.x)[:2] <= tolerance[:2] * 1.01).all()
    torch.testing.assert_close(residual(matrix, b, solution.x), solution.residual, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_breakdown_never_raises(dtype: torch.dtype):
    size = 5
    nilpotent = torch.diag(torch.ones(size - 1), 1)
    cases = {
        "zero": torch.zeros(size, size),
        "identity": torch.eye(size),
        "nilpotent": nilpotent,
        "rank one": torch.ones(size, size),
        "not finite": torch.full((size, size), torch.nan),
        "partly infinite": torch.diag(torch.tensor([1.0, torch.inf, 1.0, 1.0, 1.0])),
    }
    matrix = torch.stack(list(cases.values())).to(dtype)
    b = torch.ones(len(cases), size, dtype=dtype)
    solution = run(matrix, b)
    assert solution.x.isfinite().all()
    finite = [0, 1, 2, 3]
    torch.testing.assert_close(
        solution.residual[finite], residual(matrix, b, solution.x)[finite].double(), rtol=1e-4, atol=1e-6
    )
    assert solution.residual[0] == 1
    assert solution.residual[1] < 1e-6
    assert solution.products[1] == 1


def test_zero_right_hand_side_needs_no_products():
    solution = run(
        torch.eye(3, dtype=torch.float64)[None].repeat(2, 1, 1), torch.zeros(2, 3, dtype=torch.float64)
    )
    assert solution.products.tolist() == [0, 0]
    assert solution.x.abs().max() == 0
    assert solution.residual.tolist() == [0, 0]


def test_limit_of_zero_and_empty_batch():
    matrix = torch.eye(3, dtype=torch.float64)[None]
    solution = run(matrix, torch.ones(1, 3, dtype=torch.float64), limit=0)
    assert solution.products.tolist() == [0]
    assert solution.residual.tolist() == [1]
    assert run(matrix[:0], torch.ones(0, 3, dtype=torch.float64)).x.shape == (0, 3)
