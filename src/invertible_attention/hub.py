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
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from invertible_attention import flows
from invertible_attention._install import install_line
from invertible_attention.attention import InvertibleAttention as _InvertibleAttention

try:
    from huggingface_hub import PyTorchModelHubMixin, snapshot_download
    from safetensors.torch import load_file, load_model, save_model
except ImportError as error:
    raise ImportError(
        f"invertible_attention.hub needs huggingface_hub and safetensors ({error}): {install_line('interop')}"
    ) from error

__all__ = ["InvertibleAttention", "InvertibleResNet", "with_hub"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_OWN = "invertible_attention"
_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
_PLAIN = (str, int, float, bool, type(None))

Module = TypeVar("Module", bound=nn.Module)


class _HubMixin(PyTorchModelHubMixin):
    """Keeps the constructor's arguments, and stores them as JSON next to the weights."""

    hub_arguments: dict[str, Any]
    _hub_init: Any

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, *, config: None = None, **arguments: Any
    ) -> str | None:
        """Write ``config.json`` and ``model.safetensors``; keywords are those of ``ModelHubMixin.save_pretrained``.

        Raises:
            ValueError: If an argument of the constructor cannot be stored, or ``config`` is given: the configuration
                is what the module was made of.
        """
        if config is not None:
            raise ValueError(f"the configuration is the module's own arguments, got config={config!r}")
        return super().save_pretrained(save_directory, **arguments)

    def _save_pretrained(self, save_directory: Path) -> None:
        if type(self).__init__ is not type(self)._hub_init:
            raise ValueError(f"{type(self).__name__} has its own constructor: use with_hub on it")
        configuration = {name: _encode(value, name) for name, value in self._arguments().items()}
        (save_directory / CONFIG).write_text(json.dumps(configuration, indent=2) + "\n")
        assert isinstance(self, nn.Module)
        save_model(self, str(save_directory / WEIGHTS))

    def _arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments, with the objects that were exchanged since."""
        names = inspect.signature(type(self).__init__).parameters
        present = {name: getattr(self, name, None) for name in names}
        return self.hub_arguments | {name: value for name, value in present.items() if _is_own_object(value)}

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        map_location: str | torch.device = "cpu",
        strict: bool = True,
        **arguments: Any,
    ) -> Any:
        """Return a module from a folder or the hub, in evaluation mode and in the precision it was saved in.

        Args:
            pretrained_model_name_or_path: A folder, or the name of a repository.
            revision: Branch, tag or commit of the repository.
            cache_dir: Where downloads are kept.
            force_download: Whether to download again what is there already.
            local_files_only: Whether to look into the cache only.
            token: Token of the hub.
            map_location: Device of the module.
            strict: Whether the weights must be exactly those of the module.
            **arguments: Arguments of the constructor instead of the stored ones.

        Raises:
            FileNotFoundError: If a file is missing.
            TypeError: If the constructor does not take an argument.
            RuntimeError: If the weights do not fit the module.
            ValueError: If the weights are pickled, if the configuration names what is not of this library, or if an
                argument sets what the stored weights set to something else.
        """
        name = str(pretrained_model_name_or_path)
        folder = Path(name)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=[CONFIG, WEIGHTS],
                )
            )
        _check_files(folder, name)
        stored = {k: _decode(v) for k, v in json.loads((folder / CONFIG).read_text()).items()}
        model, weights = cls(**(stored | arguments)), load_file(folder / WEIGHTS)
        assert isinstance(model, nn.Module)
        if arguments:
            original = cls(**stored)
            assert isinstance(original, nn.Module)
            _check_overridden(model, original, weights, arguments)
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            if key in weights:
                tensor.data = tensor.data.to(weights[key].dtype)
        load_model(model, str(folder / WEIGHTS), strict=strict)
        return model.to(map_location).eval()


def with_hub(kind: type[Module]) -> type[Module]:
    """Return a subclass of a module with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    Args:
        kind: A class whose arguments are numbers, strings, sequences and dictionaries of them, this library's frozen
            objects (constraints, solvers, estimators), or its modules' classes by name.

    Returns:
        The subclass, of the same name. Its ``from_pretrained`` reads ``config.json`` and ``model.safetensors`` and
        nothing else: neither can run code. It raises :class:`ValueError` where the weights are pickled.

    Raises:
        ValueError: If the class has arguments without a name.
    """

    signature = inspect.signature(kind.__init__)
    unnamed = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL}
    if any(parameter.kind in unnamed for parameter in signature.parameters.values()):
        raise ValueError(f"{kind.__name__}{signature} has arguments without a name, which cannot be stored")

    @wraps(kind.__init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs).arguments
        kind.__init__(self, *args, **kwargs)
        others = {name for name, p in signature.parameters.items() if p.kind is inspect.Parameter.VAR_KEYWORD}
        named = {name: value for name, value in bound.items() if name != "self" and name not in others}
        self.hub_arguments = named | {k: v for name in others for k, v in bound.get(name, {}).items()}

    members = {"__init__": __init__, "_hub_init": __init__, "__doc__": kind.__doc__, "__module__": __name__}
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


def _check_overridden(
    model: nn.Module, original: nn.Module, weights: dict[str, Tensor], arguments: dict[str, Any]
) -> None:
    """Raise :class:`ValueError` if the weights would undo what was asked for: a number that is no parameter."""
    before = dict(original.named_buffers())
    for name, asked in model.named_buffers():
        stored = weights.get(name)
        decided = name not in before or not torch.equal(asked, before[name])
        if decided and stored is not None and not torch.equal(asked, stored.to(asked.dtype)):
            raise ValueError(
                f"{', '.join(f'{key}={value!r}' for key, value in arguments.items())} sets {name} to "
                f"{asked.tolist()}, but the stored weights set it to {stored.tolist()}"
            )


def _is_own_object(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type) and type(value).__module__.startswith(_OWN)


def _encode(value: Any, name: str) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_encode(item, name) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(item, name) for key, item in value.items()}}
    if isinstance(value, type) and value.__module__.startswith(_OWN):
        return {"class": f"{value.__module__}.{value.__qualname__}"}
    if _is_own_object(value):
        own = [field.name for field in fields(value) if field.init]  # pyright: ignore[reportArgumentType]
        stored = {field: _encode(getattr(value, field), f"{name}.{field}") for field in own}
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
