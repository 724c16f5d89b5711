"""Contract of the layers: shapes, errors, inverses, transforms, storage."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import invertible_attention as ia

RESPONSES = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
NORMALIZATIONS = ("column", "row", "all")
SPATIAL = {1: (7,), 2: (3, 4), 3: (2, 3, 2)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def reference(layer, x):
    """The definition, written out with every pair of tokens, for one head."""
    branch = layer.branch
    tokens = x.flatten(2).transpose(1, 2)
    norm = tokens.norm(dim=-1, keepdim=True)
    tokens = tokens * (branch.radius / norm).clamp(max=1.0)
    response = branch.response
    if layer.response == "gaussian":
        t = response.temperature * tokens @ tokens.mT
    elif layer.response == "concatenation":
        t = tokens @ response.query_weight[0].T + (tokens @ response.key_weight[0].T).mT
    else:
        t = (tokens @ response.query_weight[0].T) @ (tokens @ response.key_weight[0].T).mT
    weight = t.exp() if layer.response.endswith("gaussian") else torch.nn.functional.elu(t) + 1
    axis = {"column": 1, "row": 2, "all": (1, 2)}[branch.normalization]
    attended = weight / weight.sum(axis, keepdim=True) @ (tokens @ branch.value_weight.T)
    out = attended @ branch.out_weight.T
    n = tokens.shape[1]
    scale = 0.9 / (branch.scale.log_bound.exp() / (n if branch.normalization == "all" else 1))
    return x + (out * scale.clamp(max=1.0)).mT.reshape(x.shape)


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_forward_is_the_definition(response, normalization):
    layer = ia.InvertibleAttention(5, response=response, normalization=normalization).double()
    layer(torch.randn(2, 5, 9, dtype=torch.float64))
    x = 2 * torch.randn(3, 5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), reference(layer, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("axes", SPATIAL)
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("response", RESPONSES)
def test_inverse_is_the_inverse(response, normalization, heads, axes):
    layer = ia.InvertibleAttention(
        4, response=response, normalization=normalization, heads=heads, bias=axes == 2
    ).double()
    x = 3 * torch.randn(3, 4, *SPATIAL[axes], dtype=torch.float64)
    z = layer(x)
    assert z.shape == x.shape
    assert z.dtype == x.dtype
    assert (layer.inverse(z) - x).abs().max() < 1e-10
    assert (layer(layer.inverse(x)) - x).abs().max() < 1e-10


@pytest.mark.parametrize("response", RESPONSES)
def test_softplus_and_biases_and_a_fixed_radius(response):
    if response in ("dot_product", "concatenation"):
        kind = {"dot_product": ia.DotProduct, "concatenation": ia.Concatenation}[response]
        response = partial(kind, phi="softplus")
    layer = ia.InvertibleAttention(
        6, response, constraint=ia.Certified(0.5, radius=2.0), heads=3, bias=True
    ).double()
    assert layer.branch.radius == pytest.approx(2.0)
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    assert (layer.inverse(layer(x)) - x).abs().max() < 1e-10
    assert layer.lipschitz_bound().item() <= 0.5


def test_error_bound_holds():
    layer = ia.InvertibleAttention(4, "embedded_gaussian", solver=ia.Anderson(tolerance=1e-4)).double()
    x = torch.randn(16, 4, 6, dtype=torch.float64)
    solution = layer.solve_inverse(layer(x))
    error = (solution.value - x).flatten(1).norm(dim=1)
    assert bool(solution.converged.all())
    assert (error <= solution.error_bound).all()
    assert (error > 0).any()


@settings(deadline=None, max_examples=25)
@given(
    response=st.sampled_from(RESPONSES),
    normalization=st.sampled_from(NORMALIZATIONS),
    scale=st.sampled_from((1e-6, 1e-2, 1.0, 1e3, 1e6)),
    weights=st.sampled_from((1e-3, 1.0, 30.0)),
    seed=st.integers(0, 2**31),
)
def test_any_weights_and_any_scale_invert(response, normalization, scale, weights, seed):
    torch.manual_seed(seed)
    layer = ia.InvertibleAttention(4, response, normalization=normalization).double()
    x = scale * torch.randn(2, 4, 5, dtype=torch.float64)
    layer(x)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "radius" not in name:
                parameter.mul_(weights * torch.rand_like(parameter))
    # The solver's residual is relative to 1 + ‖z‖.
    assert ((layer.inverse(layer(x)) - x).abs().max() / (1 + scale)) < 1e-10


@pytest.mark.parametrize("response", RESPONSES)
def test_implicit_gradient(response):
    layer = ia.InvertibleAttention(2, response, constraint=ia.Certified(0.8, radius=1.0)).double()
    z = torch.randn(2, 2, 2, dtype=torch.float64)
    names, values = zip(*layer.named_parameters(), strict=True)

    def inverse(z, *values):
        state = dict(zip(names, values, strict=True))
        with torch.nn.utils.stateless._reparametrize_module(layer, state):
            return layer.inverse(z)

    assert torch.autograd.gradcheck(inverse, tuple(v.detach().requires_grad_() for v in (z, *values)))


def test_relaxed_layer_never_returns_an_unreported_wrong_inverse():
    outcomes = set()
    for seed, response in itertools.product(range(10), RESPONSES):
        torch.manual_seed(seed)
        layer = ia.InvertibleAttention(4, response, constraint=ia.Relaxed(0.99)).double()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(10 * torch.randn_like(parameter))
        x = 2 * torch.randn(3, 4, 6, dtype=torch.float64)
        z = layer(x)
        try:
            value = layer.inverse(z)
        except ia.ConvergenceError:
            outcomes.add("error")
            continue
        outcomes.add("solved")
        residual = (layer(value) - z).flatten(1).norm(dim=1) / (1 + z.flatten(1).norm(dim=1))
        assert residual.max() <= 1.01e-12
    assert outcomes == {"error", "solved"}
    assert layer.lipschitz_bound().item() == float("inf")


def test_not_strict_warns_and_returns_the_best():
    layer = ia.InvertibleAttention(4, solver=ia.FixedPoint(max_evaluations=2))
    x = torch.randn(2, 4, 6)
    z = layer(x)
    with pytest.raises(ia.ConvergenceError, match="0"):
        layer.inverse(z)
    with pytest.warns(RuntimeWarning, match="converge"):
        value = layer.inverse(z, strict=False)
    assert (value - x).norm() < (z - x).norm()


@pytest.mark.parametrize("constraint", [ia.Relaxed(0.7, 0.5, True), ia.Relaxed(0.7, 0.5), ia.Relaxed(0.9)])
@pytest.mark.parametrize("response", RESPONSES)
def test_relaxed_constrains_the_same_weights_as_the_paper(response, constraint):
    layer = ia.InvertibleAttention(6, response, constraint=constraint)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(10 * torch.randn_like(parameter))
    branch = layer.branch
    for weight in (branch.value_weight, branch.out_weight):
        norm = torch.linalg.matrix_norm(weight, 2)
        assert 0.95 * constraint.coefficient < norm <= constraint.coefficient
    for name in branch.response.transforms():
        norm = torch.linalg.matrix_norm(getattr(branch.response, name), 2)
        assert bool((norm <= constraint.coefficient).all()) == constraint.constrain_response
    # With one token every weight is the column sum, so the branch is linear and its norm can be read off.
    x = torch.randn(1, 6, 1)
    expected = constraint.column_sum * branch.out_weight @ branch.value_weight @ x[0]
    torch.testing.assert_close(branch(x)[0], expected)


@pytest.mark.parametrize("response", RESPONSES)
def test_ordinary_attention_is_the_non_local_block(response):
    layer = ia.Attention(6, response).double()
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    tokens, branch = x.flatten(2).mT, layer.branch
    if response == "gaussian":
        weight = (tokens @ tokens.mT).softmax(-1)
    elif response == "concatenation":
        weight = tokens @ branch.response.query_weight[0].T + (tokens @ branch.response.key_weight[0].T).mT
    else:
        weight = (tokens @ branch.response.query_weight[0].T) @ (tokens @ branch.response.key_weight[0].T).mT
    if response == "embedded_gaussian":
        weight = weight.softmax(-1)
    elif response != "gaussian":
        weight = weight / 9
    expected = x + (weight @ tokens @ branch.value_weight.T @ branch.out_weight.T).mT.reshape(x.shape)
    torch.testing.assert_close(layer(x), expected)


BAD_ARGUMENTS = [
    ({"channels": 0}, "0"),
    ({"channels": 4, "heads": 3}, "3"),
    ({"channels": 4, "heads": 0}, "0"),
    ({"channels": 4, "response": "cosine"}, "cosine"),
    ({"channels": 4, "normalization": "rows"}, "rows"),
    ({"channels": 4, "normalization": "count"}, "count"),
    ({"channels": 4, "response": "dot_product", "embedding_channels": 0}, "0"),
    ({"channels": 4, "response": partial(ia.DotProduct, phi="elu")}, "elu"),
]


@pytest.mark.parametrize(("arguments", "shown"), BAD_ARGUMENTS)
def test_bad_argument_error_shows_the_value(arguments, shown):
    with pytest.raises(ValueError, match=shown):
        ia.InvertibleAttention(**arguments)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"channels": 12.0}, "12.0"),
        ({"channels": "12"}, "'12'"),
        ({"channels": 4, "heads": 2.0}, "2.0"),
        ({"channels": True}, "True"),
    ],
)
def test_non_integer_counts_are_refused(arguments, shown):
    for layer in (ia.InvertibleAttention, ia.Attention):
        with pytest.raises(TypeError, match=f"must be an integer, got {shown}"):
            layer(**arguments)


def test_non_integer_context_channels_are_refused():
    with pytest.raises(TypeError, match="context_channels must be an integer, got 2.5"):
        ia.InvertibleAttention(4, context_channels=2.5)


def test_a_prior_for_other_heads_is_refused():
    with pytest.raises(ValueError, match="position_prior has 4 heads, the attention has 2"):
        ia.InvertibleAttention(4, heads=2, position_prior=ia.TorusPrior(heads=4))
    layer = ia.InvertibleAttention(4, heads=2, position_prior=ia.TorusPrior())
    assert layer(torch.zeros(1, 4, 3, 3)).shape == (1, 4, 3, 3)


def test_numpy_integers_are_accepted():
    assert ia.InvertibleAttention(np.int64(4), heads=np.int64(2))(torch.zeros(1, 4, 3)).shape == (1, 4, 3)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_coefficients_outside_the_open_interval(value):
    for constraint in (ia.Certified, ia.Relaxed):
        with pytest.raises(ValueError, match=str(value)):
            constraint(value)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_radius_must_be_positive(value):
    with pytest.raises(ValueError, match=str(value)):
        ia.Certified(0.9, radius=value)


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_column_sum_must_be_in_the_unit_interval(value):
    with pytest.raises(ValueError, match=str(value)):
        ia.Relaxed(0.9, column_sum=value)


BAD_INPUT = [
    (torch.zeros(2, 4), r"\(2, 4\)"),
    (torch.zeros(2, 4, 1, 1, 1, 1), r"\(2, 4, 1, 1, 1, 1\)"),
    (torch.zeros(2, 3, 5), "3"),
    (torch.zeros(0, 4, 5), r"\(0, 4, 5\)"),
    (torch.zeros(2, 4, 0), r"\(2, 4, 0\)"),
    (torch.zeros(2, 4, 5, dtype=torch.int64), "int64"),
    (torch.zeros(2, 4, 5, dtype=torch.complex64), "complex64"),
]


@pytest.mark.parametrize(("x", "shown"), BAD_INPUT)
def test_bad_input_error_shows_the_value(x, shown):
    layer = ia.InvertibleAttention(4)
    for method in (layer, layer.inverse, layer.solve_inverse, layer.forward_and_logdet, ia.Attention(4)):
        with pytest.raises(ValueError, match=shown):
            method(x)


def test_non_tensor_input_is_refused():
    layer = ia.InvertibleAttention(4)
    for method in (layer, layer.inverse, layer.solve_inverse, layer.forward_and_logdet, ia.Attention(4)):
        with pytest.raises(TypeError, match="expected a tensor, got ndarray"):
            method(np.zeros((2, 4, 5), dtype=np.float32))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_nonfinite_sample_affects_only_itself(response, normalization, bad):
    layer = ia.InvertibleAttention(4, response, normalization=normalization)
    x = torch.randn(3, 4, 5)
    layer(x)
    clean = layer(x)
    x[1, 2, 3] = bad
    z = layer(x)
    torch.testing.assert_close(z[[0, 2]], clean[[0, 2]])
    assert not z[1].isfinite().all()
    with pytest.raises(ia.ConvergenceError, match="1") as caught:
        layer.inverse(z)
    solution = caught.value.solution
    assert solution.converged.tolist() == [True, False, True]
    torch.testing.assert_close(solution.value[[0, 2]], x[[0, 2]], atol=1e-4, rtol=1e-4)


def test_nonfinite_sample_in_the_first_batch_leaves_the_radius_finite():
    layer = ia.InvertibleAttention(4)
    x = torch.randn(3, 4, 5)
    x[1] = float("nan")
    layer(x)
    assert 1 < layer.branch.radius / x[[0, 2]].norm(dim=1).max() < 1.01


@pytest.mark.parametrize("response", RESPONSES)
def test_layouts_and_sizes(response):
    layer = ia.InvertibleAttention(4, response)
    x = torch.randn(2, 4, 6, 8)
    z = layer(x)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), z)
    torch.testing.assert_close(layer(x.mT.contiguous().mT), z)
    torch.testing.assert_close(layer(x[:1]), z[:1])
    one = torch.randn(1, 4, 1)
    torch.testing.assert_close(layer.inverse(layer(one)), one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("response", RESPONSES)
def test_low_precision_is_computed_in_float32(response):
    layer = ia.InvertibleAttention(4, response)
    x = torch.randn(2, 4, 5)
    z = layer(x)
    low = copy.deepcopy(layer).bfloat16()
    out = low(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), z, atol=0.05, rtol=0.02)
    back = low.inverse(out)
    assert back.dtype == torch.bfloat16
    torch.testing.assert_close(back.float(), x, atol=0.1, rtol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x), z)


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_function_transforms(response, normalization):
    layer = ia.InvertibleAttention(3, response, normalization=normalization).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    v = torch.randn_like(x)
    layer(1.5 * x)  # so that no token lies on the sphere, where the projection has a kink
    _, jvp = torch.func.jvp(layer, (x,), (v,))
    step = 1e-6
    torch.testing.assert_close(
        jvp, (layer(x + step * v) - layer(x - step * v)) / (2 * step), rtol=1e-6, atol=1e-7
    )
    _, pull = torch.func.vjp(layer, x)
    torch.testing.assert_close((pull(v)[0] * v).sum(), (jvp * v).sum())
    many = torch.func.vmap(lambda sample: layer(sample[None])[0])(x)
    torch.testing.assert_close(many, layer(x))


def test_initialization_inside_a_transform_is_refused():
    layer = ia.InvertibleAttention(3)
    with pytest.raises(RuntimeError, match="initialize"):
        torch.func.vmap(lambda sample: layer(sample[None])[0])(torch.randn(2, 3, 4))


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize("response", RESPONSES)
def test_compiles_without_graph_breaks(response):
    layer = ia.InvertibleAttention(4, response)
    x = torch.randn(2, 4, 6)
    z = layer(x)
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), z)


@pytest.mark.parametrize("constraint", [ia.Certified(), ia.Certified(radius=3.0), ia.Relaxed()])
@pytest.mark.parametrize("response", RESPONSES)
def test_copies_and_storage(response, constraint, tmp_path):
    layer = ia.InvertibleAttention(4, response, constraint=constraint)
    x = 4 * torch.randn(2, 4, 6)
    z = layer(x)
    torch.testing.assert_close(copy.deepcopy(layer)(x), z)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    safetensors.torch.save_model(layer, str(tmp_path / "state.safetensors"))
    loaded = ia.InvertibleAttention(4, response, constraint=constraint)
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(loaded(x), z)
    # A radius set from the first batch is part of the state: a smaller batch must not set it again.
    torch.testing.assert_close(loaded(0.1 * x), layer(0.1 * x))
    loaded = ia.InvertibleAttention(4, response, constraint=constraint)
    safetensors.torch.load_model(loaded, str(tmp_path / "state.safetensors"))
    torch.testing.assert_close(loaded(x), z)


@pytest.mark.parametrize("response", RESPONSES)
def test_every_parameter_learns(response):
    layer = ia.InvertibleAttention(4, response, heads=2, bias=True)
    layer(torch.randn(2, 4, 6))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    layer(2 * torch.randn(2, 4, 6)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        # The embedded Gaussian's query bias cancels in the column normalization.
        if not (response == "embedded_gaussian" and name.endswith("query_bias")):
            assert parameter.grad.abs().max() > 0, name


def test_repr_shows_the_settings():
    text = repr(ia.InvertibleAttention(4, "gaussian", heads=2))
    assert "gaussian" in text
    assert "Certified(coefficient=0.9" in text


@pytest.mark.parametrize(
    ("name", "given"),
    [("constraint", 0.9), ("constraint", ia.Certified), ("solver", "anderson"), ("logdet", ia.Exact)],
)
def test_wrong_constraint_solver_or_estimator_type_is_refused_on_construction(name, given):
    with pytest.raises(ValueError, match=f"{name} must be an object such as"):
        ia.InvertibleAttention(4, **{name: given})
