"""User layers: the registered bound applies to exactly the class it was registered for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import invertible_attention as ia
from invertible_attention.lipschitz import lipschitz_upper_bound, register_lipschitz_bound


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return self.factor * x


@pytest.fixture
def scale() -> type[nn.Module]:
    class Registered(Scale):
        pass

    register_lipschitz_bound(Registered, lambda layer: layer.factor.abs())
    return Registered


def test_bound_follows_the_layers_current_weights(scale):
    layer = scale(-0.5)
    block = ia.flows.Residual(nn.Sequential(layer, nn.Tanh()))
    assert block.lipschitz_bound().item() == pytest.approx(0.5)
    block.lipschitz_bound().backward()
    assert layer.factor.grad == pytest.approx(-1)
    layer.factor.data.mul_(4)
    assert block.lipschitz_bound().item() == pytest.approx(2)


def test_subclasses_hooks_and_replaced_methods_are_not_registered(scale):
    class Other(scale):
        pass

    assert lipschitz_upper_bound(Other(0.5)) == torch.inf
    layer = scale(0.5)
    handle = layer.register_forward_hook(lambda m, x, y: 9 * y)
    assert lipschitz_upper_bound(layer) == torch.inf
    handle.remove()
    assert lipschitz_upper_bound(layer) == 0.5
    scale.forward = lambda self, x: 9 * x
    assert lipschitz_upper_bound(layer) == torch.inf
    register_lipschitz_bound(scale, 9)
    assert lipschitz_upper_bound(layer) == 9


def test_decorator_returns_the_function(scale):
    @register_lipschitz_bound(scale)
    def bound(layer):
        return 0.25

    assert bound(None) == 0.25
    assert lipschitz_upper_bound(scale(3.0)) == 0.25


def test_error_bound_uses_the_registered_certificate(scale):
    block = ia.flows.Residual(nn.Sequential(scale(-0.5), nn.Tanh())).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    solution = block.solve_inverse(block(x).detach())
    assert ((solution.value - x).norm(dim=1) <= solution.error_bound).all()
    assert (solution.error_bound < 1e-10).all()


@pytest.mark.parametrize(
    "bound", [-1.0, float("nan"), lambda layer: -torch.ones(()), lambda layer: torch.ones(2)]
)
def test_invalid_bounds_are_refused(scale, bound):
    def use():
        register_lipschitz_bound(scale, bound)
        lipschitz_upper_bound(scale(1.0))

    with pytest.raises(ValueError, match="Registered must be a scalar of at least 0"):
        use()


@pytest.mark.parametrize(("cls", "bound"), [(Scale(1.0), 1.0), (int, 1.0), (Scale, "1")])
def test_arguments_of_wrong_type_are_refused(cls, bound):
    with pytest.raises(TypeError, match="expected a"):
        register_lipschitz_bound(cls, bound)
