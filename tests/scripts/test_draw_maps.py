"""The figure of maps for bundled photographs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytest.importorskip("skimage", reason="needs the extra experiments")
pytest.importorskip("transformers", reason="needs the extra camouflage")

from invertible_attention.experiments.camouflage.models import MODELS
from invertible_attention.experiments.camouflage.network import Detector, random_backbone, save_detector
from invertible_attention.experiments.camouflage.network.storage import NetworkDescription
from invertible_attention.experiments.variants import slug

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "draw_maps.py"), run_name="script")


def test_every_model_of_a_study_has_a_row(tmp_path: Path) -> None:
    from PIL import Image

    heights = []
    for name in ("none", "gaussian/ordinary"):
        detector = Detector(random_backbone("tiny"), MODELS[name])
        folder = tmp_path / "cells" / slug(name, 0)
        folder.mkdir(parents=True)
        description = NetworkDescription(name, detector.backbone.description(), (1, 2, 3, 4), 0.9, 1, 64)
        save_detector(folder / "model.safetensors", detector, description)
        SCRIPT["main"]([str(tmp_path), str(tmp_path / "maps.png")])
        with Image.open(tmp_path / "maps.png") as image:
            heights.append(image.height)
    assert heights[1] > 1.3 * heights[0]
