"""Results of the demo for a small picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from invertible_attention.experiments.demo.computation import Outcome, compute
from invertible_attention.experiments.demo.options import Options


def drawn_picture() -> Image.Image:
    y, x = np.mgrid[:80, :100]
    channels = [127 + 120 * np.sin(x / 9), 2 * x, 255 * (((x // 10) + (y // 10)) % 2)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


@pytest.fixture(scope="session")
def outcome() -> Outcome:
    return compute(drawn_picture(), Options(size=32, steps=3))
