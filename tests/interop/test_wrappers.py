from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

import invertible_attention as ia
from invertible_attention.interop import FlattenedBijection, Inverse, MaskInContext

LIBRARIES = {
    "normflows": "normflows",
    "nflows": "nflows",
    "zuko": "zuko",
    "pyro": "pyro",
    "freia": "FrEIA",
}


def test_flattened_bijection_matches_the_bijection_on_the_view():
    layer = ia.InvertibleAttention(3, logdet=ia.Exact()).double()
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    z, logdet = layer.forward_and_logdet(x)
    vectors = FlattenedBijection(layer, (3, 2, 2))
    flat, flat_logdet = vectors.forward_and_logdet(x.flatten(1))
    torch.testing.assert_close(flat, z.flatten(1))
    torch.testing.assert_close(flat_logdet, logdet)
    torch.testing.assert_close(vectors(x.flatten(1)), z.flatten(1))
    torch.testing.assert_close(vectors.inverse(flat), x.flatten(1))
    back, inverse_logdet = vectors.inverse_and_logdet(flat)
    torch.testing.assert_close(back, x.flatten(1))
    torch.testing.assert_close(inverse_logdet, -logdet)


def test_flattened_bijection_with_another_output_shape():
    vectors = FlattenedBijection(ia.flows.Squeeze(2), (1, 4, 4), (4, 2, 2))
    x = torch.randn(3, 16)
    torch.testing.assert_close(vectors(x), ia.flows.Squeeze(2)(x.view(3, 1, 4, 4)).flatten(1))
    torch.testing.assert_close(vectors.inverse(vectors(x)), x)
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(3, 5\)"):
        FlattenedBijection(ia.flows.Squeeze(2), (4, 4), (3, 5))


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 2), (6,)])
def test_flattened_bijection_refuses_vectors_of_another_size(shape):
    with pytest.raises(ValueError, match=str(shape[0])):
        FlattenedBijection(ia.InvertibleAttention(3), (3, 2))(torch.zeros(shape))


def test_inverse_swaps_the_directions():
    layer = ia.InvertibleAttention(2, logdet=ia.Exact()).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    z, logdet = layer.forward_and_logdet(x)
    inverse = Inverse(layer)
    torch.testing.assert_close(inverse(z), x)
    torch.testing.assert_close(inverse.inverse(x), z)
    torch.testing.assert_close(inverse.forward_and_logdet(z)[1], -logdet)
    torch.testing.assert_close(inverse.inverse_and_logdet(x)[1], logdet)


def test_non_bijections_are_refused():
    from invertible_attention.interop import to_distribution

    with pytest.raises(ValueError, match="Linear"):
        to_distribution(torch.nn.Linear(2, 2))


def test_importing_the_package_imports_no_flow_library():
    code = (
        "import sys, invertible_attention.interop as interop; dir(interop); "
        f"print([m for m in {list(LIBRARIES.values())} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("module", LIBRARIES)
def test_missing_library_error_names_the_extra(module, monkeypatch):
    library = LIBRARIES[module]
    for name in [m for m in sys.modules if m == library or m.startswith(library + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)  # as Python marks a missing module
    monkeypatch.delitem(sys.modules, f"invertible_attention.interop.{module}", raising=False)
    with pytest.raises(ImportError, match=r"pip install .*\[interop\]"):
        importlib.import_module(f"invertible_attention.interop.{module}")


def test_unknown_names_are_refused():
    import invertible_attention.interop as interop

    with pytest.raises(AttributeError, match="to_nothing"):
        interop.to_nothing  # noqa: B018
    assert all(hasattr(interop, name) for name in dir(interop))


def test_views_forward_masks():
    layer = ia.InvertibleAttention(3, logdet=ia.Exact()).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    mask = torch.arange(4) < torch.tensor([[4], [2]])
    z, logdet = layer.forward_and_logdet(x, mask=mask)
    vectors = FlattenedBijection(layer, (3, 4))
    values = mask[:, None].expand_as(x).flatten(1)
    flat, flat_logdet = vectors.forward_and_logdet(x.flatten(1), mask=values)
    torch.testing.assert_close((flat, flat_logdet), (z.flatten(1), logdet))
    back, back_logdet = vectors.inverse_and_logdet(flat, mask=values)
    torch.testing.assert_close((back, back_logdet), (x.flatten(1), -logdet))
    torch.testing.assert_close(vectors.inverse(vectors(x.flatten(1), mask=values), mask=values), x.flatten(1))
    assert torch.equal(vectors.output_mask(values), values)
    squeeze = FlattenedBijection(ia.flows.Squeeze(2), (3, 4), (6, 2))
    assert torch.equal(squeeze.output_mask(values), squeeze(values))
    inverse = Inverse(layer)
    torch.testing.assert_close(inverse.forward_and_logdet(z, mask=mask), (x, -logdet))
    torch.testing.assert_close(inverse.inverse_and_logdet(x, mask=mask), (z, logdet))
    torch.testing.assert_close(inverse.inverse(inverse(z, mask=mask), mask=mask), z)


def test_views_refuse_unsupported_arguments():
    with pytest.raises(ValueError, match="Residual takes no mask"):
        MaskInContext(ia.Residual(torch.nn.Linear(3, 3)))
    masked = MaskInContext(ia.InvertibleAttention(3))
    for context, shown in (
        (None, "None"),
        (torch.ones(2, 4), r"\(2, 4\)"),
        (torch.ones(2, 3, 5), r"\(2, 3, 5\)"),
    ):
        with pytest.raises(ValueError, match=shown):
            masked(torch.zeros(2, 3, 5), context=context)
    with pytest.raises(ValueError, match="takes no mask"):
        FlattenedBijection(ia.Residual(torch.nn.Linear(3, 3)), (3,))(
            torch.zeros(2, 3), mask=torch.ones(2, 3).bool()
        )
