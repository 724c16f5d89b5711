"""Constrained weights computed together are those computed one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from invertible_attention.flows import i_resnet
from invertible_attention.lipschitz import constrain
from invertible_attention.lipschitz import together as module_under_test
from invertible_attention.lipschitz.together import constrained_together, constrained_weight
from invertible_attention.logdet import RussianRoulette

KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: constrain(nn.Linear(3, 5), 0.7),
    "conv1d": lambda: constrain(nn.Conv1d(2, 3, 3, padding=1), 0.8, input_size=(6,)),
    "conv2d": lambda: constrain(nn.Conv2d(2, 4, 3, padding=1), 0.9, input_size=(5, 4)),
    "1x1": lambda: constrain(nn.Conv2d(4, 4, 1), 0.9, input_size=(5, 4)),
    "grouped": lambda: constrain(nn.Conv2d(4, 6, 3, padding=1, groups=2), 0.6),
    "circular": lambda: constrain(
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), 0.5, input_size=(4, 4)
    ),
    "dilated": lambda: constrain(nn.Conv2d(2, 2, 3, padding=2, dilation=2), 0.5, input_size=(6, 6)),
}


def network(kinds: list[str], scale: float, dtype: torch.dtype = torch.float64) -> nn.ModuleList:
    """Layers whose norms lie on both sides of their bounds, none of them in a branch with another."""
    layers = nn.ModuleList(nn.ModuleDict({"layer": KINDS[kind]()}) for kind in kinds).to(dtype)
    with torch.no_grad():
        for number, parameter in enumerate(layers.parameters()):
            parameter.mul_(scale * 1.7 ** (number % 3))
    return layers


def constrained(layers: nn.ModuleList) -> list[Tensor]:
    return [constrained_weight(entry["layer"]) for entry in layers]  # pyright: ignore


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=8),
    st.sampled_from([1e-6, 0.3, 1.0, 1e4]),
    st.integers(0, 2**16),
)
def test_weights_and_gradients_agree(kinds: list[str], scale: float, seed: int):
    torch.manual_seed(seed)
    layers = network(kinds, scale)
    cotangents = [torch.randn_like(weight) for weight in constrained(layers)]

    def gradients(weights: list[Tensor]) -> tuple[Tensor, ...]:
        total = torch.stack([(w * c).sum() for w, c in zip(weights, cotangents, strict=True)]).sum()
        return torch.autograd.grad(
            total, list(layers.parameters()), allow_unused=True, materialize_grads=True
        )

    alone = constrained(layers)
    with constrained_together(layers):
        together = constrained(layers)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    for a, b in zip(gradients(alone), gradients(together), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12 * float(a.detach().abs().max()))


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 5), st.sampled_from([1e-5, 1.0, 1e5]), st.integers(0, 2**16))
def test_no_norm_exceeds_its_bound(count: int, scale: float, seed: int):
    torch.manual_seed(seed)
    layers = network(["conv2d"] * count, scale, torch.float32)
    with constrained_together(layers):
        weights = constrained(layers)
    basis = torch.eye(2 * 5 * 4, dtype=torch.float64).reshape(-1, 2, 5, 4)
    for weight in weights:
        matrix = nn.functional.conv2d(basis, weight.detach().double(), padding=1).flatten(1)
        assert torch.linalg.matrix_norm(matrix, 2) <= 0.9


def test_a_zero_weight_among_others_stays_zero():
    layers = network(["conv2d", "conv2d", "linear", "linear"], 1.0)
    with torch.no_grad():
        for entry in (layers[0], layers[2]):
            entry["layer"].parametrizations.weight.original.zero_()  # pyright: ignore
    with constrained_together(layers):
        weights = constrained(layers)
    assert [bool((weight == 0).all()) for weight in weights] == [True, False, True, False]
    total = torch.stack([weight.sum() for weight in weights]).sum()
    for gradient in torch.autograd.grad(total, list(layers.parameters()), allow_unused=True):
        assert gradient is None or bool(gradient.isfinite().all())


def test_layers_of_a_kind_are_bounded_once(monkeypatch: pytest.MonkeyPatch):
    calls = []
    original = module_under_test.convolution_norm_upper_bounds

    def counting(weights: Tensor, *args: object, **kwargs: object) -> Tensor:
        calls.append(len(weights))
        return original(weights, *args, **kwargs)  # pyright: ignore

    monkeypatch.setattr(module_under_test, "convolution_norm_upper_bounds", counting)
    flow = i_resnet((2, 8, 8), levels=4, blocks=(3, 2), hidden_channels=6)
    flow.log_prob(torch.randint(0, 4, (2, 2, 8, 8)))
    # Three convolutions to a block.
    assert sorted(calls) == [2, 2, 2, 3, 3, 3]


def test_weights_are_shared_within_the_block_only():
    layers = network(["linear", "linear"], 1.0)
    with constrained_together(layers):
        first = constrained(layers)
        with constrained_together(layers):
            assert all(a is b for a, b in zip(first, constrained(layers), strict=True))
        assert all(a is b for a, b in zip(first, constrained(layers), strict=True))
    assert all(a is not b for a, b in zip(first, constrained(layers), strict=True))
    with torch.no_grad():
        layers[0]["layer"].parametrizations.weight.original.mul_(0.01)  # pyright: ignore
    with constrained_together(layers):
        assert not torch.equal(first[0], constrained(layers)[0])


def test_other_parameters_within_the_block_have_weights_of_their_own():
    layers = network(["linear", "linear"], 1.0)

    class FirstWeight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self) -> Tensor:
            return constrained(self.layers)[0]

    module = FirstWeight()
    other = {name: 3 * parameter.detach() - 1 for name, parameter in module.named_parameters()}
    expected = torch.func.functional_call(module, other, ())
    with constrained_together(module):
        assert not torch.equal(module(), expected)
        torch.testing.assert_close(torch.func.functional_call(module, other, ()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("memory_saving", [True, False])
def test_a_flow_has_the_density_and_gradients_of_its_blocks_one_by_one(
    memory_saving: bool, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    flow = i_resnet(
        (2, 8, 8),
        levels=4,
        blocks=(3, 2),
        hidden_channels=6,
        logdet=RussianRoulette(memory_saving=memory_saving),
    ).double()
    x = torch.randint(0, 4, (3, 2, 8, 8))
    flow.initialize(x)

    def run() -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(1)
        flow.zero_grad()
        value = flow.log_prob(x)
        value.sum().backward()
        return value.detach(), [p.grad.clone() for p in flow.parameters() if p.grad is not None]

    value, gradients = run()
    monkeypatch.setattr(module_under_test, "_groups", lambda module: [])
    expected, alone = run()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert len(gradients) == len(alone) == len(list(flow.parameters()))
    for a, b in zip(gradients, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * float(b.abs().max()))
