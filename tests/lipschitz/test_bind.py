"""A bound module matches the module and is independent of later changes; norms are computed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import invertible_attention as ia
from invertible_attention import flows
from invertible_attention.attention.branch import AttentionBranch
from invertible_attention.flows import i_resnet
from invertible_attention.lipschitz import (
    Geometry,
    SpectralNormConstraint,
    constrain,
    convolution_norm_upper_bound,
)
from invertible_attention.lipschitz import bind as module_under_test
from invertible_attention.lipschitz.bind import bind
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
    """Layers with norms on both sides of their limits, each in its own branch."""
    layers = nn.ModuleList(nn.ModuleDict({"layer": KINDS[kind]()}) for kind in kinds).to(dtype)
    with torch.no_grad():
        for number, parameter in enumerate(layers.parameters()):
            parameter.mul_(scale * 1.7 ** (number % 3))
    return layers


def constrained(layers: nn.ModuleList) -> list[Tensor]:
    return [entry["layer"].weight for entry in layers]  # pyright: ignore


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
    together = constrained(bind(layers))
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    for a, b in zip(gradients(alone), gradients(together), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12 * float(a.detach().abs().max()))


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 5), st.sampled_from([1e-5, 1.0, 1e5]), st.integers(0, 2**16))
def test_no_norm_exceeds_its_bound(count: int, scale: float, seed: int):
    torch.manual_seed(seed)
    layers = network(["conv2d"] * count, scale, torch.float32)
    weights = constrained(bind(layers))
    basis = torch.eye(2 * 5 * 4, dtype=torch.float64).reshape(-1, 2, 5, 4)
    for weight in weights:
        matrix = nn.functional.conv2d(basis, weight.detach().double(), padding=1).flatten(1)
        assert torch.linalg.matrix_norm(matrix, 2) <= 0.9


@pytest.mark.parametrize(
    "settings", [{}, {"input_size": (5, 4)}, {"geometry": Geometry(groups=2), "iterations": 5}]
)
def test_norms_with_other_settings_than_of_constrain(settings: dict[str, Any]):
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=settings.get("geometry", Geometry()).groups)
    norm = partial(convolution_norm_upper_bound, **settings)
    parametrize.register_parametrization(layer, "weight", SpectralNormConstraint(0.1, norm))
    torch.testing.assert_close(bind(layer).weight, layer.weight)


def test_a_zero_weight_among_others_stays_zero():
    layers = network(["conv2d", "conv2d", "linear", "linear"], 1.0)
    with torch.no_grad():
        for entry in (layers[0], layers[2]):
            entry["layer"].parametrizations.weight.original.zero_()  # pyright: ignore
    weights = constrained(bind(layers))
    assert [bool((weight == 0).all()) for weight in weights] == [True, False, True, False]
    total = torch.stack([weight.sum() for weight in weights]).sum()
    for gradient in torch.autograd.grad(total, list(layers.parameters()), allow_unused=True):
        assert gradient is None or bool(gradient.isfinite().all())


def test_layers_of_a_flow_are_bounded_together(monkeypatch: pytest.MonkeyPatch):
    calls = []
    original = module_under_test.norm_upper_bounds

    def counting(operators: Sequence[Any], **kwargs: Any) -> Any:
        calls.append(len(operators))
        return original(operators, **kwargs)

    monkeypatch.setattr(module_under_test, "norm_upper_bounds", counting)
    flow = i_resnet((2, 8, 8), levels=4, blocks=(3, 2), hidden_channels=6)
    flow.log_prob(torch.randint(0, 4, (2, 2, 8, 8)))
    # One call for the flow, whatever the shapes of its three and two blocks.
    assert len(calls) == 1


def test_an_inverse_and_its_logdet_are_of_weights_computed_once(monkeypatch: pytest.MonkeyPatch):
    calls, compute = [], AttentionBranch._norms
    monkeypatch.setattr(AttentionBranch, "_norms", lambda self: calls.append(self) or compute(self))
    layer = ia.InvertibleAttention(4)
    z = layer(torch.randn(2, 4, 3, 3))
    calls.clear()
    x, logdet = layer.inverse_and_logdet(z)
    assert len(calls) == 1
    (x.sum() + logdet.sum()).backward()
    assert len(calls) == 1


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
    monkeypatch.setattr(module_under_test, "_kind", id)
    expected, alone = run()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert len(gradients) == len(alone) == len(list(flow.parameters()))
    for a, b in zip(gradients, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * float(b.abs().max()))


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Half(flows.LipschitzLinearBranch):
    """Overrides the function of the branch it inherits from."""

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, context, mask) / 2


def hooked(change: Callable[[Tensor], Tensor]) -> nn.Module:
    branch = flows.LipschitzLinearBranch(3, 4)
    branch.layers[1].register_forward_hook(lambda layer, args, output: change(output))
    return branch


def parametrized() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), constrain(nn.Linear(4, 3), 0.5))
    parametrize.register_parametrization(net[0], "weight", Twice())
    parametrize.register_parametrization(net[0], "bias", Twice())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.3)
    return net


def patched() -> nn.Module:
    branch = flows.LipschitzLinearBranch(3, 4)
    plain = branch.forward
    branch.forward = lambda *args: plain(*args) / 2
    return branch


def tied() -> nn.Module:
    layer = constrain(nn.Linear(3, 3), 0.5)
    return nn.Sequential(layer, nn.Tanh(), layer)


def attention(**arguments: object) -> nn.Module:
    layer = ia.InvertibleAttention(3, **arguments).eval()  # pyright: ignore
    layer.initialize(torch.randn(8, 3, 4))
    return layer.branch


BRANCHES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: flows.LipschitzLinearBranch(3, 4),
    "convolution": lambda: flows.LipschitzConvBranch(3, 4, (4,), activation="lipswish"),
    "certified": lambda: attention(response="dot_product"),
    "relaxed": lambda: attention(constraint=ia.Relaxed(0.9, constrain_response=True)),
    "parametrized": parametrized,
    "spectral_norm": lambda: nn.Sequential(spectral_norm(nn.Linear(3, 3)), nn.Sigmoid()).eval(),
    "weight_norm": lambda: nn.Sequential(weight_norm(nn.Linear(3, 3)), nn.Sigmoid()),
    "tied": tied,
    "subclass": lambda: Half(3, 4),
    "hooked": lambda: hooked(lambda output: output / 2),
    "patched": patched,
}
# A function replacing forward() refers to its original module.
ISOLATED = [kind for kind in BRANCHES if kind != "patched"]
IMAGES = ("convolution", "certified", "relaxed")


def block(kind: str) -> tuple[ia.flows.Residual, Tensor]:
    torch.manual_seed(0)
    built = flows.Residual(BRANCHES[kind]()).double()
    shape = (2, 3, 4) if kind in IMAGES else (2, 3)
    return built, torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", BRANCHES)
def test_bound_branch_matches_and_gradients_reach_the_parameters(kind: str):
    built, x = block(kind)
    bound = bind(built.branch)
    assert bind(bound) is bound
    torch.testing.assert_close(bound(x), built.branch(x))
    parameters = list(built.branch.parameters())
    expected, found = (
        torch.autograd.grad(branch(x).sin().sum(), parameters) for branch in (built.branch, bound)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ISOLATED)
def test_bound_branch_is_independent_of_later_changes(kind: str):
    built, x = block(kind)
    bound = bind(built.branch)
    expected = bound(x)
    other = {name: torch.rand_like(p) for name, p in built.branch.named_parameters()}
    assert not torch.allclose(functional_call(built.branch, other, x), expected)

    def within(x: Tensor) -> Tensor:
        return bound(x)

    holder = nn.ModuleDict({"branch": built.branch})
    holder.forward = within
    assert torch.equal(
        functional_call(holder, {f"branch.{name}": p for name, p in other.items()}, x), expected
    )


@pytest.mark.parametrize("kind", BRANCHES)
def test_inverse_uses_the_same_weights_as_forward(kind: str):
    built, x = block(kind)
    torch.testing.assert_close(built.inverse(built(x)), x)


@pytest.mark.parametrize("kind", BRANCHES)
@pytest.mark.parametrize("warmed", ["not at all", "by sampling"])
def test_parametrization_cache_keeps_gradients(kind: str, warmed: str):
    built, x = block(kind)
    z = built(x).detach()
    built.inverse(z).sin().sum().backward()
    expected = [p.grad for p in built.parameters()]
    built.zero_grad(set_to_none=True)
    with parametrize.cached():
        if warmed == "by sampling":
            with torch.no_grad():
                built.inverse(z)
                built.inverse_and_logdet(z)
        built.inverse(z).sin().sum().backward()
    assert all(gradient is not None for gradient in expected)
    torch.testing.assert_close([p.grad for p in built.parameters()], expected)


@pytest.mark.parametrize("kind", BRANCHES)
def test_parametrization_cache_is_not_stale(kind: str):
    built, x = block(kind)
    z = built(x).detach()
    with parametrize.cached(), torch.no_grad():
        built.inverse(z)
        for parameter in built.parameters():
            parameter.data.mul_(0.7)
        found = built.inverse(z)
    torch.testing.assert_close(found, built.inverse(z))


@pytest.mark.parametrize("kind", ISOLATED)
def test_the_gradient_of_an_inverse_under_other_parameters(kind: str):
    built, x = block(kind)
    z = built(x).detach()
    inner = {name: 0.9 * p.detach() for name, p in built.named_parameters()}

    class Inverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = built

        def forward(self, z: Tensor) -> Tensor:
            return self.block.inverse(z)

    leaves = {f"block.{name}": p.clone().requires_grad_() for name, p in inner.items()}
    # Backward runs after the module's own parameters are restored.
    functional_call(Inverse(), leaves, z).sin().sum().backward()
    copied, _ = block(kind)
    with torch.no_grad():
        for parameter, value in zip(copied.parameters(), inner.values(), strict=True):
            parameter.copy_(value)
    copied.inverse(z).sin().sum().backward()
    torch.testing.assert_close([p.grad for p in leaves.values()], [p.grad for p in copied.parameters()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", BRANCHES)
def test_a_bound_branch_computes_in_single_precision_or_better(kind: str, dtype: torch.dtype):
    built, x = block(kind)
    bound = bind(built.to(dtype).branch)
    assert all(tensor.dtype == torch.float32 for tensor in bound.parameters())
    assert bound(x.float()).dtype == torch.float32


def test_stateful_block_keeps_its_state():
    class Counting(flows.Residual):
        calls = 0

        def forward(self, x: Tensor, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
            self.calls += 1
            return super().forward(x, context=context, mask=mask)

    chain = flows.Sequential(flows.ActNorm(3), Counting(flows.LipschitzLinearBranch(3, 4)))
    for _ in range(3):
        chain(torch.randn(4, 3))
    assert chain[1].calls == 3
