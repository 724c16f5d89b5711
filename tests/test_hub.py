from __future__ import annotations

import importlib
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import invertible_attention as ia

REASON = "needs huggingface_hub and safetensors: pip install 'invertible-attention[interop]'"
huggingface_hub = pytest.importorskip("huggingface_hub", reason=REASON)
safetensors = pytest.importorskip("safetensors", reason=REASON)
hub = importlib.import_module("invertible_attention.hub")


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
def test_layer_round_trips(arguments, tmp_path):
    layer = hub.InvertibleAttention(4, **arguments)
    assert isinstance(layer, ia.InvertibleAttention)
    x = 3 * torch.randn(2, 4, 6)
    context = torch.randn(2, 3) if "context_channels" in arguments else None
    z = layer(x, context=context)
    layer.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = hub.InvertibleAttention.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(x, context=context), z)
    assert loaded.branch.constraint == layer.branch.constraint
    assert (loaded.solver, loaded.logdet) == (layer.solver, layer.logdet)
    assert not loaded.training


def test_flow_round_trips(tmp_path):
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


def test_user_module_round_trips(tmp_path):
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


@pytest.fixture
def folder(tmp_path):
    """A folder with a layer whose estimator, solver and bound are not the default ones."""
    layer = hub.InvertibleAttention(
        4, constraint=ia.Certified(0.7, radius=2.0), solver=ia.FixedPoint(), logdet=ia.PowerSeries()
    )
    layer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "attribute"),
    [
        ({"logdet": ia.Exact()}, lambda layer: layer.logdet),
        ({"solver": ia.NewtonKrylov()}, lambda layer: layer.solver),
        ({"constraint": ia.Certified(0.5, radius=2.0)}, lambda layer: layer.branch.constraint),
        ({"normalization": "row"}, lambda layer: layer.branch.normalization),
        ({"causal": True, "normalization": "row"}, lambda layer: layer.branch.causal),
        ({"implementation": "blocked"}, lambda layer: layer.branch.implementation),
    ],
)
def test_argument_overrides_the_stored_value(arguments, attribute, folder):
    loaded = hub.InvertibleAttention.from_pretrained(folder, **arguments)
    assert attribute(loaded) == next(iter(arguments.values()))
    again = folder / "again"
    loaded.save_pretrained(again)
    assert attribute(hub.InvertibleAttention.from_pretrained(again)) == next(iter(arguments.values()))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"constraint": ia.Certified(0.7, radius=3.0)}, "log_radius"),
        ({"constraint": ia.Certified(0.7)}, "initialized"),
        ({"heads": 2}, "size mismatch"),
        ({"bias": True}, "value_bias"),
        ({"constraint": ia.Relaxed(0.7)}, "value_weight"),
        ({"channels": 3}, "size mismatch"),
        ({"nothing": 1}, "nothing"),
        ({"proxies": {}}, "proxies"),
        ({"logdet": {"object": "x"}}, "logdet"),
    ],
)
def test_conflicting_argument_is_refused(arguments, error, folder):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=error):
        hub.InvertibleAttention.from_pretrained(folder, **arguments)


def test_a_fixed_radius_does_not_replace_a_learned_one(tmp_path):
    layer = hub.InvertibleAttention(4)
    layer(torch.randn(2, 4, 6))
    layer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="log_radius"):
        hub.InvertibleAttention.from_pretrained(tmp_path, constraint=ia.Certified(0.9, radius=3.0))


def test_every_hub_class_uses_or_refuses_its_arguments(tmp_path):
    flow = hub.InvertibleResNet((1, 4, 4), blocks=(1,), hidden_channels=4)
    flow(torch.rand(8, 1, 4, 4))
    flow.save_pretrained(tmp_path)
    loaded = hub.InvertibleResNet.from_pretrained(tmp_path, logdet=ia.Exact(), coefficient=0.5)
    (block,) = (part for part in loaded.modules() if isinstance(part, ia.Residual))
    assert block.logdet == ia.Exact()
    assert block.lipschitz_bound() < 0.5**3 + 1e-6 < flow[2].lipschitz_bound()
    with pytest.raises(TypeError, match="nothing"):
        hub.InvertibleResNet.from_pretrained(tmp_path, nothing=1)
    kind = hub.with_hub(ia.flows.Uniform)
    base = kind(2, -1.0, 1.0)
    base.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).low == -1
    with pytest.raises(ValueError, match="low"):
        kind.from_pretrained(tmp_path, low=-2.0)


def test_replaced_objects_are_saved(folder, tmp_path):
    layer = hub.InvertibleAttention.from_pretrained(folder)
    layer.logdet, layer.solver = ia.Exact(), ia.Anderson(tolerance=1e-3)
    layer.save_pretrained(tmp_path)
    loaded = hub.InvertibleAttention.from_pretrained(tmp_path)
    assert (loaded.logdet, loaded.solver) == (layer.logdet, layer.solver)


def test_precision_and_device(tmp_path):
    layer = hub.InvertibleAttention(4).double()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    z = layer(x)
    layer.save_pretrained(tmp_path)
    torch.testing.assert_close(hub.InvertibleAttention.from_pretrained(tmp_path)(x), z)
    elsewhere = hub.InvertibleAttention.from_pretrained(tmp_path, map_location="meta")
    assert {parameter.device.type for parameter in elsewhere.parameters()} == {"meta"}


