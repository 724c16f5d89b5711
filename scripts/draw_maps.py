"""Draw the maps of a camouflage study's networks for the photographs of scikit-image and scikit-learn, as Figure 8.

python scripts/draw_maps.py RUN OUTPUT.png

A figure that may be committed: those of the study itself show photographs of its test data.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from invertible_attention.experiments.camouflage.data import Pair
from invertible_attention.experiments.camouflage.figures import square
from invertible_attention.experiments.camouflage.models import MODELS
from invertible_attention.experiments.camouflage.network import load_detector
from invertible_attention.experiments.camouflage.predicting import predict_maps
from invertible_attention.experiments.data.photographs import PHOTOGRAPHS, bundled_file
from invertible_attention.experiments.data.source import open_image
from invertible_attention.experiments.report import image_grid
from invertible_attention.experiments.variants import slug


def photographs() -> list[Pair]:
    """Return the bundled photographs, without masks; of two pictures of one scene, one."""
    paths = [path for path in (*PHOTOGRAPHS["test"], *PHOTOGRAPHS["train"]) if "right" not in path]
    return [Pair(Path(path).stem, bundled_file(path), None) for path in paths]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw a row per model, of its first seed."""
    parser = argparse.ArgumentParser(description="Draw maps for bundled photographs.")
    parser.add_argument("run", type=Path, help="folder of a camouflage study")
    parser.add_argument("output", type=Path, help="the figure, a PNG file")
    given = parser.parse_args(arguments)

    pairs = photographs()
    lines = [("image", np.stack([square(open_image(pair.image)) for pair in pairs]))]
    for name, model in MODELS.items():
        checkpoints = sorted(given.run.glob(f"cells/{slug(name, 0)[:-1]}[0-9]*/model.safetensors"))
        if checkpoints:
            network, description = load_detector(checkpoints[0])
            maps = predict_maps(network, pairs, size=description.size, device=torch.device("cpu"))
            lines.append((model.title, np.stack([square(Image.fromarray(values)) for _, values in maps])))
    given.output.write_bytes(image_grid(lines, gap_before=(1,), width=0.9))


if __name__ == "__main__":
    main()
