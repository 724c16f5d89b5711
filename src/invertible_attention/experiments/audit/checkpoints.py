"""Opening what the experiments wrote: trained networks as residual blocks, with the inputs that these see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...residual import Residual
from ..errors import ExperimentError
from ..files import read_json, read_tensors
from ..study.folder import CONFIGURATION
from .blocks import Block, trace_blocks

__all__ = ["Subject", "open_checkpoint"]

MODEL = "model.safetensors"
IMAGES = "images.safetensors"


@dataclass(frozen=True)
class Subject:
    """A trained network to be audited.

    Args:
        name: what it is called.
        kind: the experiment that wrote it.
        inputs: what the inputs are, in words.
        blocks: its residual blocks and what they see.
    """

    name: str
    kind: str
    inputs: str
    blocks: list[Block]


def open_checkpoint(path: Path, *, samples: int = 8, data_dir: Path | None = None) -> list[Subject]:
    """Open a file of weights, the folder it is in, or a folder of several networks.

    Understood are the folders of ``reconstruct`` (inputs: the test images stored next to the weights), ``density``
    (its test images) and ``camouflage`` (the images of ``data_dir``, or bundled photographs). No code in a file is
    run.

    Args:
        path: file or folder.
        samples: inputs per network.
        data_dir: where the data are, as the experiment was given it.

    Raises:
        ExperimentError: naming the file, when it is missing, damaged, or nothing these experiments wrote.
    """
    if not path.exists():
        raise ExperimentError(f"there is no checkpoint {path}")
    if path.is_file():
        return [_open(path, samples, data_dir)]
    if (path / MODEL).is_file():
        return [_open(path / MODEL, samples, data_dir)]
    files = sorted(path.glob(f"cells/*/{MODEL}"))
    if not files:
        raise ExperimentError(
            f"{path} holds no trained network ({MODEL}): give a folder that reconstruct, density or camouflage wrote"
        )
    return [_open(file, samples, data_dir) for file in files]


def _open(file: Path, samples: int, data_dir: Path | None) -> Subject:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ExperimentError(f"{file} is damaged or not a file of weights ({error})") from error
    try:
        if "detector" in metadata:
            return _camouflage(file, samples, data_dir)
        if (file.parent / IMAGES).is_file():
            return _reconstruct(file, samples)
        if (file.parent / CONFIGURATION).is_file():
            return _density(file, samples, data_dir)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ExperimentError(f"{file} is not what its configuration says ({reason})") from error
    raise ExperimentError(
        f"{file} has nothing next to it that says what it is: give it in the folder the experiment wrote"
    )


def _reconstruct(file: Path, samples: int) -> Subject:
    from ..reconstruct.configuration import Cell, Configuration
    from ..reconstruct.network import build_network

    folder = file.parent
    configuration = Configuration.from_json(read_json(folder.parent.parent / CONFIGURATION))
    cell = Cell.of(read_json(folder / "result.json"))
    network = build_network(cell, configuration, seed=0)
    network.load_state_dict(read_tensors(file))
    x = read_tensors(folder / IMAGES)["original"][:samples]
    network.eval()
    blocks = trace_blocks(network, lambda: network(x))
    return Subject(str(cell), "reconstruct", "test images of the run", blocks)


def _density(file: Path, samples: int, data_dir: Path | None) -> Subject:
    from ..density.configuration import Configuration
    from ..density.data import load_data
    from ..density.network import build_model

    configuration = Configuration.from_json(read_json(file.parent / CONFIGURATION))
    data = load_data(configuration, data_dir)
    model: Any = build_model(configuration, data.shape, data.levels)
    model.load_state_dict(read_tensors(file))
    if not any(isinstance(part, Residual) for part in model.modules()):
        raise ExperimentError(f"{file} has no residual blocks: {configuration.model} is not made of them")
    blocks = _traced(model.eval(), data.test[:samples])
    return Subject(configuration.name, "density", f"test images: {data.title}", blocks)


def _traced(model: nn.Module, images: Tensor) -> list[Block]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # dequantization is random
        return trace_blocks(model, lambda: cast(Any, model).transform(images))


def _camouflage(file: Path, samples: int, data_dir: Path | None) -> Subject:
    from ..camouflage.data.augmentation import image_tensor
    from ..camouflage.network import load_detector
    from ..data.folder import image_files
    from ..data.photographs import BundledPhotographs
    from ..data.source import open_image

    detector, description = load_detector(file)
    if not detector.invertible_attention():
        raise ExperimentError(f"{file} has no invertible attention: it has {description.model}")
    if data_dir is None:
        source = BundledPhotographs("test")
        images, inputs = [source[index] for index in range(min(samples, len(source)))], "bundled photographs"
    else:
        paths = image_files(data_dir)[:samples]
        if not paths:
            raise ExperimentError(f"{data_dir} holds no images")
        images, inputs = [open_image(path) for path in paths], f"images of {data_dir.name}"
    batch = torch.stack([image_tensor(image, description.size) for image in images])
    blocks = trace_blocks(detector, lambda: detector(batch))
    return Subject(file.parent.name, "camouflage", inputs, blocks)
