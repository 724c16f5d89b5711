from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import invertible_attention as ia
from invertible_attention.flows import LipschitzConvBranch, LipschitzLinearBranch, LipSwish


@given(
    spatial=st.sampled_from([(6,), (4, 3), (3, 2, 2)]),
    activation=st.sampled_from(["elu", "lipswish"]),
    coefficient=st.sampled_from([0.5, 0.9, 0.98]),
    growth=st.floats(1.0, 50.0),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_no_pair_of_points_exceeds_the_bound(spatial, activation, coefficient, growth, seed):
    torch.manual_seed(seed)
    branch = LipschitzConvBranch(2, 4, spatial, coefficient=coefficient, activation=activation).double()
    with torch.no_grad():  # weights far above the constraint, as after a large optimizer step
        for parameter in branch.parameters():
            parameter.mul_(growth)
    x = 3 * torch.randn(1, 2, *spatial, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: branch(x).flatten(), x).flatten(1)
    assert torch.linalg.matrix_norm(jacobian, ord=2) <= branch.lipschitz_bound()
    assert branch.lipschitz_bound().item() == pytest.approx(coefficient**3)


@pytest.mark.parametrize("coefficient", [0.3, 0.5, 0.9, 0.97, 0.99])
def test_the_bound_is_not_rounded_below_what_is_attained(coefficient):
    branch = LipschitzLinearBranch(1, 1, coefficient=coefficient, activation="elu").double()
    with torch.no_grad():
        for layer in branch.layers:
            layer.weight = torch.full((1, 1), 5.0, dtype=torch.float64)
            layer.bias.fill_(10.0)
    x = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(branch(x), x)
    assert slope.item() == pytest.approx(coefficient**3, rel=1e-12)
    assert slope.item() <= branch.lipschitz_bound().item()


def test_lipswish_slope_is_at_most_one_for_any_beta():
    x = torch.linspace(-20, 20, 40_001, dtype=torch.float64, requires_grad=True)
    for beta in (-3.0, 0.5, 4.0):
        layer = LipSwish().double()
        torch.nn.init.constant_(layer.raw_beta, beta)
        (slope,) = torch.autograd.grad(layer(x).sum(), x)
        assert 0.5 < slope.abs().max() <= 1


@pytest.mark.parametrize("preactivation", [True, False])
def test_bound_branch_matches_the_branch(preactivation):
    conv = LipschitzConvBranch(2, 4, (3, 3), preactivation=preactivation, activation="lipswish")
    linear = LipschitzLinearBranch(12, 5, preactivation=preactivation)
    x = torch.randn(2, 2, 3, 3)
    assert torch.equal(conv.bind()(x), conv(x))
    y = torch.randn(2, 3, 4)
    assert torch.equal(linear.bind()(y), linear(y))
    assert linear(y).shape == y.shape
    assert len(conv.activations) == (3 if preactivation else 2)


@given(
    spatial=st.sampled_from([None, (6,), (4, 3), (3, 2, 2)]),
    activation=st.sampled_from(["elu", "lipswish"]),
    preactivation=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_pushforward_is_the_product_with_the_jacobian(spatial, activation, preactivation, masked, seed):
    torch.manual_seed(seed)
    arguments = {"activation": activation, "preactivation": preactivation}
    mask = None
    if spatial is None:
        branch, shape = LipschitzLinearBranch(6, 5, **arguments), (2, 3)
    else:
        branch, shape = LipschitzConvBranch(2, 4, spatial, **arguments), (2, *spatial)
        mask = torch.rand(3, *spatial) < 0.7 if masked else None
    branch = branch.double()
    x, v, w, other = torch.randn(4, 3, *shape, dtype=torch.float64)
    x.requires_grad_()
    value, (pushed, _) = branch.pushforward(x, [v, other], None, mask)
    expected = branch(x, None, mask)
    assert torch.equal(value, expected)
    _, jvp = torch.func.jvp(lambda x: branch(x, None, mask), (x.detach(),), (v,))
    torch.testing.assert_close(pushed, jvp)
    (pulled,) = torch.autograd.grad(expected, x, w, create_graph=True)
    wanted = (x, *branch.parameters())
    found, right = (
        torch.autograd.grad((a * b).sum() + value.sum(), wanted, retain_graph=True, materialize_grads=True)
        for a, b in ((pushed, w), (pulled, v))
    )
    torch.testing.assert_close(found, right)


def _activation(branch):
    branch.activations[1] = nn.Softmax(1)


def _in_place(branch):
    branch.activations[1] = nn.ELU(inplace=True)


class _Curved(nn.Conv2d):
    def forward(self, input):
        return super().forward(input).tanh()


def _layer(branch):
    branch.layers[1] = _Curved(4, 4, 1, dtype=torch.float64)


def _method(branch):
    branch.evaluate = lambda x, padding: x.sin()


def _hook(branch):
    branch.layers[0].register_forward_hook(lambda module, args, output: output.sin())


@pytest.mark.parametrize("exchange", [_activation, _in_place, _layer, _method, _hook])
def test_gradient_is_that_of_what_is_computed_where_a_part_was_exchanged(exchange):
    torch.manual_seed(0)
    branch = LipschitzConvBranch(2, 4, (3, 3)).double()
    exchange(branch)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert branch.pushforward(x, [x]) is None
    found = []
    for memory_saving in (True, False):
        torch.manual_seed(1)
        _, logdet = ia.RussianRoulette(memory_saving=memory_saving)(branch, x, training=True)
        found.append(torch.autograd.grad(logdet.sum(), (x, *branch.parameters()), materialize_grads=True))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LipschitzConvBranch(2, 4, (3, 3), coefficient=1.0), "between 0 and 1, got 1.0"),
        (lambda: LipschitzConvBranch(2, 4, (3, 3), kernel_sizes=(3, 2)), r"must be odd, got \(3, 2\)"),
        (lambda: LipschitzConvBranch(2, 4, (3, 3), activation="relu"), "got 'relu'"),
        (lambda: LipschitzConvBranch(2, 4, ()), r"1 to 3 axes, got \(\)"),
        (lambda: LipschitzConvBranch(0, 4, (3,)), "at least 1, got 0 and 4"),
        (lambda: LipschitzLinearBranch(2, depth=0), "depth must be at least 1, got 0"),
        (
            lambda: LipschitzConvBranch(2, 4, (3,))(torch.zeros(1, 2, 4)),
            r"at most \(3,\), got shape \(1, 2, 4\)",
        ),
        (lambda: LipschitzConvBranch(2, 4, (3,))(torch.zeros(1, 2, 3, 3)), r"got shape \(1, 2, 3, 3\)"),
        (lambda: LipschitzLinearBranch(2)(torch.zeros(1, 3)), r"samples of 2 values, got shape \(1, 3\)"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_lipswish_is_the_same_without_gradients():
    layer, x = LipSwish(), torch.randn(3, 5)
    kept = x.clone()
    with torch.no_grad():
        value, mapped = layer(x), torch.func.vmap(layer)(x)
    assert torch.equal(value, layer(x))
    assert torch.equal(mapped, value)
    assert torch.equal(x, kept)