class Scaled(torch.nn.Module):
    """A factor per name."""

    def __init__(self, channels: int, *, names: dict | None = None, **factors: float) -> None:
        super().__init__()
        self.weight, self.names, self.factors = torch.nn.Parameter(torch.ones(channels)), names, factors


def test_keywords_and_dictionaries_round_trip(tmp_path):
    kind = hub.with_hub(Scaled)
    kind(3, names={"a": 1}, first=2.0, second=3.0).save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path, second=4.0)
    assert (loaded.factors, loaded.names) == ({"first": 2.0, "second": 4.0}, {"a": 1})
    with pytest.raises(ValueError, match="names"):
        kind(3, names={1: 1}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config"):
        kind(3).save_pretrained(tmp_path, config={"channels": 4})


def test_non_repeatable_constructors_are_refused(tmp_path):
    class Wide(hub.InvertibleAttention):
        def __init__(self, factor: int) -> None:
            super().__init__(4 * factor)

    with pytest.raises(ValueError, match="Wide"):
        Wide(2).save_pretrained(tmp_path)
    kind = hub.with_hub(Wide)
    kind(2).save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).branch.channels == 8
    with pytest.raises(ValueError, match="Sequential"):
        hub.with_hub(ia.flows.Sequential)


def test_unstorable_settings_are_refused(tmp_path):
    layer = hub.InvertibleAttention(4, position_prior=ia.TorusPrior(1))
    with pytest.raises(ValueError, match="position_prior"):
        layer.save_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "invertible_attention.hub.with_hub"])
def test_configuration_can_only_name_library_classes(name, tmp_path):
    hub.InvertibleAttention(4).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"channels": 4, "solver": {"object": name, "arguments": {}}})
    )
    with pytest.raises(ValueError, match=name):
        hub.InvertibleAttention.from_pretrained(tmp_path)


@pytest.fixture
def uploads(monkeypatch):
    """What would be uploaded: the repository, the files with their contents, and how; nothing leaves the machine."""
    calls = []

    def create_repo(self, repo_id, **arguments):
        calls.append(("create", repo_id, arguments))
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id, folder_path, **arguments):
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        calls.append(("upload", repo_id, arguments | {"files": files}))
        return "uploaded"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    return calls


def test_pushed_model_is_loaded_unchanged(uploads, tmp_path):
    layer = hub.InvertibleAttention(4, heads=2, constraint=ia.Certified(0.8))
    x = torch.randn(2, 4, 6)
    z = layer(x)
    layer.push_to_hub("someone/something", private=True, branch="test", commit_message="First")
    (created, name, how), (uploaded, same_name, arguments) = uploads
    assert (created, uploaded) == ("create", "upload")
    assert name == same_name == "someone/something"
    assert how["private"] is True
    assert (arguments["revision"], arguments["commit_message"]) == ("test", "First")
    files = arguments["files"]
    assert (
        {"config.json", "model.safetensors"}
        <= set(files)
        <= {"config.json", "model.safetensors", "README.md"}
    )
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    torch.testing.assert_close(hub.InvertibleAttention.from_pretrained(tmp_path)(x), z)


def test_only_two_files_are_fetched_from_the_hub(monkeypatch, tmp_path):
    layer = hub.InvertibleAttention(4)
    x = torch.randn(2, 4, 6)
    z = layer(x)
    layer.save_pretrained(tmp_path)
    asked = {}

    def snapshot_download(repo_id, **arguments):
        asked.update(arguments, repo_id=repo_id)
        return str(tmp_path)

    def hf_hub_download(repo_id, filename, **arguments):
        return str(tmp_path / filename)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", hf_hub_download)
    loaded = hub.InvertibleAttention.from_pretrained("someone/something", revision="v1")
    torch.testing.assert_close(loaded(x), z)
    assert asked["repo_id"] == "someone/something"
    assert asked["revision"] == "v1"
    assert asked["allow_patterns"] == ["config.json", "model.safetensors"]


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "weights.pkl"])
def test_pickles_are_refused(name, tmp_path):
    folder, trace = tmp_path / "model", tmp_path / "trace"
    hub.InvertibleAttention(4).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(ValueError, match=name):
        hub.InvertibleAttention.from_pretrained(folder)
    assert not trace.exists()


def test_a_pickle_under_another_name_is_not_read(tmp_path):
    folder, trace = tmp_path / "model", tmp_path / "trace"
    hub.InvertibleAttention(4).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(safetensors.SafetensorError):
        hub.InvertibleAttention.from_pretrained(folder)
    assert not trace.exists()
    pickle.loads((folder / "model.safetensors").read_bytes())
    assert trace.exists()  # it would have


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_error_names_the_file(name, tmp_path):
    hub.InvertibleAttention(4).save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        hub.InvertibleAttention.from_pretrained(tmp_path)


def test_missing_library_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "invertible_attention.hub")
    with pytest.raises(ImportError, match=r"pip install .*\[interop\]"):
        importlib.import_module("invertible_attention.hub")
