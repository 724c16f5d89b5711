from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from invertible_attention.solvers import NewtonKrylov
from invertible_attention.solvers.jacobian import JacobianProduct
from invertible_attention.solvers.problem import Problem

WEIGHT = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 4


def smooth(x: Tensor, shift: Tensor) -> Tensor:
    return torch.tanh(x @ WEIGHT.to(x.dtype) + shift)


class Once(torch.autograd.Function):
    """An operation without forward mode that can be differentiated once, as many fused kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return upstream[0] * (1 - x.tanh() ** 2)


class Offered:
    """A branch with its own Jacobian product."""

    def __call__(self, x: Tensor, shift: Tensor) -> Tensor:
        return smooth(x, shift).detach()

    def jvp(self, x: Tensor, v: Tensor, shift: Tensor) -> Tensor:
        return (1 - smooth(x, shift) ** 2) * (v @ WEIGHT)


def through_numpy(x: Tensor, shift: Tensor) -> Tensor:
    return torch.from_numpy(smooth(x, shift).detach().numpy())


BRANCHES = {
    "forward mode": (smooth, 1e-12),
    "difference": (lambda x, shift: Once.apply(x @ WEIGHT + shift), 1e-6),
    "difference, outside autograd": (through_numpy, 1e-6),
    "the branch's own": (Offered(), 1e-12),
}


@pytest.mark.parametrize("name", list(BRANCHES))
def test_product_matches_the_jacobian_of_the_selected_samples(name: str):
    branch, tolerance = BRANCHES[name]
    x, shift = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacfwd(smooth))(x, shift)
    problem = Problem(branch, x, (shift,), (6,), None, 1e-12)
    rows = torch.tensor([3, 1, 1])
    v = torch.randn(3, 6, dtype=torch.float64)
    with torch.no_grad():
        product = JacobianProduct(problem, x, smooth(x, shift))
        for _ in range(2):
            torch.testing.assert_close(
                product(v, rows), (jacobian[rows] @ v[:, :, None])[:, :, 0], rtol=tolerance, atol=tolerance
            )


@pytest.mark.parametrize("name", list(BRANCHES))
def test_newton_works_with_every_kind_of_product(name: str):
    branch, _ = BRANCHES[name]
    z, shift = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    solution = NewtonKrylov().solve(branch, z, (shift,))
    assert solution.converged.all()
    assert ((solution.value + smooth(solution.value, shift) - z).norm(dim=1) < 1e-11).all()


def test_constant_branch_has_zero_jacobian():
    problem = Problem(lambda x: torch.ones(3, 6), torch.zeros(3, 6), (), (6,), None, 1e-6)
    product = JacobianProduct(problem, torch.zeros(3, 6), torch.ones(3, 6))
    assert product(torch.randn(3, 6), torch.arange(3)).abs().max() == 0


def test_out_of_memory_is_not_treated_as_a_missing_derivative():
    def greedy(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    product = JacobianProduct(
        Problem(greedy, torch.zeros(3, 6), (), (6,), None, 1e-6), torch.zeros(3, 6), torch.zeros(3, 6)
    )
    with pytest.raises(torch.OutOfMemoryError):
        product(torch.zeros(3, 6), torch.arange(3))
