"""Laws of triangular layers in float64: triangular Jacobian, exact determinant, inverse, derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import invertible_attention as ia
from invertible_attention.attention.triangular.order import permutation

from .cases import FORMS, ORDERS, RESPONSES, SPATIAL, jacobian, make, noise


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("response", RESPONSES)
def test_jacobian_is_triangular_and_its_determinant_known(response, order, form):
    layer = make(response, order=order, affine=FORMS[form])
    x = noise(1, 3, 4)
    _, logdet = layer.forward_and_logdet(x)
    whole = jacobian(layer, x)
    index = permutation(layer.branch.order, (3, 4))
    ordered = whole[index][:, index]
    later = torch.ones(12, 12, dtype=torch.bool).triu(1)
    assert not ordered[later].any()
    own = ordered.diagonal().permute(2, 0, 1)
    assert not own[:, ~torch.eye(4, dtype=torch.bool)].any()
    earlier = torch.ones(12, 12, dtype=torch.bool).tril(-1)
    assert (ordered[earlier].abs().amax((1, 2)) > 1e-8).all()
    flat = whole.permute(0, 2, 1, 3).reshape(48, 48)
    torch.testing.assert_close(logdet[0], torch.linalg.slogdet(flat).logabsdet, atol=1e-10, rtol=1e-10)
    assert FORMS[form] or logdet[0] == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axes", SPATIAL)
@pytest.mark.parametrize("response", RESPONSES)
def test_inverse_is_the_inverse(response, axes, form):
    layer = make(response, affine=FORMS[form], bias=axes == 2, max_log_scale=1.0)
    x = 2 * noise(3, *SPATIAL[axes])
    z, logdet = layer.forward_and_logdet(x)
    back, minus = layer.inverse_and_logdet(z)
    assert (back - x).abs().max() < 1e-10
    assert (layer(layer.inverse(x)) - x).abs().max() < 1e-10
    torch.testing.assert_close(minus, -logdet, atol=1e-9, rtol=0)


@pytest.mark.parametrize("position", ["rotary", "relative", "none"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("block", [None, 1, 5, 12])
def test_every_block_size_finds_the_same_inverse(block, depth, position):
    layer = make(position=position, depth=depth, feed_forward=0.0 if depth == 1 else 2.0)
    x = noise(2, 3, 4)
    layer.solver = ia.Blockwise(block=block)
    solution = layer.solve_inverse(layer(x))
    assert solution.converged.all()
    assert (solution.evaluations <= 12).all()
    assert (solution.value - x).abs().max() < 1e-10


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(RESPONSES),
    st.sampled_from(ORDERS),
    st.sampled_from([*FORMS]),
    st.sampled_from([None, 1, 4]),
    st.integers(0, 2**31),
)
def test_large_scores_need_at_most_one_evaluation_per_token(response, order, form, block, seed):
    torch.manual_seed(seed)
    layer = make(response, order=order, affine=FORMS[form], solver=ia.Blockwise(block=block))
    x = noise(3, 3, 4)
    with torch.no_grad():
        sharpen(layer, x, 50.0)
    assert 49 < largest_score(layer, x) < 51
    solution = layer.solve_inverse(layer(x))
    assert (solution.evaluations <= 12).all()
    assert solution.converged.all()
    torch.testing.assert_close(layer(solution.value), layer(x), atol=1e-10, rtol=1e-10)


def scores(layer, x):
    """The scores of all pairs of embedded tokens, before φ and the position."""
    block = layer.branch.module.blocks[0]
    seen = []
    handle = block.response.register_forward_hook(lambda _, args, out: seen.append(out))
    layer(x)
    handle.remove()
    query, key = seen[0]
    return query @ key.mT if block.response.combine == "product" else query + key.mT


def largest_score(layer, x):
    return scores(layer, x).abs().max()


def sharpen(layer, x, size):
    """Scale the response so that the largest score is of this size."""
    response = layer.branch.module.blocks[0].response
    factor = size / largest_score(layer, x)
    for name in ("temperature", "query_weight"):
        if hasattr(response, name):
            getattr(response, name).mul_(factor)
    if response.combine == "sum":
        response.key_weight.mul_(factor)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("response", RESPONSES)
def test_first_and_second_derivatives(response, form):
    layer = make(response, affine=FORMS[form])
    parameters = dict(layer.named_parameters())
    names = [*(name for name in parameters if not name.endswith("table"))][:4]
    names.append("branch.module.out.weight")
    small = [parameters[name].detach().clone().requires_grad_() for name in names]

    def forward(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    def inverse(z, *values):
        with torch.nn.utils.stateless._reparametrize_module(layer, dict(zip(names, values, strict=True))):
            return layer.inverse(z)

    x = noise(1, 3).requires_grad_()
    assert torch.autograd.gradcheck(forward, (x, *small), fast_mode=True)
    assert torch.autograd.gradgradcheck(forward, (x, *small), fast_mode=True)
    z = layer(x).detach().requires_grad_()
    assert torch.autograd.gradcheck(inverse, (z, *small), fast_mode=True)
    assert torch.autograd.gradgradcheck(inverse, (z, *small), fast_mode=True)


@pytest.mark.parametrize("form", FORMS)
def test_forward_mode_and_functional_transforms_agree_with_reverse_mode(form):
    layer = make(affine=FORMS[form])
    x, v = noise(2, 3, 4), noise(2, 3, 4)
    _, tangent = torch.func.jvp(layer, (x,), (v,))
    _, pull = torch.func.vjp(layer, x)
    torch.testing.assert_close((tangent * v).sum(), (pull(v)[0] * v).sum())
    each = torch.vmap(lambda t: layer(t[None])[0])(x)
    torch.testing.assert_close(each, layer(x))


def test_gradient_of_the_inverse_is_that_of_the_parameters_in_place_during_forward():
    layer = make()
    z = noise(2, 3, 4)
    moved = {
        name: (p + 0.1 * torch.randn_like(p)).detach().requires_grad_()
        for name, p in layer.named_parameters()
    }
    with torch.nn.utils.stateless._reparametrize_module(layer, moved):
        x = layer.inverse(z)
        expected = torch.autograd.grad(layer.inverse(z).square().sum(), list(moved.values()))
    actual = torch.autograd.grad(x.square().sum(), list(moved.values()))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("implementation", ["reference", "blocked", "flash"])
@pytest.mark.parametrize("form", FORMS)
def test_the_inverse_under_functional_transforms(form, implementation):
    layer = make(affine=FORMS[form], implementation=implementation)
    z, v, t = noise(2, 3), noise(2, 3), noise(2, 3)
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layer.inverse(leaf), leaf, v)
    torch.testing.assert_close(torch.func.vjp(layer.inverse, z)[1](v)[0], expected)
    torch.testing.assert_close((torch.func.jvp(layer.inverse, (z,), (t,))[1] * v).sum(), (expected * t).sum())
    twice = torch.func.grad(
        lambda y: torch.func.grad(lambda w: layer.inverse(w).square().sum())(y).sin().sum()
    )(z)
    (first,) = torch.autograd.grad(layer.inverse(leaf).square().sum(), leaf, create_graph=True)
    torch.testing.assert_close(twice, torch.autograd.grad(first.sin().sum(), leaf)[0])
