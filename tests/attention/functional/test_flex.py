"""FlexAttention compiled: one kernel for every shape, and strips where there is none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch

import invertible_attention as ia
from invertible_attention.attention.functional import flex
from invertible_attention.attention.functional.form import Form

from .cases import applicable, derivatives, problem, run

# Every combination of axes of length one and longer axes, then shapes of the same kinds: forty.
KINDS = [*product((1, 2, 3), (1, 2), (1, 5, 12))]
SHAPES = [*((batch, 1, tokens) for batch in (1, 4) for tokens in range(20, 31))]


@pytest.fixture(scope="module")
def kernels() -> Iterator[tuple[Callable[..., Any], list[Any]]]:
    """The function as it is compiled on a GPU, up to the kernel itself, and the graphs compiled; one for all tests."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    yield torch.compile(flex._flex, fullgraph=True, dynamic=True, backend=backend), graphs
    torch._dynamo.reset()


@pytest.fixture
def compiled(kernels: tuple[Callable[..., Any], list[Any]], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Compile on a CPU as on a GPU, but for the kernel, which a CPU has without sums only; the graphs compiled."""
    function, graphs = kernels
    monkeypatch.setattr(flex, "is_compiled_on", lambda device: True)
    monkeypatch.setattr(flex, "_compiled", lambda: function)
    monkeypatch.setattr(flex, "_not_compiled", set())
    return graphs


@pytest.mark.slow
def test_new_shapes_do_not_recompile_for_any_phi_and_normalization(compiled: list[Any]):
    forms = [
        Form("product", *form)
        for form in product(("exp", "elu_plus_one", "softplus"), ("column", "row", "all"))
    ]
    counts = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for shapes in (KINDS, SHAPES):
            for form, shape in product(forms, shapes):
                assert_same_derivatives(form, "flex", shape)
            counts.append(len(compiled))
    assert not flex._not_compiled
    assert 3 <= counts[0] == counts[1] < flex._KERNELS


def assert_same_derivatives(form: Form, name: str, shape: tuple[int, int, int]) -> None:
    batch, heads, tokens = shape
    tensors = problem(form, batch=batch, heads=heads, queries=tokens, keys=tokens + 1)
    found, expected = derivatives(form, name, tensors, 1), derivatives(form, "reference", tensors, 1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "response", [("product", "exp"), ("product", "elu_plus_one"), ("sum", "elu_plus_one")]
)
def test_forty_shapes_of_every_response_and_implementation_but_flex(response: tuple[Any, Any]):
    for form in (Form(*response, normalization) for normalization in ("column", "row", "all")):
        for name in applicable(form):
            if name != "flex":  # compared above, and compiled
                for shape in (*KINDS, *SHAPES):
                    assert_same_derivatives(form, name, shape)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("response", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
def test_forty_shapes_of_a_layer(response: str):
    forced = "sorted" if response == "concatenation" else "flex"
    layer, plain = (
        ia.InvertibleAttention(4, response, heads=2, implementation=name).double()
        for name in (forced, "reference")
    )
    layer.initialize(torch.randn(2, 4, 6, 6, dtype=torch.float64))
    plain.load_state_dict(layer.state_dict())
    for batch, *spatial in product((1, 3), range(1, 6), range(2, 6)):
        x = torch.randn(batch, 4, *spatial, dtype=torch.float64, requires_grad=True)
        results = [module.train().forward_and_logdet(x) for module in (layer, plain)]
        torch.testing.assert_close(results[0][0], results[1][0])
        for z, logdet in results:
            (z.square().sum() + logdet.sum()).backward()
        with torch.no_grad():
            torch.testing.assert_close(layer.inverse(results[0][0]), x)


@pytest.mark.slow
def test_compile_failure_falls_back_to_strips_and_warns_once(monkeypatch: pytest.MonkeyPatch):
    """On a CPU the compiled kernel refuses to return the sums."""
    torch._dynamo.reset()
    monkeypatch.setattr(flex, "is_compiled_on", lambda device: True)
    monkeypatch.setattr(flex, "_not_compiled", set())
    flex._compiled.cache_clear()
    expected = {"column": 1, "row": 0, "all": 0}
    for normalization, said in expected.items():
        form = Form("product", "softplus", normalization)
        tensors = [tensor.requires_grad_() for tensor in problem(form, dtype=torch.float32)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = run(form, "flex", *tensors)
        assert [str(warning.message)[:38] for warning in caught if warning.category is RuntimeWarning] == [
            "FlexAttention could not be compiled fo"
        ] * said
        reference = run(form, "reference", *tensors)
        torch.testing.assert_close(found, reference)
        torch.testing.assert_close(
            torch.autograd.grad(found.sin().sum(), tensors),
            torch.autograd.grad(reference.sin().sum(), tensors),
            rtol=1e-5,
            atol=1e-5,
        )
    assert len(flex._not_compiled) == 1


@pytest.mark.usefixtures("compiled")
def test_kernel_failure_at_run_time_falls_back(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any) -> Any:
        raise ValueError("no valid choices\nmore")

    monkeypatch.setattr(flex, "_compiled", lambda: fails)
    form = Form("product", "elu_plus_one", "column")
    tensors = problem(form)
    with pytest.warns(RuntimeWarning, match=r"phi='elu_plus_one'.*ValueError: no valid choices$"):
        found = run(form, "flex", *tensors)
    torch.testing.assert_close(found, run(form, "reference", *tensors))


@pytest.mark.usefixtures("compiled")
def test_out_of_memory_is_raised(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(flex, "_compiled", lambda: fails)
    form = Form("product", "elu_plus_one", "row")
    with pytest.raises(torch.OutOfMemoryError):
        run(form, "flex", *problem(form))
