"""Small datasets in every layout, written to temporary folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WritePairs = Callable[..., None]


@pytest.fixture(scope="session")
def write_pairs() -> WritePairs:
    """Return a function that writes ``images/NAME.jpg`` and ``masks/NAME.png`` for every name."""

    def write(
        images: Path,
        masks: Path | None,
        names: Sequence[str],
        size: tuple[int, int] = (40, 30),
        top: int = 255,
    ) -> None:
        for number, name in enumerate(names):
            random = np.random.default_rng(number)
            images.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / f"{name}.jpg")
            if masks is not None:
                masks.mkdir(parents=True, exist_ok=True)
                mask = np.zeros((size[1], size[0]), dtype=np.uint8)
                mask[5:20, 5 : 15 + number % 10] = top
                Image.fromarray(mask).save(masks / f"{name}.png")

    return write


@pytest.fixture(scope="session")
def write_dataset(write_pairs: WritePairs) -> Callable[[Path], Path]:
    """Return a function that writes the most common layout: six training pairs and three test pairs of CAMO."""

    def write(root: Path) -> Path:
        train, test = root / "TrainDataset", root / "TestDataset" / "CAMO"
        write_pairs(train / "Imgs", train / "GT", [f"train_{i}" for i in range(6)])
        write_pairs(test / "Imgs", test / "GT", [f"test_{i}" for i in range(3)])
        return root

    return write


@pytest.fixture
def dataset(tmp_path: Path, write_dataset: Callable[[Path], Path]) -> Path:
    """A folder of the most common layout."""
    return write_dataset(tmp_path / "dataset")
