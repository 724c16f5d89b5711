"""The contract of a bijection, checked on every bijection of the library by one list of constructors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from invertible_attention.attention import Triangular
from invertible_attention.attention.layer import InvertibleAttention
from invertible_attention.bijection import Bijection
from invertible_attention.flows import (
    ActNorm,
    Flatten,
    InvertibleResNet,
    LipschitzConvBranch,
    LipschitzLinearBranch,
    Logit,
    Residual,
    Sequential,
    Split,
    Squeeze,
)
from invertible_attention.logdet import Exact


class Case(NamedTuple):
    make: Callable[[], Bijection]
    shape: tuple[int, ...]


def conv(*spatial: int, **arguments: object) -> Residual:
    return Residual(LipschitzConvBranch(2, 4, spatial, **arguments), logdet=Exact())


def attention(response: str, **arguments: object) -> InvertibleAttention:
    return InvertibleAttention(4, response, logdet=Exact(), **arguments)


def triangular(response: str, **arguments: object) -> InvertibleAttention:
    return InvertibleAttention(4, response, constraint=Triangular(**arguments))


def network(**arguments: object) -> InvertibleResNet:
    return InvertibleResNet(
        (1, 4, 4),
        hidden_channels=4,
        blocks=(2, 1),
        attention=partial(InvertibleAttention, logdet=Exact()),
        logdet=Exact(),
        **arguments,
    )


RESIDUAL_FLOW = {
    "activation": "lipswish",
    "initial_squeeze": False,
    "factor_out": False,
    "linear_blocks": 1,
    "attention_after": ((1, -1),),
}
CASES = {
    "squeeze-1d": Case(lambda: Squeeze(3), (2, 6)),
    "squeeze-2d": Case(lambda: Squeeze(2), (3, 4, 2)),
    "squeeze-3d": Case(lambda: Squeeze(2), (1, 2, 4, 2)),
    "flatten": Case(lambda: Flatten((2, 3)), (2, 3)),
    "split": Case(lambda: Split((3, 2, 2), Sequential(ActNorm(1), Flatten((1, 2, 2)))), (3, 2, 2)),
    "actnorm-vector": Case(lambda: ActNorm(5), (5,)),
    "actnorm-image": Case(lambda: ActNorm(3), (3, 2, 2)),
    "logit": Case(lambda: Logit(0.05), (2, 3)),
    "sequential": Case(lambda: Sequential(Logit(0.1), ActNorm(2), Squeeze(2)), (2, 2, 2)),
    "linear": Case(lambda: Residual(LipschitzLinearBranch(4, 8), logdet=Exact()), (4,)),
    "conv-1d": Case(lambda: conv(6), (2, 6)),
    "conv-2d-elu": Case(lambda: conv(3, 4), (2, 3, 4)),
    "conv-2d-lipswish": Case(lambda: conv(3, 4, activation="lipswish", coefficient=0.98), (2, 3, 4)),
    "conv-3d": Case(lambda: conv(2, 3, 2, preactivation=False), (2, 2, 3, 2)),
    "attention-gaussian": Case(lambda: attention("gaussian"), (4, 2, 3)),
    "attention-embedded": Case(lambda: attention("embedded_gaussian", heads=2, bias=True), (4, 2, 3)),
    "attention-dot": Case(lambda: attention("dot_product", normalization="row"), (4, 6)),
    "attention-concatenation": Case(lambda: attention("concatenation"), (4, 2, 3)),
    "attention-triangular": Case(lambda: triangular("gaussian"), (4, 2, 3)),
    "attention-triangular-affine": Case(
        lambda: triangular("dot_product", order="reverse", affine=True), (4, 6)
    ),
    "i-resnet": Case(network, (1, 4, 4)),
    "residual-flow": Case(partial(network, **RESIDUAL_FLOW), (1, 4, 4)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Bijection, Tensor]:
    """A bijection in float64, set up on one batch, and another batch from the unit interval."""
    torch.manual_seed(0)
    make, shape = CASES[request.param]
    bijection = make().double()
    bijection(torch.rand(16, *shape, dtype=torch.float64))
    return bijection, torch.rand(3, *shape, dtype=torch.float64)


def test_round_trips_in_both_directions(case):
    bijection, x = case
    z = bijection(x)
    torch.testing.assert_close(bijection.inverse(z), x, atol=1e-9, rtol=0)
    torch.testing.assert_close(bijection(bijection.inverse(z.flip(0))), z.flip(0), atol=1e-9, rtol=0)


def test_logdet_matches_slogdet_of_the_jacobian(case):
    bijection, x = case
    z, logdet = bijection.forward_and_logdet(x)
    torch.testing.assert_close(z, bijection(x))
    assert logdet.shape == (3,)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda flat, like=x[i : i + 1]: bijection(flat.view(like.shape)).flatten(), x[i].flatten()
        )
        torch.testing.assert_close(logdet[i], torch.linalg.slogdet(jacobian).logabsdet)


def test_inverse_logdet_is_the_negative(case):
    bijection, x = case
    z, logdet = bijection.forward_and_logdet(x)
    back, inverse_logdet = bijection.inverse_and_logdet(z)
    torch.testing.assert_close(back, x, atol=1e-9, rtol=0)
    torch.testing.assert_close(inverse_logdet, -logdet, atol=1e-8, rtol=0)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_reach_input_and_every_parameter(case, direction):
    bijection, x = case
    x = (x if direction == "forward" else bijection(x).detach()).requires_grad_()
    z, logdet = getattr(bijection, f"{direction}_and_logdet")(x)
    (z.sin().sum() + logdet.sum()).backward()
    assert x.grad is not None
    for name, parameter in bijection.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_state_dict_restores_the_map_and_data_dependent_initialization(case, request):
    bijection, x = case
    torch.manual_seed(1)
    other = CASES[request.node.callspec.params["case"]].make().double()
    other.load_state_dict(bijection.state_dict())
    torch.testing.assert_close(other(x), bijection(x))
    torch.testing.assert_close(copy.deepcopy(bijection)(x), bijection(x))


def test_single_precision(case):
    bijection, x = case
    expected, expected_logdet = bijection.forward_and_logdet(x)
    single = copy.deepcopy(bijection).float()
    z, logdet = single.forward_and_logdet(x.float())
    assert z.dtype == logdet.dtype == torch.float32
    torch.testing.assert_close(z.double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logdet.double(), expected_logdet, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(single.inverse(z).double(), x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_storage_only(case, half):
    bijection, x = case
    low = copy.deepcopy(bijection).to(half)
    single, x = copy.deepcopy(low).float(), x.to(half)
    eps = torch.finfo(half).eps
    with torch.no_grad():
        for name, start in (("forward", x), ("inverse", single(x.float()).to(half))):
            expected, expected_logdet = getattr(single, f"{name}_and_logdet")(start.float())
            value, logdet = getattr(low, f"{name}_and_logdet")(start)
            alone = getattr(low, name)(start)
            assert value.dtype == alone.dtype == half
            assert logdet.dtype == torch.float32
            # Constrained weights are rounded, and so are the values between the parts of a chain.
            torch.testing.assert_close(value, expected.to(half), atol=2 * eps, rtol=2 * eps)
            torch.testing.assert_close(alone, value, atol=0, rtol=0)
            torch.testing.assert_close(logdet, expected_logdet, atol=3 * eps, rtol=eps)
        if isinstance(low, Residual):
            solution = low.solve_inverse(start)
            assert solution.converged.all()
            assert solution.residual.max() < 1e-6  # before rounding of the value


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("make", [lambda: ActNorm(64), lambda: Logit(0.01)], ids=["actnorm", "logit"])
def test_closed_forms_in_half_precision_are_rounded_once(make, half, masked):
    bijection, x = make(), torch.rand(4, 64, 12).to(half)
    bijection.initialize(5 * x.float())
    low = copy.deepcopy(bijection).to(half)
    single = copy.deepcopy(low).double()
    given = {"mask": torch.rand(4, 12) < 0.5} if masked else {}
    for method in ("forward_and_logdet", "inverse_and_logdet"):
        value, logdet = getattr(low, method)(x, **given)
        expected, expected_logdet = getattr(single, method)(x.double(), **given)
        torch.testing.assert_close(value, expected.to(half), atol=1e-6, rtol=0.51 * torch.finfo(half).eps)
        torch.testing.assert_close(logdet.double(), expected_logdet, atol=1e-3, rtol=1e-6)
    plain = low(x, **given)
    assert torch.equal(plain, low.forward_and_logdet(x, **given)[0])


def test_samples_are_independent(case):
    bijection, x = case
    z, logdet = bijection.forward_and_logdet(x)
    for i in range(3):
        alone, alone_logdet = bijection.forward_and_logdet(x[i : i + 1])
        torch.testing.assert_close(alone, z[i : i + 1])
        torch.testing.assert_close(alone_logdet, logdet[i : i + 1])


@pytest.mark.parametrize("method", ["forward", "inverse", "forward_and_logdet", "inverse_and_logdet"])
def test_unused_context_is_refused(case, method):
    bijection, x = case
    argument = x if method.startswith("forward") else bijection(x)
    with pytest.raises(ValueError, match=r"takes no context, got one of shape \(3, 1\)"):
        getattr(bijection, method)(argument, context=torch.ones(3, 1))
    with pytest.raises(TypeError, match="positional"):
        getattr(bijection, method)(argument, torch.ones(3, 1))


def test_module_survives_dtype_conversion(case):
    bijection, x = case
    assert isinstance(bijection.train().eval(), nn.Module)
    assert str(bijection)
    torch.testing.assert_close(bijection.float().double()(x), bijection(x))
