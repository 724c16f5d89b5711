"""The attack finds a known worst point, and does not modify the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from invertible_attention.lipschitz import adversarial_lipschitz, constrain, lipschitz_upper_bound

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Branch(nn.Module):
    """Two constrained layers; ``factor`` below one makes its bound wrong."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        for layer in (self.layers[0], self.layers[2]):
            constrain(layer, 0.9)
        self.factor = factor

    def lipschitz_bound(self) -> torch.Tensor:
        return self.factor * lipschitz_upper_bound(self.layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_worst_point_of_a_known_map():
    # the slope of x³/3 − x⁵/5 is x² − x⁴, largest at √½, where it is ¼
    x = torch.tensor([[0.4], [0.5]], dtype=torch.float64)
    found = adversarial_lipschitz(lambda x: x**3 / 3 - x**5 / 5, x, steps=200)
    assert found.constant == pytest.approx(0.25, rel=1e-6)
    assert found.ratio == found.constant
    assert float(found.x.detach()) == pytest.approx(0.5**0.5, rel=1e-3)


def test_attack_approaches_but_never_exceeds_a_true_bound():
    branch = Branch()
    x = torch.randn(4, 3, dtype=torch.float64)
    before = {name: value.clone() for name, value in branch.state_dict().items()}
    input_only = adversarial_lipschitz(branch, x, steps=20)
    with_weights = adversarial_lipschitz(branch, x, steps=80, lr=0.1, parameters=list(branch.parameters()))
    assert input_only.ratio <= with_weights.ratio <= 1
    assert with_weights.ratio > 0.95
    for name, value in branch.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.requires_grad for parameter in branch.parameters())


def test_wrong_bound_is_detected_with_a_counterexample():
    branch = Branch(factor=0.8)
    parameters = list(branch.parameters())
    x = torch.randn(4, 3, dtype=torch.float64)
    found = adversarial_lipschitz(branch, x, steps=60, lr=0.1, parameters=parameters)
    assert found.ratio > 1.1
    with torch.no_grad():
        for parameter, value in zip(parameters, found.parameters, strict=True):
            parameter.copy_(value)
    jacobian = torch.func.jacrev(branch)(found.x[0])
    ratio = torch.linalg.matrix_norm(jacobian, 2) / branch.lipschitz_bound()
    assert ratio.item() == pytest.approx(found.ratio, rel=1e-6)


def test_frozen_weights_stay_frozen_after_an_error():
    weight = torch.ones(2, 2)

    def fails() -> torch.Tensor:
        raise RuntimeError("no bound")

    with pytest.raises(RuntimeError, match="no bound"):
        adversarial_lipschitz(lambda x: x @ weight, torch.ones(1, 2), parameters=[weight], bound=fails)
    assert not weight.requires_grad
    assert torch.equal(weight, torch.ones(2, 2))


def test_zero_steps_measure_the_start():
    found = adversarial_lipschitz(torch.sin, torch.tensor([[1.0]]), steps=0)
    assert found.constant == pytest.approx(torch.cos(torch.tensor(1.0)).item())
    assert torch.equal(found.x, torch.tensor([[1.0]]))


def test_attack_on_an_affine_map_is_exact():
    found = adversarial_lipschitz(lambda x: 3 * x + 1, torch.ones(1, 2), 5)
    assert found.ratio == pytest.approx(3)


def test_zero_and_infinite_bounds():
    x = torch.ones(1, 2)
    assert adversarial_lipschitz(torch.sin, x, 2, bound=lambda: torch.tensor(torch.inf)).ratio == 0
    assert adversarial_lipschitz(torch.sin, x, 2, bound=lambda: torch.tensor(0.0)).ratio == torch.inf
    assert adversarial_lipschitz(lambda x: 0 * x, x, 2, bound=lambda: torch.tensor(0.0)).ratio == 0


@pytest.mark.parametrize(("options", "message"), [({"steps": -1}, "-1"), ({"lr": 0.0}, "0.0")])
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        adversarial_lipschitz(torch.sin, torch.ones(1, 1), **options)
