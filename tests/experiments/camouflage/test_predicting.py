from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from invertible_attention.experiments.camouflage.data import Collection, Pair, open_data
from invertible_attention.experiments.camouflage.predicting import predict_maps, to_map, write_maps
from invertible_attention.experiments.errors import ExperimentError


class Brightness(torch.nn.Module):
    """A detector that finds bright things."""

    def forward(self, image):
        return 4 * image.mean(1, keepdim=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_maps_have_the_requested_size_and_full_range(height, width, seed) -> None:
    torch.manual_seed(seed)
    values = to_map(torch.randn(1, 1, 7, 7), (height, width))
    assert values.dtype == np.uint8
    assert values.shape == (height, width)
    assert values.min() == 0
    if height * width > 1:
        assert values.max() == 255


def test_maps_preserve_the_order_of_logits() -> None:
    logits = torch.linspace(-9, 9, 64).reshape(1, 1, 8, 8)
    values = to_map(logits, (8, 8)).flatten().astype(int)
    assert (np.diff(values) >= 0).all()
    p = logits.sigmoid().flatten()
    expected = torch.round(255 * (p - p.min()) / (p.max() - p.min()))
    assert np.array_equal(values, expected.numpy().astype(int))


def test_maps_are_written_in_the_standard_layout_at_mask_size(dataset, tmp_path) -> None:
    (collection,) = open_data([dataset]).test
    maps = tmp_path / "maps"
    seen: list[int] = []
    count = write_maps(
        Brightness(), [collection], maps, size=32, device=torch.device("cpu"), report=seen.append
    )
    assert count == 3
    assert seen == [1, 2, 3]
    files = sorted(path.relative_to(maps).as_posix() for path in maps.rglob("*.png"))
    assert files == ["CAMO/test_0.png", "CAMO/test_1.png", "CAMO/test_2.png"]
    with Image.open(maps / files[0]) as image:
        assert (image.mode, image.size) == ("L", (40, 30))


def test_every_image_gets_its_own_map(tmp_path) -> None:
    pairs = []
    for number in range(11):
        pixels = np.zeros((20, 20 + number, 3), dtype=np.uint8)
        pixels[:, : number + 1] = 255
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        pairs.append(Pair(path.stem, path, None))
    collection = Collection("loose", tuple(pairs))
    for number, (pair, values) in enumerate(
        predict_maps(Brightness(), collection.pairs, size=32, device=torch.device("cpu"))
    ):
        assert pair is pairs[number]
        assert values.shape == (20, 20 + number)
        assert values[:, 0].min() > values[:, -1].max()


@pytest.mark.parametrize("second", ["x.jpg", "X.png"])
def test_output_names_do_not_collide(second, tmp_path) -> None:
    pairs = []
    for name in ("x.png", second):
        Image.new("RGB", (20, 20)).save(tmp_path / name)
        pairs.append(Pair(Path(name).stem, tmp_path / name, None))
    with pytest.raises(ExperimentError, match=rf"x\.png and .*{second} would both be loose/\w\.png"):
        write_maps(
            Brightness(), [Collection("loose", tuple(pairs))], tmp_path, size=32, device=torch.device("cpu")
        )


def test_maps_follow_exif_rotation(tmp_path) -> None:
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:, :10] = 255  # left as stored: above as shown
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    pair = Pair("x", tmp_path / "x.png", None)
    ((_, values),) = predict_maps(Brightness(), [pair], size=32, device=torch.device("cpu"))
    assert values.shape == (30, 20)
    assert values[:8].min() > values[12:].max()
