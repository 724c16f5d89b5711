"""The bound of a composition holds between any two inputs, and unknown sizes are not guessed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from invertible_attention.bijection import Bijection
from invertible_attention.flows import LipschitzLinearBranch
from invertible_attention.lipschitz import constrain, known, lipschitz_upper_bound

ACTIVATIONS = [
    nn.Identity(),
    nn.ReLU(),
    nn.ReLU6(),
    nn.Hardtanh(),
    nn.Tanh(),
    nn.Softsign(),
    nn.Tanhshrink(),
    nn.LogSigmoid(),
    nn.CELU(0.3),
    nn.Softshrink(),
    nn.ELU(),
    nn.ELU(2.5),
    nn.LeakyReLU(0.1),
    nn.LeakyReLU(-3.0),
    nn.PReLU(init=1.7),
    nn.Softplus(),
    nn.Softplus(beta=5.0),
    nn.Sigmoid(),
    nn.Hardsigmoid(),
    nn.SiLU(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.Mish(),
    nn.Hardswish(),
    nn.SELU(),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activation_constant_is_the_largest_slope(activation):
    x = torch.linspace(-30, 30, 600_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(activation.double()(x).sum(), x)
    steepest = slope.abs().max().item()
    bound = lipschitz_upper_bound(activation).item()
    assert steepest <= bound <= steepest * (1 + 1e-4)


def branch() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ELU(),
        nn.Conv2d(8, 8, 1),
        nn.SiLU(),
        nn.Conv2d(8, 4, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(36, 5),
        nn.LeakyReLU(),
    ).double()


@pytest.mark.parametrize("size", [(6, 6), None])
def test_bound_of_a_composition_holds_locally_and_is_the_product(size):
    module = branch().eval()
    bound = lipschitz_upper_bound(module, size)
    x = torch.randn(8, 3, 6, 6, dtype=torch.float64)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: module(x[None])[0]))(x).reshape(8, 5, -1)
    assert (torch.linalg.matrix_norm(jacobians, 2) <= bound).all()
    product = torch.stack(
        [
            lipschitz_upper_bound(module[0], size),
            lipschitz_upper_bound(module[2], size),
            lipschitz_upper_bound(module[3]),
            lipschitz_upper_bound(module[4], size),
            lipschitz_upper_bound(module[7]),
        ]
    ).prod()
    torch.testing.assert_close(bound, product)


def test_bound_is_tight_for_orthogonal_layers():
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).double()
    for layer in (module[0], module[2]):
        nn.init.orthogonal_(layer.weight)
    assert 1 <= lipschitz_upper_bound(module) <= 1.015**2


def test_input_size_follows_the_strides():
    # The second convolution sees 2×2, where zero padding leaves much less of it than on larger inputs.
    module = nn.Sequential(nn.Conv1d(1, 1, 1, stride=4), nn.Conv1d(1, 1, 3, padding=1))
    expected = lipschitz_upper_bound(module[0]) * lipschitz_upper_bound(module[1], (2,))
    torch.testing.assert_close(lipschitz_upper_bound(module, (8,)), expected)
    assert lipschitz_upper_bound(module, (8,)) < lipschitz_upper_bound(module)


def test_input_size_is_unknown_after_reshaping():
    module = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 4, 3, padding=1))
    assert lipschitz_upper_bound(module, (6, 6)) == lipschitz_upper_bound(module)


def test_constrained_layers_are_bounded_by_the_weight_they_use():
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ELU(), nn.Conv2d(8, 3, 3, padding=1)).double()
    for layer in (module[0], module[2]):
        nn.init.normal_(layer.weight)
        constrain(layer, 0.9, input_size=(8, 8))
    assert 0.8 <= lipschitz_upper_bound(module, (8, 8)) <= 0.81 * (1 + 1e-12)


def test_gradients_reach_every_weight():
    module = branch().eval()
    lipschitz_upper_bound(module).backward()
    for layer in module:
        if hasattr(layer, "weight"):
            assert layer.weight.grad.abs().sum() > 0
    slope = nn.PReLU(2, init=2.0)
    lipschitz_upper_bound(slope).backward()
    assert slope.weight.grad.sum() == 1


class Certified(nn.Module):
    def lipschitz_bound(self) -> torch.Tensor:
        return torch.tensor(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x.sin()


class Block(Bijection):
    def lipschitz_bound(self) -> torch.Tensor:
        return torch.tensor(0.5)

    def forward_and_logdet(self, x, *, context=None, mask=None):
        return x + 0.5 * x.sin(), x

    def inverse_and_logdet(self, z, *, context=None, mask=None):
        return z, z


def test_modules_that_know_their_own_bound():
    assert lipschitz_upper_bound(nn.Sequential(Certified(), nn.Sigmoid())) == pytest.approx(0.125, rel=1e-6)
    # an invertible block's own bound is that of its branch
    assert lipschitz_upper_bound(Block()) == 1.5


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.BatchNorm1d(3), "BatchNorm1d"),
        (nn.Sequential(nn.ReLU(), nn.Sequential(nn.Softmax(dim=1))), "Softmax"),
        (nn.Dropout(0.5), "eval"),
        (nn.Softplus(threshold=1.0), "threshold 1"),
        (nn.Conv1d(2, 2, 3, padding=1, padding_mode="replicate"), "replicate"),
    ],
)
def test_unknown_input_size_is_not_guessed(module, message):
    assert lipschitz_upper_bound(module) == torch.inf
    with pytest.raises(ValueError, match=message):
        lipschitz_upper_bound(module, strict=True)


def test_padding_may_be_a_string():
    weight = nn.Conv1d(2, 2, 3, padding="valid")
    assert lipschitz_upper_bound(nn.Sequential(weight, nn.Conv1d(2, 2, 3)), (6,)) > 0


def test_mismatched_input_size_is_refused():
    with pytest.raises(ValueError, match=r"\(6, 6\)"):
        lipschitz_upper_bound(nn.Conv1d(2, 2, 3), (6, 6))


def test_too_large_kernel_is_refused():
    with pytest.raises(ValueError, match=r"\(2,\)"):
        lipschitz_upper_bound(nn.Conv1d(1, 1, 3), (2,))


def test_each_module_is_looked_at_once(monkeypatch: pytest.MonkeyPatch):
    looked_at = []
    plain = known._altered

    def counting(module: nn.Module, methods: set[str]) -> str | None:
        looked_at.append(module)
        return plain(module, methods)

    monkeypatch.setattr(known, "_altered", counting)
    branch = LipschitzLinearBranch(2, 4, activation="lipswish")
    for bound in (lambda: lipschitz_upper_bound(branch), branch.lipschitz_bound):
        for _ in range(2):
            looked_at.clear()
            assert bound() < 1
            assert sorted(map(id, looked_at)) == sorted(map(id, branch.modules()))
    # And again, as anything may have happened since.
    branch.activations[0].register_forward_hook(lambda *args: None)
    assert lipschitz_upper_bound(branch) == branch.lipschitz_bound() == torch.inf
