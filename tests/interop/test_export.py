"""Eager, compiled, exported and frozen modules agree."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch.nn.utils import parametrize

import invertible_attention as ia
from invertible_attention.interop import FixedInverse, compile_branches, to_plain

RESPONSES = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")


def make(response="embedded_gaussian", **arguments):
    torch.manual_seed(0)
    arguments = {"constraint": ia.Certified(0.8)} | copy.deepcopy(arguments)
    layer = ia.InvertibleAttention(4, response, **arguments).eval()
    layer.initialize(2 * torch.randn(4, 4, 6))
    return layer


@pytest.mark.parametrize(
    "arguments",
    [
        {"heads": 2, "bias": True},
        {"normalization": "row", "causal": True},
        {"constraint": ia.Relaxed(0.7, 0.5, True)},
        {"context_channels": 3},
        {"position_prior": ia.TorusPrior(1)},
        {"normalization": "all", "heads": 2, "causal": True},
        {"context_channels": 3, "context_kind": "tokens"},
        {"context_channels": 3, "context_kind": "tokens", "position_prior": ia.TorusPrior(1), "heads": 2},
        {"normalization": "row", "causal": True, "position_prior": ia.TorusPrior(1)},
    ],
)
@pytest.mark.parametrize("response", RESPONSES)
def test_frozen_module_is_the_same_map(response, arguments):
    layer = make(response, logdet=ia.Exact(), **arguments).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    plain = to_plain(layer)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    context = None
    if "context_channels" in arguments:
        sources = (5,) if arguments.get("context_kind") == "tokens" else ()
        context = torch.randn(3, 3, *sources, dtype=torch.float64)
    z, logdet = layer.forward_and_logdet(x, context=context)
    plain_z, plain_logdet = plain.forward_and_logdet(x, context=context)
    torch.testing.assert_close(plain_z, z, atol=1e-12, rtol=0)
    torch.testing.assert_close(plain_logdet, logdet)
    assert plain.lipschitz_bound().item() == pytest.approx(layer.lipschitz_bound().item())
    if isinstance(layer.branch.constraint, ia.Certified):
        torch.testing.assert_close(plain.inverse(z, context=context), x, atol=1e-10, rtol=0)
    assert not any(parametrize.is_parametrized(module) for module in plain.modules())
    state = {name for name, _ in plain.named_parameters()}
    assert {"branch.value_weight", "branch.out_weight"} <= state
    mask = torch.arange(6) < torch.tensor([6, 2, 3])[:, None]
    torch.testing.assert_close(
        plain(x, context=context, mask=mask), layer(x, context=context, mask=mask), atol=1e-12, rtol=0
    )
    few = x[..., :2]  # the scale may depend on the number of tokens
    torch.testing.assert_close(plain(few, context=context), layer(few, context=context), atol=1e-12, rtol=0)


@pytest.mark.parametrize("normalization", ["column", "row", "all"])
def test_no_norm_is_computed_at_run_time(normalization, monkeypatch):
    layer = make(normalization=normalization, position_prior=ia.TorusPrior(1))
    plain = to_plain(layer)
    x = torch.randn(2, 4, 5)
    z = layer(x)

    def refuse(*args, **kwargs):
        raise AssertionError("a norm was computed")

    for name in ("branch", "responses"):
        module = importlib.import_module(f"invertible_attention.attention.{name}")
        monkeypatch.setattr(module, "spectral_norm_upper_bounds", refuse)
    with pytest.raises(AssertionError, match="norm"):
        layer(x)
    torch.testing.assert_close(plain(x), z)


def test_frozen_flows_are_the_same_map():
    flow = ia.flows.InvertibleResNet(
        (1, 4, 4), hidden_channels=4, blocks=(1, 1), attention=ia.InvertibleAttention
    ).eval()
    x = torch.rand(8, 1, 4, 4)
    flow.initialize(x)
    plain = to_plain(flow)
    torch.testing.assert_close(plain(x), flow(x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(plain.inverse(plain(x)), x, atol=1e-4, rtol=1e-4)
    assert not any(parametrize.is_parametrized(module) for module in plain.modules())
    assert any(parametrize.is_parametrized(module) for module in flow.modules())
    with pytest.raises(ValueError, match="once"):
        to_plain(ia.InvertibleAttention(4))


@pytest.mark.parametrize("response", RESPONSES)
def test_fixed_inverse(response):
    layer = make(response).double()
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    inverse = FixedInverse(layer, tolerance=1e-8)
    torch.testing.assert_close(inverse(layer(x)), x, atol=1e-7, rtol=0)
    one = FixedInverse(layer, steps=1)(layer(x))
    assert (one - x).norm() < (layer(x) - x).norm()


def test_fixed_inverse_of_a_flow_and_its_errors():
    flow = ia.flows.Sequential(ia.flows.ActNorm(4), make()).eval()
    x = torch.randn(5, 4, 6)
    flow.initialize(x)
    z = flow(x)
    torch.testing.assert_close(FixedInverse(flow)(z), x, atol=1e-5, rtol=1e-5)
    relaxed = make(constraint=ia.Relaxed(0.5))
    with pytest.raises(ValueError, match="certified"):
        FixedInverse(relaxed)
    FixedInverse(relaxed, steps=3)
    with pytest.raises(ValueError, match="0"):
        FixedInverse(make(), tolerance=0)


def test_exported_programs_agree():
    layer = make()
    x = torch.randn(2, 4, 6)
    with torch.no_grad():
        z = layer(x)
        for module, given, expected in ((to_plain(layer), x, z), (FixedInverse(layer, steps=8), z, None)):
            expected = module(given) if expected is None else expected
            program = torch.export.export(module.eval(), (given,)).module()
            torch.testing.assert_close(program(given), expected, atol=1e-6, rtol=0)


@pytest.mark.compiles
@pytest.mark.slow
def test_compiled_inverse_agrees():
    layer = make()
    inverse = FixedInverse(layer, steps=2)  # the steps are unrolled, and all alike after the first
    with torch.no_grad():
        z = layer(torch.randn(3, 4, 6))
        torch.testing.assert_close(torch.compile(inverse, fullgraph=True)(z), inverse(z), atol=1e-6, rtol=0)


@pytest.mark.compiles
@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {"heads": 2, "bias": True, "context_channels": 3, "context_kind": "tokens"},
        {"constraint": ia.Relaxed(0.5), "response": "gaussian"},
    ],
)
def test_compiled_branches_are_the_same_inside_solvers(arguments):
    layer = make(**arguments)
    x = torch.randn(3, 4, 6)
    context = torch.randn(3, 3, 5) if "context_channels" in arguments else None
    mask = torch.arange(6) < torch.tensor([[6], [4], [2]])
    fast = compile_branches(layer, backend="eager")
    with torch.no_grad():
        for given in ({}, {"mask": mask}):
            z = layer(x, context=context, **given)
            found, expected = (
                fast.solve_inverse(z, context=context, **given),
                layer.solve_inverse(z, context=context, **given),
            )
            torch.testing.assert_close(found.value, expected.value, atol=2e-6, rtol=0)
            assert torch.equal(found.evaluations, expected.evaluations)
        assert torch.equal(fast.lipschitz_bound(), layer.lipschitz_bound())
    # Gradients of any order are those of the branch itself.
    z, logdet = fast.train().forward_and_logdet(x, context=context)
    (z.sum() + logdet.sum()).backward()
    assert all(parameter.grad is not None for parameter in fast.parameters())


def test_norms_are_computed_once_per_call(monkeypatch):
    layer = make(logdet=ia.Exact())
    x = torch.randn(2, 4, 6)
    calls = []
    norms = type(layer.branch)._norms
    monkeypatch.setattr(type(layer.branch), "_norms", lambda self: calls.append(0) or norms(self))
    z, _ = layer.forward_and_logdet(x)
    assert len(calls) == 1
    layer.eval().requires_grad_(False).inverse(z.detach())
    assert len(calls) == 2


@pytest.mark.compiles
@pytest.mark.slow
def test_compiled_attention_over_many_tokens_agrees():
    # From some size on the compiler rewrites apparent softmax attention, which column attention is not. Without the
    # norms of the weights, which `test_compiled_inverse_agrees` compiles, six maps are one quick compilation.
    x = torch.randn(16, 12, 8, 8)
    kinds = [*((response, "column") for response in RESPONSES)]
    kinds += [("embedded_gaussian", "row"), ("embedded_gaussian", "all")]
    layers = {kind: ia.InvertibleAttention(12, kind[0], normalization=kind[1]).eval() for kind in kinds}
    for layer in layers.values():
        layer.initialize(x)
    plain = {kind: to_plain(layer) for kind, layer in layers.items()}
    compiled = torch.compile(lambda x: {kind: module(x) for kind, module in plain.items()}, fullgraph=True)
    with torch.no_grad():
        expected = {kind: layer(x) for kind, layer in layers.items()}
        torch.testing.assert_close(compiled(x), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_onnx_forward_and_inverse_agree(tmp_path):
    reason = "needs onnx, onnxscript and onnxruntime: pip install 'invertible-attention[interop]'"
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=reason)
    runtime = pytest.importorskip("onnxruntime", reason=reason)
    layer = make()
    x = torch.randn(2, 4, 6)
    with torch.no_grad():
        z = layer(x)
        for module, given in ((to_plain(layer), x), (FixedInverse(layer, steps=4), z)):
            expected = module(given)
            path = tmp_path / f"{type(module).__name__}.onnx"
            torch.onnx.export(module.eval(), (given,), path, dynamo=True, verbose=False)
            session = runtime.InferenceSession(path)
            (result,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
            torch.testing.assert_close(torch.from_numpy(result), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    # The branch, its inverse and its log-determinant are computed in float32; the result has the input's dtype.
    layer = make(logdet=ia.Exact())
    x = torch.randn(2, 4, 6)
    z, logdet = layer.forward_and_logdet(x)
    with torch.autocast("cpu", dtype=dtype):
        for module in (layer, to_plain(layer)):
            inside, inside_logdet = module.forward_and_logdet(x)
            assert inside.dtype == inside_logdet.dtype == torch.float32
            torch.testing.assert_close(inside, z, atol=1e-6, rtol=0)
            torch.testing.assert_close(inside_logdet, logdet, atol=1e-5, rtol=0)
            torch.testing.assert_close(module.inverse(z), x, atol=1e-5, rtol=1e-5)
        assert layer(x.to(dtype)).dtype == dtype
