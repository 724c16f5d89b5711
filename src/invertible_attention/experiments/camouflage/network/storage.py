"""A trained network in one file that says itself how to be built."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...errors import ExperimentError
from ...files import write_tensors
from ..models import MODELS, row_today
from .backbones import backbone_from
from .detector import Detector

__all__ = ["NetworkDescription", "load_detector", "save_detector"]

KEY = "detector"


@dataclass(frozen=True)
class NetworkDescription:
    """What a stored network is, besides its weights.

    Args:
        model: variant of the row of Table 4.
        backbone: what the backbone's ``description()`` returned.
        levels: the levels with attention.
        coefficient: Lipschitz coefficient of invertible attention.
        heads: heads of the attention.
        size: side of the images it was trained on.
    """

    model: str
    backbone: dict[str, Any]
    levels: tuple[int, ...]
    coefficient: float
    heads: int
    size: int

    def build(self) -> Detector:
        """Return the network with random weights."""
        return Detector(
            backbone_from(self.backbone),
            MODELS[self.model],
            levels=self.levels,
            coefficient=self.coefficient,
            heads=self.heads,
        )


def save_detector(path: Path, detector: Detector, description: NetworkDescription) -> None:
    """Write the weights, and how to build what they belong to, to a safetensors file."""
    write_tensors(path, detector.state_dict(), {KEY: json.dumps(vars(description))})


def load_detector(path: Path) -> tuple[Detector, NetworkDescription]:
    """Read a network written by :func:`save_detector`; no code in the file is run.

    Raises:
        ExperimentError: naming the file, when it is missing, damaged or something else.
    """
    if not path.is_file():
        raise ExperimentError(f"there is no trained network at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ExperimentError(f"{path} is damaged or not a file of weights ({error})") from error
    try:
        stored = json.loads(metadata[KEY])
        read = {"model": row_today(stored["model"]), "levels": tuple(stored["levels"])}
        description = NetworkDescription(**stored | read)
        with torch.random.fork_rng(devices=[]):
            detector = description.build()
        detector.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ExperimentError(f"{path} does not hold a network of this command ({reason})") from error
    return detector.eval(), description
