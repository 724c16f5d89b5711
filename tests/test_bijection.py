"""Arguments of every bijection: a context and a mask are used or refused."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

import invertible_attention as ia
from invertible_attention import flows, interop

SHAPE = r"got one of shape \(2, 3\)"
METHODS = ("forward", "inverse", "forward_and_logdet", "inverse_and_logdet")


class Double(ia.Bijection):
    """A minimal user bijection with the two abstract methods."""

    def forward_and_logdet(self, x, *, context=None, mask=None):
        return 2 * x, torch.full((len(x),), x[0].numel() * math.log(2))

    def inverse_and_logdet(self, z, *, context=None, mask=None):
        return z / 2, torch.full((len(z),), -z[0].numel() * math.log(2))


class Shift(ia.Bijection):
    """Uses a context, without naming the mask it does not use."""

    uses_context = True

    def forward_and_logdet(self, x, *, context=None):
        return x + context, torch.zeros(len(x))

    def inverse_and_logdet(self, z, *, context=None):
        return z - context, torch.zeros(len(z))


def attention(**arguments):
    return ia.InvertibleAttention(3, logdet=ia.Exact(), **arguments)


def test_methods_without_logdet_are_derived():
    x = torch.randn(2, 3)
    torch.testing.assert_close(Double()(x), 2 * x)
    torch.testing.assert_close(Double().inverse(x), x / 2)
    with pytest.raises(TypeError, match="inverse_and_logdet"):
        type("Half", (ia.Bijection,), {"forward_and_logdet": Double.forward_and_logdet})()


@pytest.mark.parametrize("method", [*METHODS, "solve_inverse"])
@pytest.mark.parametrize("argument", ["context", "mask"])
def test_positional_arguments_in_overrides_are_refused_at_definition(method, argument):
    written = {"context": lambda self, x, context=None: x, "mask": lambda self, z, mask=None: z}[argument]
    with pytest.raises(TypeError, match=rf"Old.{method} takes {argument} by position.*\*, context=None"):
        type("Old", (Double,), {method: written})


def test_chains_pass_context_only_to_parts_that_use_it():
    x, context = torch.randn(2, 3), torch.randn(2, 3)
    chain = flows.Sequential(Double(), Shift(), flows.Sequential(flows.Flatten((3,)), Double()))
    assert chain.uses_context
    torch.testing.assert_close(chain(x, context=context), 2 * (2 * x + context))
    z, logdet = chain.forward_and_logdet(x, context=context)
    back, inverse_logdet = chain.inverse_and_logdet(z, context=context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(logdet, -inverse_logdet)
    flow = flows.Flow(chain, flows.DiagonalGaussian(3))
    torch.testing.assert_close(flow(x, context=context), flow.base.log_prob(z) + logdet)


def refusals():
    """Calls of every public function with an unused context or mask."""
    vector, image = torch.zeros(2, 3), torch.zeros(2, 3, 4)
    unused = {"context": torch.zeros(2, 3), "mask": torch.ones(2, 3, dtype=torch.bool)}
    plain = {
        "double": (Double(), vector),
        "residual": (flows.Residual(torch.nn.Linear(3, 3)), vector),
        "linear": (flows.Residual(flows.LipschitzLinearBranch(3)), vector),
        "chain": (flows.Sequential(Double(), Double()), vector),
        "split": (flows.Split((3,), Double()), vector),
        "inverse": (interop.Inverse(Double()), vector),
        "vectors": (interop.FlattenedBijection(Double(), (3, 1)), vector),
        "distribution": (interop.from_distribution(torch.distributions.ExpTransform()), vector.exp()),
    }
    for name, (bijection, x) in plain.items():
        for argument in unused:
            for method in METHODS:
                if name != "double" or "logdet" not in method:  # user-defined methods are exempt
                    yield (
                        f"{name}-{argument}-{method}",
                        getattr(bijection, method),
                        x,
                        {argument: unused[argument]},
                    )
    context = {"context": unused["context"]}
    used = {
        "actnorm": (flows.ActNorm(3), vector),
        "logit": (flows.Logit(), vector + 0.5),
        "dequantize": (flows.Dequantize(), vector),
        "flatten": (flows.Flatten((3,)), vector),
        "squeeze": (flows.Squeeze(2), image),
        "convolution": (flows.Residual(flows.LipschitzConvBranch(3, 3, (4,))), image),
        "attention": (attention(), image),
        "released": (interop.to_plain(attention(constraint=ia.Relaxed())), image),
    }
    for name, (bijection, x) in used.items():
        for method in METHODS:
            yield f"{name}-context-{method}", getattr(bijection, method), x, context
    yield "attention-context-solve", attention().solve_inverse, image, context
    flow = flows.Flow(Double(), flows.DiagonalGaussian(3))
    for argument in unused:
        for method in ("forward", "log_prob", "bits_per_dim", "initialize"):
            yield f"flow-{argument}-{method}", getattr(flow, method), vector, {argument: unused[argument]}
        yield f"flow-{argument}-sample", flow.sample, 2, {argument: unused[argument]}
    yield "context tokens", Shift().forward, vector, {"mask": unused["mask"], "context": vector}


@pytest.mark.parametrize(("call", "x", "given"), [pytest.param(*case, id=name) for name, *case in refusals()])
def test_unused_arguments_are_refused(call, x, given):
    with pytest.raises(ValueError, match=rf"takes no (context|mask), {SHAPE}"):
        call(x, **given)


def test_ordinary_attention_takes_its_mask_as_a_keyword():
    layer, mask = ia.Attention(3), torch.tensor([[True, False]])
    assert (layer(torch.ones(1, 3, 2), mask=mask)[..., 1] == 1).all()
    with pytest.raises(TypeError, match="positional"):
        layer(torch.ones(1, 3, 2), mask)


@pytest.mark.parametrize("layer", [ia.InvertibleAttention, ia.Attention])
def test_settings_of_a_layer_are_keywords(layer):
    parameters = list(inspect.signature(layer).parameters.values())
    assert [p.name for p in parameters[:2]] == ["channels", "response"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])


def test_non_tensor_is_refused_with_its_value():
    with pytest.raises(ValueError, match=r"takes no context, got \[1, 2\]"):
        attention()(torch.zeros(2, 3, 4), context=[1, 2])
