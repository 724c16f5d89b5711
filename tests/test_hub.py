from __future__ import annotations

import json
import sys

import pytest
import torch

import invertible_attention as ia

pytest.importorskip(
    "huggingface_hub", reason="needs huggingface_hub: pip install 'invertible-attention[interop]'"
)
pytest.importorskip("safetensors", reason="needs safetensors: pip install 'invertible-attention[interop]'")

from invertible_attention import hub


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"response": "embedded_gaussian", "heads": 2, "bias": True, "normalization": "row"},
        {"constraint": ia.Certified(0.7, radius=2.0), "solver": ia.Anderson(tolerance=1e-5)},
        {"constraint": ia.Relaxed(0.6, 0.5, True), "response": "dot_product", "logdet": ia.PowerSeries()},
        {"context_channels": 3, "logdet": ia.Exact()},
    ],
)
def test_a_layer_comes_back_as_it_was(arguments, tmp_path):
    layer = hub.InvertibleAttention(4, **arguments)
    assert isinstance(layer, ia.InvertibleAttention)
    x = 3 * torch.randn(2, 4, 6)
    context = torch.randn(2, 3)
    z = layer(x, context)
    layer.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = hub.InvertibleAttention.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(x, context), z)
    assert loaded.branch.constraint == layer.branch.constraint
    assert (loaded.solver, loaded.logdet) == (layer.solver, layer.logdet)
    assert not loaded.training


def test_a_flow_comes_back_as_it_was(tmp_path):
    flow = hub.InvertibleResNet(
        (1, 4, 4),
        blocks=(1, 1),
        hidden_channels=4,
        attention=ia.InvertibleAttention,
        attention_after={(0, -1)},
    )
    x = torch.rand(8, 1, 4, 4)
    z = flow(x)
    flow.save_pretrained(str(tmp_path))
    loaded = hub.InvertibleResNet.from_pretrained(str(tmp_path))
    torch.testing.assert_close(loaded(x), z)


def test_a_module_of_ones_own(tmp_path):
    class Pair(torch.nn.Module):
        def __init__(self, channels: int, factor: float = 1.0) -> None:
            super().__init__()
            self.first, self.factor = ia.InvertibleAttention(channels), factor

        def forward(self, x):
            return self.factor * self.first(x)

    kind = hub.with_hub(Pair)
    pair = kind(4, factor=2.0)
    x = torch.randn(2, 4, 5)
    z = pair(x)
    pair.save_pretrained(tmp_path)
    torch.testing.assert_close(kind.from_pretrained(tmp_path)(x), z)


def test_what_cannot_be_stored_says_so(tmp_path):
    layer = hub.InvertibleAttention(4, position_prior=ia.TorusPrior(1))
    with pytest.raises(ValueError, match="position_prior"):
        layer.save_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "invertible_attention.hub.with_hub"])
def test_a_configuration_can_only_name_what_the_library_offers(name, tmp_path):
    hub.InvertibleAttention(4).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"channels": 4, "solver": {"object": name, "arguments": {}}})
    )
    with pytest.raises(ValueError, match=name):
        hub.InvertibleAttention.from_pretrained(tmp_path)


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    import importlib

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "invertible_attention.hub")
    with pytest.raises(ImportError, match=r"invertible-attention\[interop\]"):
        importlib.import_module("invertible_attention.hub")
