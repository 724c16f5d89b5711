"""Saving and loading with configuration, locally or on the Hugging Face hub; weights are safetensors.

.. code-block:: python

    from invertible_attention import hub

    layer = hub.InvertibleAttention(12, heads=2, constraint=ia.Certified(0.8))
    layer.save_pretrained("folder")
    layer = hub.InvertibleAttention.from_pretrained("folder")
    layer.push_to_hub("user/name")
"""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from invertible_attention import flows
from invertible_attention.attention import InvertibleAttention as _InvertibleAttention

try:
    from huggingface_hub import PyTorchModelHubMixin, snapshot_download
    from safetensors.torch import load_model, save_model
except ImportError as error:
    raise ImportError(
        f"invertible_attention.hub needs huggingface_hub and safetensors ({error}): "
        "pip install 'invertible-attention[interop]'"
    ) from error

__all__ = ["InvertibleAttention", "InvertibleResNet", "with_hub"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_OWN = "invertible_attention"
_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
_PLAIN = (str, int, float, bool, type(None))

Module = TypeVar("Module", bound=nn.Module)


class _HubMixin(PyTorchModelHubMixin):
    """Keeps the constructor's arguments, and stores them as JSON beside the weights."""

    hub_arguments: dict[str, Any]

    def _save_pretrained(self, save_directory: Path) -> None:
        configuration = {name: _encode(value, name) for name, value in self.hub_arguments.items()}
        (save_directory / CONFIG).write_text(json.dumps(configuration, indent=2) + "\n")
        assert isinstance(self, nn.Module)
        save_model(self, str(save_directory / WEIGHTS))

    @classmethod
    def _from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **arguments: Any
    ) -> Any:
        download = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        given = {
            name: arguments.pop(name)
            for name in (*download, "resume_download", "proxies")
            if name in arguments
        }
        folder = Path(model_id)
        if not folder.is_dir():
            wanted = {name: given[name] for name in download if given.get(name) is not None}
            folder = Path(snapshot_download(model_id, allow_patterns=[CONFIG, WEIGHTS], **wanted))
        _check_files(folder, model_id)
        configuration = {k: _decode(v) for k, v in json.loads((folder / CONFIG).read_text()).items()}
        # The mixin reads config.json too and passes it on undecoded; what the caller gives is decoded already.
        changed = {k: v for k, v in arguments.items() if not isinstance(v, dict) and k not in configuration}
        model = cls(**(configuration | changed))
        assert isinstance(model, nn.Module)
        load_model(model, str(folder / WEIGHTS), strict=strict, device=map_location)
        return model.eval()


def with_hub(kind: type[Module]) -> type[Module]:
    """Return a subclass of a module with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    Args:
        kind: A class whose arguments are numbers, strings, sequences and dictionaries of them, this library's frozen
            objects (constraints, solvers, estimators), or its modules' classes by name.

    Returns:
        The subclass, of the same name. Its ``from_pretrained`` reads ``config.json`` and ``model.safetensors`` and
        nothing else: neither can run code. It raises :class:`ValueError` where the weights are pickled.
    """

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(kind.__init__).bind(self, *args, **kwargs)
        kind.__init__(self, *args, **kwargs)
        self.hub_arguments = {name: value for name, value in bound.arguments.items() if name != "self"}

    members = {"__init__": __init__, "__doc__": kind.__doc__, "__module__": __name__, "hub_arguments": {}}
    return type(kind.__name__, (kind, _HubMixin), members)  # pyright: ignore[reportReturnType]


def _check_files(folder: Path, model_id: str) -> None:
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if not missing:
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if WEIGHTS in missing and pickles:
        raise ValueError(
            f"the weights in {model_id!r} are pickled ({', '.join(pickles)}), and loading a pickle can run any code: "
            f"only {WEIGHTS} is read"
        )
    raise FileNotFoundError(f"{model_id!r} lacks {' and '.join(missing)}")


def _encode(value: Any, name: str) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_encode(item, name) for item in value]
    if isinstance(value, dict):
        return {"dict": {str(key): _encode(item, name) for key, item in value.items()}}
    if isinstance(value, type) and value.__module__.startswith(_OWN):
        return {"class": f"{value.__module__}.{value.__qualname__}"}
    if is_dataclass(value) and not isinstance(value, type) and type(value).__module__.startswith(_OWN):
        stored = {
            f.name: _encode(getattr(value, f.name), f"{name}.{f.name}") for f in fields(value) if f.init
        }
        return {"object": f"{type(value).__module__}.{type(value).__qualname__}", "arguments": stored}
    raise ValueError(f"argument {name}={value!r} cannot be stored as JSON")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "dict" in value:
        return {key: _decode(item) for key, item in value["dict"].items()}
    if "class" in value:
        return _resolve(value["class"])
    arguments = {name: _decode(item) for name, item in value["arguments"].items()}
    return _resolve(value["object"])(**arguments)


def _resolve(path: str) -> Any:
    """Return a class of this library by its path; a configuration can name nothing else."""
    module, _, name = path.rpartition(".")
    if module.split(".")[0] != _OWN:
        raise ValueError(f"a configuration may only name classes of {_OWN}, got {path!r}")
    found = getattr(importlib.import_module(module), name, None)
    if not isinstance(found, type) or not (is_dataclass(found) or issubclass(found, nn.Module)):
        raise ValueError(f"expected a module or a frozen object of {_OWN}, got {path!r}")
    return found


InvertibleAttention = with_hub(_InvertibleAttention)
InvertibleResNet = with_hub(flows.InvertibleResNet)
