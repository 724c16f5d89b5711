"""Every implementation under torch.func, forward-mode differentiation and torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from invertible_attention.attention.functional import attend, fused
from invertible_attention.attention.functional.form import Form

from .cases import problem, run

CASES = [
    ("reference", Form("product", "exp", "column")),
    ("blocked", Form("product", "exp", "column")),
    ("blocked", Form("product", "elu_plus_one", "all")),
    ("blocked", Form("sum", "softplus", "row")),
    ("flash", Form("product", "exp", "column")),
    ("flash", Form("product", "exp", "row")),
    ("flash", Form("product", "exp", "all")),
    ("sorted", Form("sum", "elu_plus_one", "column")),
    ("sorted", Form("sum", "elu", "all")),
    ("closed_form", Form("sum", "exp", "column")),
    ("closed_form", Form("product", "identity", "count")),
]
IDS = [f"{name}-{form.combine}-{form.phi}-{form.normalization}" for name, form in CASES]


@pytest.mark.parametrize(("name", "form"), CASES, ids=IDS)
@pytest.mark.usefixtures("small_strips")
class TestTransforms:
    def test_jvp(self, name: str, form: Form):
        tensors = problem(form)
        tangents = tuple(torch.randn_like(tensor) for tensor in tensors)
        found = torch.func.jvp(lambda *t: run(form, name, *t), tensors, tangents)
        expected = torch.func.jvp(lambda *t: run(form, "reference", *t), tensors, tangents)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)

    def test_forward_mode_of_part(self, name: str, form: Form):
        query, key, value = problem(form)

        def tangent(implementation: str) -> Tensor:
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(key, key.cos())
                out = run(form, implementation, query, dual, value)
                return torch.autograd.forward_ad.unpack_dual(out).tangent

        if (form.combine, form.phi, form.normalization) == ("sum", "exp", "column"):
            return  # does not depend on the keys
        torch.testing.assert_close(tangent(name), tangent("reference"), rtol=1e-10, atol=1e-11)

    def test_vjp(self, name: str, form: Form):
        tensors = problem(form)
        out, pull = torch.func.vjp(lambda *t: run(form, name, *t), *tensors)
        _, expected = torch.func.vjp(lambda *t: run(form, "reference", *t), *tensors)
        torch.testing.assert_close(pull(out.cos()), expected(out.cos()), rtol=1e-10, atol=1e-11)

    def test_vmap(self, name: str, form: Form):
        query, key, value = problem(form, seed=1)
        queries = torch.stack((query, query.cos()))
        found = torch.vmap(lambda q: run(form, name, q, key, value))(queries)
        expected = torch.stack([run(form, name, q, key, value) for q in queries])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    def test_jacobians_and_hessian_products(self, name: str, form: Form):
        query, key, value = problem(form, batch=1, heads=1, queries=4, keys=4)

        def norm(implementation: str):
            return lambda q: run(form, implementation, q, key, value).sin().sum()

        for transform in (
            lambda f: torch.func.jacrev(torch.func.grad(f))(query),
            lambda f: torch.func.jacfwd(torch.func.grad(f))(query),
            lambda f: torch.func.jvp(torch.func.grad(f), (query,), (query.cos(),))[1],
        ):
            torch.testing.assert_close(
                transform(norm(name)), transform(norm("reference")), rtol=1e-9, atol=1e-10
            )

    def test_gradcheck(self, name: str, form: Form):
        tensors = [t.requires_grad_() for t in problem(form, batch=1, heads=1, queries=3, keys=4, features=2)]
        arguments = (lambda *t: run(form, name, *t), tensors)
        assert torch.autograd.gradcheck(*arguments, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(*arguments, fast_mode=True)


@pytest.mark.usefixtures("small_strips")
def test_portable_kernel_under_transforms(monkeypatch: pytest.MonkeyPatch):
    asked: list[torch.device] = []
    monkeypatch.setattr(fused, "kernel_for", lambda device: asked.append(device) or fused.PortableKernel())
    TestTransforms().test_jvp("flash", Form("product", "exp", "column"))
    TestTransforms().test_vmap("flash", Form("product", "exp", "row"))
    TestTransforms().test_jacobians_and_hessian_products("flash", Form("product", "exp", "column"))
    assert asked, "the kernel of this device was used instead"


# Code is generated for what the compiler sees through, and around an operator: with a prior, which has most inputs.
GENERATED = [(name, form, False) for name, form in CASES if name in ("reference", "closed_form")]
GENERATED += [("blocked", Form("product", "elu_plus_one", "column"), True)]
COMPILED = [(name, form, False) for name, form in (*CASES, ("auto", CASES[0][1]))]
COMPILED += [GENERATED[-1], ("flash", Form("product", "exp", "column"), True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "cases"), [("aot_eager", COMPILED), ("inductor", GENERATED)], ids=["traced", "generated"]
)
def test_every_implementation_compiles_whole(backend: str, cases: list[tuple[str, Form, bool]]):
    torch._dynamo.reset()
    inputs: list[list[Tensor]] = []
    for _, form, has_prior in cases:
        sizes = {"queries": 8, "keys": 8} if has_prior else {}
        tensors = [*problem(form, dtype=torch.float32, **sizes)]
        tensors += [torch.randn(heads, 8, 2) for heads in (2, 1)] if has_prior else []
        inputs.append([tensor.requires_grad_() for tensor in tensors])

    def losses() -> list[Tensor]:
        found = []
        for (name, form, has_prior), (query, key, value, *factors) in zip(cases, inputs, strict=True):
            prior: dict[str, Any] = {"prior": tuple(factors)} if has_prior else {}
            found.append(run(form, name, query, key, value, **prior).sin().sum())
        return found

    found, expected = torch.compile(losses, fullgraph=True, backend=backend)(), losses()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    flat = [tensor for tensors in inputs for tensor in tensors]
    gradients = [
        torch.autograd.grad(torch.stack(values).sum(), flat, allow_unused=True)
        for values in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    # Only the closed forms leave inputs unused; factors of a prior, the last two, always count.
    assert all(gradient is not None for gradient in gradients[0][-5:])


@pytest.mark.slow
def test_large_attention_compiles_whole():
    torch._dynamo.reset()
    query, key, value = problem(Form("product", "exp", "column"), queries=800, keys=800, dtype=torch.float32)

    def column(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, combine="product", phi="exp", normalization="column")

    found = torch.compile(column, fullgraph=True)(query, key, value)
    torch.testing.assert_close(found, column(query, key, value), rtol=1e-5, atol=1e-5)


def test_exported_attention_has_standard_operators_only():
    """A graph for other runtimes must not contain operators of this library."""
    form = Form("sum", "elu_plus_one", "column")
    query, key, value = problem(form, queries=800, keys=800, dtype=torch.float32)

    class Column(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return run(form, "auto", query, key, value)

    program = torch.export.export(Column(), (query, key, value))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("invertible_attention" in target for target in targets)
    torch.testing.assert_close(program.module()(query, key, value), run(form, "auto", query, key, value))
