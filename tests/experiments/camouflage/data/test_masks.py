from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageFilter

from invertible_attention.experiments.camouflage.data import binarize, read_mask
from invertible_attention.experiments.data.appearance import UnclearImageError
from invertible_attention.experiments.errors import ExperimentError

OBJECT = np.zeros((24, 32), dtype=bool)
OBJECT[4:16, 8:28] = True
INSIDE = np.zeros_like(OBJECT)
INSIDE[6:12, 10:20] = True
GRAY = (OBJECT * 255).astype(np.uint8)
NOISE = np.random.default_rng(0)


def _rgb(*regions: tuple[np.ndarray, tuple[int, int, int]], around=(0, 0, 0)) -> np.ndarray:
    pixels = np.full((*OBJECT.shape, 3), around, dtype=np.uint8)
    for region, color in regions:
        pixels[region] = color
    return pixels


def _palette(indices: np.ndarray, *colors: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8)).convert("P")
    flat = [value for color in colors for value in color]
    image.putpalette(flat + [0] * (768 - len(flat)))
    return image


def _with_alpha(pixels: np.ndarray, opaque: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([pixels, opaque.astype(np.uint8) * 255]))


def _smooth(factor: int = 1) -> Image.Image:
    """The object with a soft border, made larger first."""
    large = Image.fromarray(GRAY).resize((32 * factor, 24 * factor), Image.Resampling.BICUBIC)
    return large.filter(ImageFilter.GaussianBlur(0.7))


CLEAR = {
    "0 and 255": Image.fromarray(GRAY),
    "0 and 1": Image.fromarray(OBJECT.astype(np.uint8)),
    "0 and 3": Image.fromarray(OBJECT.astype(np.uint8) * 3),
    "one bit": Image.fromarray(OBJECT),
    "palette": _palette(OBJECT, (0, 0, 0), (128, 0, 0)),
    "palette of gray": _palette(OBJECT, (0, 0, 0), (255, 255, 255)),
    "opaque everywhere": _with_alpha(_rgb((OBJECT, (255, 255, 255))), np.ones_like(OBJECT)),
    "cut out twice": _with_alpha(_rgb((OBJECT, (255, 0, 0))), OBJECT),
    "color": Image.fromarray(_rgb((OBJECT, (0, 0, 255)))),
    "dark color": Image.fromarray(_rgb((OBJECT, (0, 64, 32)))),
    "gray with alpha": Image.fromarray(GRAY).convert("LA"),
    "16 bits": Image.fromarray(OBJECT.astype(np.uint16) * 65535),
    "0 and 1 in 16 bits": Image.fromarray(OBJECT.astype(np.uint16)),
    "32 bits": Image.fromarray(OBJECT.astype(np.int32) * 255),
    "floating point": Image.fromarray(OBJECT.astype(np.float32)),
    "CMYK": Image.fromarray(GRAY).convert("CMYK"),
    "bright on dark gray": Image.fromarray(np.where(OBJECT, 230, 20).astype(np.uint8)),
    "compressed with loss": Image.fromarray(
        np.clip(GRAY + NOISE.integers(-6, 7, GRAY.shape), 0, 255).astype(np.uint8)
    ),
}

UNCLEAR = {
    "in alpha over black": (_with_alpha(_rgb(), OBJECT), "transparent"),
    "in alpha over white": (_with_alpha(_rgb(around=(255, 255, 255)), OBJECT), "transparent"),
    "in alpha of gray": (Image.merge("LA", (Image.new("L", (32, 24)), Image.fromarray(GRAY))), "transparent"),
    "instances 1 and 2": (Image.fromarray(OBJECT.astype(np.uint8) + INSIDE), "0, 1, 2, none of them bright"),
    "instances in 16 bits": (Image.fromarray(OBJECT.astype(np.uint16) * 300 + INSIDE), "none of them bright"),
    "instances 100 and 200": (
        Image.fromarray((OBJECT * 100 + INSIDE * 100).astype(np.uint8)),
        "regions of 100",
    ),
    "class 15 next to 255": (
        Image.fromarray(np.where(INSIDE, 255, OBJECT * 15).astype(np.uint8)),
        "regions of 15",
    ),
    "class 1 next to 255": (
        Image.fromarray(np.where(INSIDE, 255, OBJECT * 1).astype(np.uint8)),
        "regions of 1",
    ),
    "two levels, no black": (Image.fromarray(OBJECT.astype(np.uint8) + 1), "none of them bright"),
    "noise 0 to 2": (Image.fromarray(NOISE.integers(0, 3, (24, 32), dtype=np.uint8)), "none of them bright"),
    "noise 0 and 1": (Image.fromarray(NOISE.integers(0, 2, (24, 32), dtype=np.uint8)), "noise"),
    "sparse noise": (Image.fromarray((NOISE.random((48, 64)) < 0.1).astype(np.uint8)), "noise"),
    "palette of three": (_palette(OBJECT + 1 * INSIDE, (0, 0, 0), (128, 0, 0), (0, 128, 0)), "colors"),
    "objects in colors": (Image.fromarray(_rgb((OBJECT, (255, 0, 0)), (INSIDE, (0, 255, 0)))), "colors"),
    "red border of a dark class": (
        Image.fromarray(_rgb((OBJECT, (224, 224, 192)), (INSIDE, (128, 0, 0)))),
        "colors",
    ),
    "color on white": (Image.fromarray(_rgb((OBJECT, (255, 0, 0)), around=(255, 255, 255))), "colors"),
    "negative": (Image.fromarray(-OBJECT.astype(np.int32)), "negative"),
    "not a number": (Image.fromarray(np.where(OBJECT, np.nan, 0).astype(np.float32)), "no numbers"),
    "distances": (
        Image.fromarray(np.linspace(0, 900, 768, dtype=np.float32).reshape(24, 32)),
        "nothing says which is white",
    ),
}


