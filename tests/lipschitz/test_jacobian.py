"""Jacobian products match the dense matrix for every kind of derivative that operations define."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from invertible_attention.lipschitz.jacobian import Jacobian, inner, norm, per_sample

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class ReverseOnly(Function):
    """``x³`` without forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class ReverseOnce(ReverseOnly):
    """``x³`` that cannot be differentiated twice either."""

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


def mix(x: torch.Tensor) -> torch.Tensor:
    W = torch.linspace(-1, 1, 20, dtype=x.dtype).reshape(4, 5)
    return (x.flatten(1) @ W).sin()


@pytest.mark.parametrize(
    ("cube", "tolerance"), [(lambda x: x**3, 1e-12), (ReverseOnly.apply, 1e-12), (ReverseOnce.apply, 1e-7)]
)
def test_products_agree_with_the_dense_jacobian(cube, tolerance):
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    jacobian = Jacobian(lambda x: mix(cube(x)), x)
    dense = torch.func.vmap(torch.func.jacrev(lambda x: mix(x[None] ** 3)[0]))(x).reshape(3, 5, 4)
    v, u = torch.randn_like(x), torch.randn(3, 5, dtype=torch.float64)
    for _ in range(2):  # the second time the working method is known
        forward = torch.einsum("bij,bj->bi", dense, v.flatten(1))
        torch.testing.assert_close(jacobian.apply(v), forward, rtol=tolerance, atol=tolerance)
    backward = torch.einsum("bij,bi->bj", dense, u).reshape(x.shape)
    torch.testing.assert_close(jacobian.apply_transpose(u), backward)
    torch.testing.assert_close(jacobian.value, mix(x**3))


def test_input_and_parameters_are_not_modified():
    layer = torch.nn.Linear(2, 2)
    x = torch.randn(1, 2)
    jacobian = Jacobian(layer, x)
    jacobian.apply(torch.ones(1, 2))
    jacobian.apply_transpose(torch.ones(1, 2))
    assert not x.requires_grad
    assert layer.weight.grad is None


def test_map_independent_of_a_direction():
    jacobian = Jacobian(lambda x: x * torch.tensor([1.0, 0.0]), torch.ones(1, 2))
    assert torch.equal(jacobian.apply(torch.tensor([[0.0, 1.0]])), torch.zeros(1, 2))


def test_detached_output_is_refused():
    with pytest.raises(ValueError, match="detached"):
        Jacobian(lambda x: x.detach() * 2, torch.ones(1, 2))


def test_products_per_sample_are_computed_in_float32_or_better():
    a = torch.full((2, 1000), 0.1, dtype=torch.bfloat16)
    assert inner(a, a).dtype == torch.float32
    torch.testing.assert_close(norm(a.double()), torch.full((2,), 0.10009765625 * 1000**0.5).double())
    assert per_sample(torch.ones(2), torch.ones(2, 3, 4)).shape == (2, 1, 1)
