from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention.experiments.camouflage.data import generate_data, open_data, read_mask
from invertible_attention.experiments.camouflage.data.synthetic import camouflage, random_shape
from invertible_attention.experiments.data import bundled_photograph

skimage = pytest.importorskip("skimage")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_shapes_are_connected_and_of_the_requested_size(seed) -> None:
    from skimage.measure import label

    shape = random_shape(96, np.random.default_rng(seed))
    assert label(shape, connectivity=2).max() == 1
    assert 0.01 < shape.mean() < 0.45


def test_colors_blend_toward_the_background() -> None:
    from scipy.ndimage import binary_dilation

    photograph = bundled_photograph("skimage/data/astronaut.png")

    def contrast(strength: float) -> float:
        found = []
        for seed in range(20):
            random = np.random.default_rng(seed)
            image, mask = camouflage(photograph, 48, random, strength=(strength, strength))
            pixels = np.asarray(image, dtype=float)
            around = binary_dilation(mask, iterations=4) & ~binary_dilation(mask, iterations=2)
            found.append(np.abs(pixels[mask].mean(0) - pixels[around].mean(0)).mean())
        return float(np.mean(found))

    assert contrast(1.0) < 0.8 * contrast(0.0)


def test_generated_data_open_as_a_dataset(tmp_path) -> None:
    root = generate_data(tmp_path / "data", train=5, test=3, size=48)
    data = open_data([root])
    assert data.describe() == "training on data 5; testing on PHOTOS 3"
    assert all(0.005 < read_mask(pair.mask).mean() < 0.45 for pair in data.train_pairs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_generated_data_depend_on_the_seed_alone(tmp_path) -> None:
    def content(name: str, seed: int) -> list[bytes]:
        root = generate_data(tmp_path / name, train=3, test=2, size=32, seed=seed)
        return [path.read_bytes() for path in sorted(root.rglob("*.png"))]

    assert content("a", 0) == content("b", 0) != content("c", 1)


def test_existing_data_are_kept(tmp_path) -> None:
    root = generate_data(tmp_path / "data", train=2, test=1, size=32)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    generate_data(root, train=9, test=9, size=32)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.png")} == before
