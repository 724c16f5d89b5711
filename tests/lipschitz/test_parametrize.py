"""A constrained layer's exact norm never exceeds the coefficient during training."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from invertible_attention.lipschitz import (
    Geometry,
    SpectralNormConstraint,
    SpectralNormEstimate,
    constrain,
    constrain_by_estimate,
    convolution_norm_upper_bound,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
SIZES = {1: (9,), 2: (5, 6), 3: (3, 4, 3)}
CASES = [
    "linear",
    "conv1",
    "conv2",
    "conv3",
    "conv2 circular",
    "conv2 grouped",
    "conv2 same",
    "conv1 dilated",
]


def make(case: str) -> tuple[nn.Module, tuple[int, ...] | None]:
    """A layer with four input channels, and the spatial size of its input."""
    if case == "linear":
        return nn.Linear(4, 6), None
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[int(case[4]) - 1]
    options = {
        "circular": {"padding_mode": "circular"},
        "grouped": {"groups": 2, "stride": 2},
        "same": {"padding": "same"},
        "dilated": {"dilation": 2},
    }.get(case[6:], {})
    return kind(4, 6, 3, **({"padding": 1} | options)), SIZES[int(case[4])]


def exact_norm(layer: nn.Module, size: tuple[int, ...] | None) -> float:
    weight = layer.weight.detach().double()
    if size is None:
        return torch.linalg.matrix_norm(weight, 2).item()
    inputs = torch.eye(4 * math.prod(size), dtype=torch.float64).reshape(-1, 4, *size)
    return torch.linalg.matrix_norm(layer._conv_forward(inputs, weight, None).flatten(1), 2).item()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sized", [True, False])
def test_norm_stays_below_the_coefficient_straight_after_optimizer_steps(case, sized):
    layer, size = make(case)
    constrain(layer, 0.7, input_size=size if sized else None)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.3)
    x = torch.randn(3, 4, *(size or ()))
    for _ in range(8):
        assert exact_norm(layer, size) <= 0.7
        optimizer.zero_grad()
        (-layer(x).square().mean()).backward()
        optimizer.step()
    # the constraint binds: the bound of the scaled weight is the coefficient itself
    norm = layer.parametrizations.weight[0].norm
    assert norm(layer.weight).item() == pytest.approx(0.7, rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(CASES),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.floats(0.01, 100.0),
    st.integers(0, 2**31),
)
def test_norm_stays_below_the_coefficient_after_rounding(case, dtype, coefficient, seed):
    layer, size = make(case)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(layer.weight, std=5.0, generator=generator)
    layer = layer.to(dtype)
    constrain(layer, coefficient, input_size=size)
    assert layer.weight.dtype == dtype
    assert exact_norm(layer, size) <= coefficient * (1 + 1e-13)  # the exact norm is rounded too


@pytest.mark.parametrize("case", ["linear", "conv2"])
def test_weight_below_the_limit_is_unchanged(case):
    layer, size = make(case)
    before = layer.weight.detach().clone()
    constrain(layer, 50.0, input_size=size)
    assert torch.equal(layer.weight, before)


def test_weight_above_the_limit_is_scaled_to_it():
    layer = constrain(nn.Linear(8, 8).double(), 0.9)
    original = layer.parametrizations.weight.original
    original.data.mul_(100)
    norm = torch.linalg.matrix_norm(layer.weight, 2)
    assert 0.9 / 1.01 <= norm <= 0.9
    torch.testing.assert_close(layer.weight / norm, original / torch.linalg.matrix_norm(original, 2))


def test_input_size_makes_the_constraint_less_strict():
    layer = nn.Conv2d(4, 4, 3, padding=1)
    norms = {}
    for size in ((3, 3), None):
        norms[size] = exact_norm(constrain(copy.deepcopy(layer), 0.1, input_size=size), (3, 3))
    assert norms[None] < norms[3, 3] <= 0.1


def test_batched_matrices_are_constrained_individually():
    weight = torch.stack([5 * torch.eye(3), 0.2 * torch.eye(3), torch.zeros(3, 3)]).double()
    limited = SpectralNormConstraint(1.0)(weight)
    norms = torch.linalg.matrix_norm(limited, 2)
    assert 0.98 < norms[0] <= 1
    assert torch.equal(limited[1:], weight[1:])


def test_zero_weight_has_a_finite_gradient():
    layer = constrain(nn.Linear(3, 3, bias=False), 0.5)
    nn.init.zeros_(layer.parametrizations.weight.original)
    layer(torch.ones(1, 3)).sum().backward()
    torch.testing.assert_close(layer.parametrizations.weight.original.grad, torch.ones(3, 3))


@pytest.mark.parametrize("case", ["linear", "conv1", "conv2 grouped"])
def test_gradient_is_that_of_the_scaled_weight(case):
    layer, size = make(case)
    layer = constrain(layer.double(), 0.3, input_size=size)
    bound = layer.parametrizations.weight[0]
    original = layer.parametrizations.weight.original.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(bound, original, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(bound, original, fast_mode=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("register", [constrain, constrain_by_estimate])
def test_state_dict_and_copies(case, register):
    layer, size = make(case)
    register(layer, 0.2, input_size=size)
    layer.eval()
    other, _ = make(case)
    register(other, 0.2, input_size=size)
    other.eval()
    other.load_state_dict(layer.state_dict())
    twin = copy.deepcopy(layer)
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(twin.weight, layer.weight)
    with torch.no_grad():
        twin.parametrizations.weight.original.mul_(0)
    assert not torch.equal(twin.weight, layer.weight)


def test_cached_weight_is_computed_once():
    calls = []

    def norm(weight: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return torch.linalg.matrix_norm(weight)

    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", SpectralNormConstraint(0.5, norm))
    calls.clear()
    with parametrize.cached():
        assert layer(torch.ones(1, 3)).equal(layer(torch.ones(1, 3)))
    assert len(calls) == 1


def test_assigning_a_weight_constrains_it():
    layer = constrain(nn.Linear(3, 3).double(), 0.5)
    with torch.no_grad():
        layer.weight = 7 * torch.eye(3).double()
    assert 0.49 < torch.linalg.matrix_norm(layer.weight, 2) <= 0.5


@pytest.mark.parametrize("case", ["linear", "conv1"])
def test_transforms_of_torch_func_and_compile(case):
    layer, size = make(case)
    constrain(layer.double(), 0.5, input_size=size)
    x = torch.randn(2, 4, *(size or ())).double()
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, parameters, (x[None],)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, per_sample[name].sum(0))


@pytest.mark.parametrize("case", CASES)
def test_estimate_tracks_the_norm_in_training_mode_only(case):
    layer, size = make(case)
    constrain_by_estimate(layer.double(), 0.1, input_size=size)
    estimate = layer.parametrizations.weight[0]
    layer.eval()
    vector = estimate.vector.clone()
    assert torch.equal(layer.weight, layer.weight)
    assert torch.equal(estimate.vector, vector)
    layer.train()
    for _ in range(200):
        weight = layer.weight
    assert not torch.equal(estimate.vector, vector)
    assert "parametrizations.weight.0.vector" in layer.state_dict()
    layer.weight.sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()
    norm = exact_norm(layer, size)
    assert norm == pytest.approx(0.1, rel=1e-3)
    assert norm >= 0.1 * (1 - 1e-12)  # it overshoots: the estimate is a lower bound
    assert weight.shape == layer.parametrizations.weight.original.shape


def test_estimate_fails_after_a_large_step_where_the_bound_holds():
    for register, kept in ((constrain, True), (constrain_by_estimate, False)):
        layer = nn.Linear(3, 3, bias=False).double()
        with torch.no_grad():
            layer.weight.copy_(torch.diag(torch.tensor([9.0, 1.0, 1.0])))
        register(layer, 1.0)
        for _ in range(50):
            _ = layer.weight
        with torch.no_grad():
            layer.parametrizations.weight.original.copy_(torch.diag(torch.tensor([1.0, 9.0, 1.0])))
        assert (exact_norm(layer, None) <= 1) == kept


@pytest.mark.parametrize("coefficient", [0.0, -1.0, math.inf, math.nan])
def test_coefficient_must_be_positive_and_finite(coefficient):
    for build in (
        lambda: SpectralNormConstraint(coefficient),
        lambda: SpectralNormEstimate(torch.ones(2, 2), coefficient),
        lambda: constrain(nn.Linear(2, 2), coefficient),
    ):
        with pytest.raises(ValueError, match=str(coefficient)):
            build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: constrain(nn.ConvTranspose1d(2, 2, 3), 0.5), "ConvTranspose1d"),
        (lambda: constrain(nn.ReLU(), 0.5), "ReLU has no parameter 'weight'"),
        (lambda: constrain(nn.Linear(2, 2), 0.5, name="kernel"), "kernel"),
        (lambda: constrain(nn.Conv1d(2, 2, 3), 0.5, input_size=(4, 4)), r"\(4, 4\)"),
        (lambda: constrain(nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"), 0.5), "reflect"),
        (lambda: constrain(nn.Conv1d(2, 2, 3, padding=2, padding_mode="circular"), 0.5), r"\(\(2, 2\),\)"),
        (lambda: constrain_by_estimate(nn.Conv1d(2, 2, 3), 0.5), "input_size"),
        (lambda: constrain_by_estimate(nn.BatchNorm1d(2), 0.5), "BatchNorm1d"),
        (lambda: SpectralNormEstimate(torch.ones(2, 2, 2), 0.5), r"\(2, 2, 2\)"),
        (lambda: SpectralNormEstimate(torch.ones(2, 2), 0.5, n_power_iterations=0), "0"),
    ],
)
def test_bad_input_error_shows_the_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_any_matrix_can_be_constrained():
    layer = constrain(nn.MultiheadAttention(4, 2), 0.5, name="in_proj_weight")
    assert torch.linalg.matrix_norm(layer.in_proj_weight, 2) <= 0.5
    assert "coefficient=0.5" in repr(layer)


def test_convolution_uses_the_norm_of_its_own_layout():
    layer = constrain(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), 0.5, input_size=(4, 4))
    bound = convolution_norm_upper_bound(
        layer.weight.double(), (4, 4), geometry=Geometry("circular"), iterations=12
    )
    assert 0.5 / 1.01 <= bound.item() <= 0.5 * 1.001
