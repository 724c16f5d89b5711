"""Causal attention of every response against its definition, with first and second derivatives."""

from __future__ import annotations

import pytest
import torch

from invertible_attention.attention.functional.form import log_phi
from invertible_attention.attention.responses import make_response
from invertible_attention.attention.triangular import attend
from invertible_attention.attention.triangular.attend import attend_causally

from .cases import RESPONSES


def definition(query, key, value, response, bias=None):
    score = query @ key.mT if response.combine == "product" else query + key.mT
    logarithm = score if response.phi == "exp" else log_phi(score, response.phi)
    logarithm = logarithm if bias is None else logarithm + bias
    queries, keys = query.shape[-2], key.shape[-2]
    seen = torch.arange(keys) <= torch.arange(queries)[:, None] + keys - queries
    weight = torch.where(seen, logarithm.exp(), 0.0)
    return weight / weight.sum(-1, keepdim=True) @ value


def problem(response, queries, keys, features=5):
    dim = 3 if response.combine == "product" else 1
    return tuple(
        torch.randn(2, 3, n, d, dtype=torch.float64, requires_grad=True)
        for n, d in ((queries, dim), (keys, dim), (keys, features))
    )


@pytest.mark.parametrize("bias", [None, "shared", "each"])
@pytest.mark.parametrize("sizes", [(6, 6), (2, 6), (1, 1)], ids=str)
@pytest.mark.parametrize("name", RESPONSES)
def test_matches_the_definition(name, sizes, bias):
    response = make_response(name, 6, 3, 3, False)
    query, key, value = problem(response, *sizes)
    shape = {None: None, "shared": (3, *sizes), "each": (2, 3, *sizes)}[bias]
    added = None if shape is None else torch.randn(shape, dtype=torch.float64, requires_grad=True)
    inputs = [t for t in (query, key, value, added) if t is not None]
    out = attend_causally(query, key, value, response, bias=added)
    expected = definition(query, key, value, response, added)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, upstream), torch.autograd.grad(expected, inputs, upstream)
    )


def test_fused_kernel_matches_to_second_order(monkeypatch):
    monkeypatch.setattr(attend, "_SMALL_SCORES", 0)
    response = make_response("gaussian", 6, 3, None, False)
    inputs = problem(response, 7, 7)

    def fused(*tensors):
        return attend_causally(*tensors, response)

    def slow(*tensors):
        return definition(*tensors, response)

    torch.testing.assert_close(fused(*inputs), slow(*inputs))
    assert torch.autograd.gradcheck(fused, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(fused, inputs, fast_mode=True)
    plain = tuple(t.detach() for t in inputs)
    tangents = tuple(torch.randn_like(t) for t in plain)
    for transform in (
        lambda f: torch.func.jvp(f, plain, tangents),
        lambda f: torch.func.jvp(torch.func.grad(lambda *t: f(*t).sin().sum(), (0, 1, 2)), plain, tangents),
        lambda f: torch.vmap(f)(*(t[:, None] for t in plain)),
        lambda f: torch.vmap(torch.func.grad(lambda *t: f(*t).sin().sum(), (0, 1, 2)))(
            *(t[:, None] for t in plain)
        ),
    ):
        torch.testing.assert_close(transform(fused), transform(slow))


def test_later_tokens_never_matter_even_if_nonfinite():
    response = make_response("gaussian", 6, 3, None, False)
    query, key, value = (t.detach() for t in problem(response, 9, 9))
    for implementation in ("flash", "reference", "blocked"):
        before = attend_causally(query, key, value, response, implementation=implementation)
        changed = [t.clone() for t in (query, key, value)]
        for t in changed:
            t[:, :, 4:] = 1e3
        after = attend_causally(*changed, response, implementation=implementation)
        assert torch.equal(before[:, :, :4], after[:, :, :4])