def _save(image: Image.Image, folder, **options):
    path = folder / ("mask.tif" if image.mode in ("I", "F", "CMYK") else "mask.png")
    image.save(path, **options)
    return path


@pytest.mark.parametrize("kind", CLEAR)
def test_unambiguous_masks_of_every_kind_are_read(kind, tmp_path) -> None:
    assert np.array_equal(read_mask(_save(CLEAR[kind], tmp_path)), OBJECT)


@pytest.mark.parametrize("kind", UNCLEAR)
def test_ambiguous_masks_are_refused_with_a_remedy(kind, tmp_path) -> None:
    image, reason = UNCLEAR[kind]
    with pytest.raises(ExperimentError, match=rf"mask\.(png|tif) .*{reason}.*255 in the object"):
        read_mask(_save(image, tmp_path))


def test_multi_page_masks_are_refused(tmp_path) -> None:
    path = _save(
        Image.new("F", OBJECT.T.shape), tmp_path, save_all=True, append_images=[Image.new("F", (32, 24))]
    )
    with pytest.raises(ExperimentError, match=r"mask\.tif has 2 pages"):
        read_mask(path)


@pytest.mark.parametrize("factor", [1, 4, 10])
def test_soft_borders_are_thresholded_as_in_the_toolboxes(factor, tmp_path) -> None:
    image = _smooth(factor)
    assert len(np.unique(np.asarray(image))) > 2
    assert np.array_equal(read_mask(_save(image, tmp_path)), np.asarray(image) > 128)


def test_jpeg_soft_borders_are_thresholded_as_in_the_toolboxes(tmp_path) -> None:
    _smooth(4).save(tmp_path / "mask.jpg", quality=60)
    with Image.open(tmp_path / "mask.jpg") as image:
        assert np.array_equal(read_mask(tmp_path / "mask.jpg"), np.asarray(image) > 128)


def test_single_color_soft_borders_are_thresholded_at_the_midpoint(tmp_path) -> None:
    shade = np.asarray(_smooth(4))
    pixels = np.round(shade[..., None] / 255 * np.array([128, 0, 64])).astype(np.uint8)
    found = read_mask(_save(Image.fromarray(pixels), tmp_path))
    assert np.array_equal(found, pixels[..., 0] > 64)


def test_masks_are_read_as_displayed(tmp_path) -> None:
    turned = Image.fromarray(np.rot90(GRAY).copy())
    exif = Image.Exif()
    exif[274] = 6
    assert np.array_equal(read_mask(_save(turned, tmp_path, exif=exif)), OBJECT)


def test_empty_mask_stays_empty(tmp_path) -> None:
    Image.new("L", (5, 4)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").sum() == 0


def test_thin_objects_are_not_treated_as_noise() -> None:
    lines = np.zeros((200, 200), dtype=np.uint8)
    lines[10, :] = lines[:, 30] = 1
    assert np.array_equal(binarize(lines), lines > 0)
    diagonal = np.eye(200, dtype=np.uint8)
    assert np.array_equal(binarize(diagonal), diagonal > 0)


@settings(deadline=None, max_examples=50)
@given(arrays.arrays(np.int16, (12, 15), elements=st.integers(-8, 8)), arrays.arrays(np.bool_, (12, 15)))
def test_masks_with_bright_pixels_are_thresholded_as_in_the_toolboxes(noise, mask) -> None:
    mask[0, 0], mask[0, 1] = True, False
    values = np.clip(mask * 255 + noise, 0, 255).astype(np.uint8)
    values.ravel()[2:22] = np.arange(118, 138)  # a border of many levels, from loss
    assert np.array_equal(binarize(values), values > 128)


@settings(deadline=None, max_examples=50)
@given(arrays.arrays(np.bool_, (4, 5)), st.integers(1, 255))
def test_binary_masks_keep_their_object(mask, value) -> None:
    assert np.array_equal(binarize(mask.astype(np.uint8) * np.uint8(value)), mask)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 255), st.integers(1, 255), st.sampled_from([np.uint8, np.uint16, np.int32]))
def test_instance_labels_are_all_foreground(first, second, kind) -> None:
    """Two regions of two values: both are the object, or the mask is refused."""
    values = np.where(INSIDE, second, OBJECT * first).astype(kind)
    try:
        found = binarize(values)
    except UnclearImageError:
        return
    assert np.array_equal(found, OBJECT)


def test_damaged_mask_error_names_the_file(tmp_path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(b"not an image")
    with pytest.raises(ExperimentError, match=r"mask\.png"):
        read_mask(path)
