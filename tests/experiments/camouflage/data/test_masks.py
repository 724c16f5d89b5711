from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from invertible_attention.experiments.camouflage.data import binarize, read_mask
from invertible_attention.experiments.errors import ExperimentError

OBJECT = np.zeros((6, 8), dtype=bool)
OBJECT[1:4, 2:7] = True


def _images() -> dict[str, Image.Image]:
    grey = (OBJECT * 255).astype(np.uint8)
    palette = Image.fromarray(OBJECT.astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
    transparent = Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 255)]))
    colour = np.zeros((6, 8, 3), dtype=np.uint8)
    colour[OBJECT] = (0, 0, 255)
    return {
        "0 and 255": Image.fromarray(grey),
        "0 and 1": Image.fromarray(OBJECT.astype(np.uint8)),
        "0 and 3": Image.fromarray(OBJECT.astype(np.uint8) * 3),
        "one bit": Image.fromarray(OBJECT),
        "palette": palette,
        "with transparency": transparent,
        "colour": Image.fromarray(colour),
        "grey with alpha": Image.fromarray(grey).convert("LA"),
        "16 bits": Image.fromarray(OBJECT.astype(np.uint16) * 65535),
        "32 bits": Image.fromarray(OBJECT.astype(np.int32) * 255),
    }


@pytest.mark.parametrize("kind", _images())
def test_masks_of_every_kind_are_read(kind, tmp_path) -> None:
    path = tmp_path / ("mask.tif" if kind == "32 bits" else "mask.png")
    _images()[kind].save(path)
    assert np.array_equal(read_mask(path), OBJECT)


def test_empty_mask_stays_empty(tmp_path) -> None:
    Image.new("L", (5, 4)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").sum() == 0


@settings(deadline=None, max_examples=50)
@given(arrays.arrays(np.uint8, (4, 5), elements=st.integers(0, 255)))
def test_masks_with_bright_pixels_are_cut_as_the_evaluators_do(values) -> None:
    values[0, 0] = 255
    assert np.array_equal(binarize(values), values > 128)


@settings(deadline=None, max_examples=50)
@given(arrays.arrays(np.bool_, (4, 5)), st.integers(1, 255))
def test_two_valued_masks_keep_their_object(mask, value) -> None:
    assert np.array_equal(binarize(mask.astype(np.uint8) * np.uint8(value)), mask)


def test_damaged_mask_is_named(tmp_path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(b"not an image")
    with pytest.raises(ExperimentError, match=r"mask\.png"):
        read_mask(path)
