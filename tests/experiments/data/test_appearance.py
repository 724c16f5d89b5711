"""Every reader decodes images as a viewer shows them, or refuses them."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageCms

from invertible_attention.experiments.data import decode, folder_splits, parquet_splits
from invertible_attention.experiments.data.source import image_size, open_image
from invertible_attention.experiments.errors import ExperimentError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:datasets.*")

RAMP = np.linspace(0, 65535, 12 * 16).round().astype(np.uint16).reshape(12, 16)
"""A picture in 16 bits, dark in one corner and bright in the other: no turn of it looks like another."""

BYTES = np.round(RAMP / 257).astype(np.uint8)
"""What a viewer of 8 bits shows of it."""

ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
"""What stored pixels look like under every EXIF orientation (EXIF 2.32, tag 274)."""


def png(values: np.ndarray, bits: int, kind: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of ``values`` (rows, columns, channels) with ``bits`` each; ``kind`` is its color type."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    height, width = values.shape[:2]
    stored = values.reshape(height, values[0].size)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in stored]
    else:
        single = np.unpackbits(stored.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
        lines = [np.packbits(row).tobytes() for row in single.reshape(height, -1)]
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    """A TIFF, as scientific software writes it."""
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.ascontiguousarray(values), **options)
    return buffer.getvalue()


def tiff_of_12_bits(values: np.ndarray) -> bytes:
    """A gray TIFF of 12 bits per pixel, two pixels in three bytes, as cameras and microscopes write it."""
    height, width = values.shape
    data = b"".join((int(a) << 12 | int(b)).to_bytes(3, "big") for a, b in values.reshape(-1, 2))
    short, long = 3, 4
    tags = [(256, short, width), (257, short, height), (258, short, 12), (259, short, 1), (262, short, 1)]
    tags += [(273, long, 8), (277, short, 1), (278, short, height), (279, long, len(data))]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    place = struct.pack("<I", 8 + len(data))
    return b"II*\0" + place + data + struct.pack("<H", len(tags)) + directory + b"\0\0\0\0"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """``image`` in a format of Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def orientation(number: int) -> Image.Exif:
    """EXIF data that say how the pixels are to be turned."""
    exif = Image.Exif()
    exif[274] = number
    return exif


def transparency(value: int) -> tuple[bytes, bytes]:
    """The chunk of a gray PNG that makes one value transparent."""
    return b"tRNS", struct.pack(">H", value)


def shown() -> dict[str, tuple[bytes, np.ndarray]]:
    """Files, and their pixels as every viewer shows them, gray or RGB."""
    color = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1)
    color_bytes = (color >> 8).astype(np.uint8)
    small = BYTES >> 4
    opacity = np.where(np.arange(16) < 8, 0, 255).astype(np.uint8) * np.ones((12, 1), np.uint8)
    on_white = np.where(opacity == 0, 255, BYTES)
    half = np.round(255 - (255 - BYTES.astype(int)) * 0.4).astype(np.uint8)
    palette = Image.fromarray((BYTES > 100).astype(np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    frames = [Image.fromarray(BYTES), Image.fromarray(255 - BYTES)]
    return {
        "8-bit gray PNG": (encoded(frames[0], "png"), BYTES),
        "16-bit gray PNG": (png(RAMP, 16, 0), BYTES),
        "16-bit gray PNG with a transparent value": (
            png(np.where(opacity == 0, 777, RAMP), 16, 0, transparency(777)),
            on_white,
        ),
        "16-bit color PNG": (png(color, 16, 2), color_bytes),
        "16-bit gray PNG with alpha": (
            png(np.stack([RAMP, opacity.astype(int) * 257], -1), 16, 4),
            np.where(opacity == 0, 255, RAMP >> 8),
        ),
        "4-bit gray PNG": (png(small, 4, 0), small * 17),
        "4-bit gray PNG with a transparent value": (
            png(small, 4, 0, transparency(15)),
            small * 17,  # transparent pixels stay white
        ),
        "4-bit gray PNG, black transparent": (
            png(small, 4, 0, transparency(0)),
            np.where(small == 0, 255, small * 17),
        ),
        "2-bit gray PNG, dark transparent": (
            png(BYTES >> 6, 2, 0, transparency(1)),
            np.where(BYTES >> 6 == 1, 255, (BYTES >> 6) * 85),
        ),
        "1-bit PNG": (png(BYTES >> 7, 1, 0), (BYTES >> 7) * 255),
        "palette PNG": (
            encoded(palette, "png"),
            np.where((BYTES > 100)[..., None], (200, 100, 50), (10, 20, 30)),
        ),
        "palette PNG, dark transparent": (
            encoded(palette, "png", transparency=0),
            np.where((BYTES > 100)[..., None], (200, 100, 50), (255, 255, 255)),
        ),
        "palette PNG, half transparent": (
            encoded(palette, "png", transparency=bytes([255, 0])),
            np.where((BYTES > 100)[..., None], (255, 255, 255), (10, 20, 30)),
        ),
        "gray PNG with alpha": (encoded(Image.fromarray(np.dstack([BYTES, opacity])), "png"), on_white),
        "color PNG with alpha, colors under it": (
            encoded(Image.fromarray(np.dstack([BYTES, BYTES, BYTES, opacity])), "png"),
            on_white,
        ),
        "color WebP with alpha of 40 %": (
            encoded(
                Image.fromarray(np.dstack([BYTES, BYTES, BYTES, np.full_like(BYTES, 102)])),
                "webp",
                lossless=True,
            ),
            half,
        ),
        "8-bit TIFF": (tiff(BYTES), BYTES),
        "8-bit TIFF, white is zero": (tiff(255 - BYTES, photometric="miniswhite"), BYTES),
        "16-bit TIFF": (tiff(RAMP), BYTES),
        "16-bit TIFF, big-endian": (tiff(RAMP, byteorder=">"), BYTES),
        "16-bit TIFF, white is zero": (tiff(65535 - RAMP, photometric="miniswhite"), BYTES),
        "16-bit TIFF, compressed": (tiff(RAMP, compression="deflate"), BYTES),
        "12-bit TIFF": (tiff_of_12_bits(RAMP >> 4), np.round((RAMP >> 4) / 4095 * 255).astype(np.uint8)),
        "16-bit color TIFF": (tiff(color, photometric="rgb"), color_bytes),
        "TIFF of several pages": (
            encoded(frames[0], "tiff", save_all=True, append_images=frames[1:]),
            BYTES,
        ),
        "10-bit PGM": (
            b"P5 16 12 1023\n" + (RAMP >> 6).astype(">u2").tobytes(),
            np.round((RAMP >> 6) / 1023 * 255).astype(np.uint8),
        ),
        "16-bit PGM": (b"P5 16 12 65535\n" + RAMP.astype(">u2").tobytes(), BYTES),
        "animated GIF": (encoded(frames[0], "gif", save_all=True, append_images=frames[1:]), BYTES),
        "animated PNG": (encoded(frames[0], "png", save_all=True, append_images=frames[1:]), BYTES),
        "animated WebP": (
            encoded(frames[0], "webp", save_all=True, append_images=frames[1:], lossless=True),
            BYTES,
        ),
        "BMP": (encoded(Image.fromarray(color_bytes), "bmp"), color_bytes),
        "EXIF that cannot be parsed": (
            encoded(frames[0], "png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
            BYTES,
        ),
    }


def unclear() -> dict[str, tuple[bytes, str]]:
    """Ambiguous files, and the error message for each."""
    unit = (RAMP / 65535).astype(np.float32)
    return {
        "float TIFF": (tiff(unit), "floating-point values, from 0 to 1,"),
        "float TIFF of 0–255": (tiff(unit * 255), "floating-point values, from 0 to 255,"),
        "float PFM": (b"Pf\n16 12\n-1.0\n" + unit.tobytes(), "floating-point values, from 0 to 1,"),
        "double TIFF": (tiff(unit.astype(np.float64)), "a kind of TIFF that is not read"),
        "float color TIFF": (
            tiff(np.dstack([unit] * 3), photometric="rgb"),
            "a kind of TIFF that is not read",
        ),
        "32-bit TIFF": (tiff(RAMP.astype(np.uint32)), "32-bit or signed values, from 0 to 65535,"),
        "signed 16-bit TIFF": (tiff(RAMP.astype(np.int16)), "32-bit or signed values, from -3"),
        "signed 8-bit TIFF": (tiff(BYTES.astype(np.int8)), "signed values"),
        "signed 32-bit TIFF": (tiff(RAMP.astype(np.int32) - 9), "32-bit or signed values, from -9 to 65526,"),
        "16-bit TIFF, a plane per channel": (
            tiff(np.stack([RAMP] * 3), photometric="rgb", planarconfig="separate"),
            "one plane per channel",
        ),
        "truncated JPEG": (encoded(Image.fromarray(BYTES), "jpeg")[:-80], "cannot be read as an image"),
        "truncated PNG": (png(RAMP, 16, 0)[:-40], "cannot be read as an image"),
        "PNG of no pixels": (png(np.zeros((1, 0)), 16, 0), ""),
        "nothing": (b"", "not an image"),
    }


Reader = Callable[[Path], Image.Image]


def from_folder(path: Path) -> Image.Image:
    return folder_splits(path.parent)["all"][0]


def from_parquet(path: Path) -> Image.Image:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([{"bytes": path.read_bytes(), "path": None}], kind)})
    features = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})
    folder = path.parent / "parquet"
    folder.mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": features}), folder / "train.parquet")
    return parquet_splits(folder)["train"][0]


def from_upload(path: Path) -> Image.Image:
    from invertible_attention.experiments.demo.upload import read_picture

    return read_picture(path)


def for_detection(path: Path) -> Image.Image:
    """The image a detector trains on, before resizing."""
    from invertible_attention.experiments.camouflage.data import Pair, cache

    mask = path.with_name("mask.png")
    Image.fromarray(np.zeros(open_image(path).size[::-1], bool)).save(mask)
    seen: list[Image.Image] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "open_image", lambda path: seen.append(open_image(path)) or seen[-1])
        cache.CachedImages([Pair("x", path, mask)], size=8, folder=path.parent / "cache")
    return seen[0]


READERS = {
    "file": open_image,
    "folder": from_folder,
    "parquet": from_parquet,
    "upload": from_upload,
    "detection": for_detection,
}
NOT_UPLOADED = ("PGM", "PFM")
"""Formats that are not taken from strangers."""


def as_color(pixels: np.ndarray) -> np.ndarray:
    return np.dstack([pixels] * 3) if pixels.ndim == 2 else pixels


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", shown())
def test_every_reader_matches_a_viewer(kind: str, name: str, tmp_path: Path) -> None:
    if name == "upload" and kind.endswith(NOT_UPLOADED):
        pytest.skip("not a format that is uploaded")
    content, expected = shown()[kind]
    path = tmp_path / "picture.png"  # the content decides the format, not the name
    path.write_bytes(content)
    found = READERS[name](path)
    assert found.mode == "RGB"
    difference = np.abs(np.asarray(found).astype(int) - as_color(expected))
    assert difference.max() <= (1 if "40 %" in kind else 0)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", unclear())
def test_every_reader_refuses_ambiguous_images(kind: str, name: str, tmp_path: Path) -> None:
    content, said = unclear()[kind]
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ExperimentError) as caught:
        READERS[name](path)
    message = str(caught.value)
    assert message.count("\n") == 0
    if name == "upload":
        assert "choose" in message
    else:
        assert ("picture.png" if name != "parquet" else "row 0") in message
        assert said in message


@settings(deadline=None, max_examples=40)
@given(arrays.arrays(np.uint16, (5, 7)), st.sampled_from(["png", "tiff", "pgm"]))
def test_sixteen_bits_are_rounded_to_eight(values: np.ndarray, kind: str) -> None:
    content = {
        "png": lambda: png(values, 16, 0),
        "tiff": lambda: tiff(values),
        "pgm": lambda: b"P5 7 5 65535\n" + values.astype(">u2").tobytes(),
    }[kind]()
    found = np.asarray(decode(content, "x"))
    assert np.array_equal(found[..., 0], np.round(values / 257).astype(np.uint8))


@pytest.mark.parametrize("number", ORIENTED)
@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "jpeg", "16-bit png", "palette png", "mpo"])
@pytest.mark.parametrize("mode", ["RGB", None])
def test_exif_orientation_is_applied(kind: str, number: int, mode: str | None, tmp_path: Path) -> None:
    image = Image.fromarray(BYTES)
    expected, options = BYTES, {"exif": orientation(number)}
    if kind == "16-bit png":
        image = Image.fromarray(RAMP)
    elif kind == "palette png":
        image = image.convert("P")
    elif kind == "mpo":
        options |= {"save_all": True, "append_images": [Image.fromarray(255 - BYTES).convert("RGB")]}
        image = image.convert("RGB")
    elif kind == "webp":
        image, options = image.convert("RGB"), options | {"lossless": True}
    path = tmp_path / "picture"
    path.write_bytes(encoded(image, kind.split()[-1], **options))
    found = open_image(path, mode)
    assert image_size(path) == found.size
    gray = np.asarray(found.convert("RGB") if mode is None and kind != "16-bit png" else found).astype(int)
    if kind == "16-bit png" and mode is None:
        gray = gray // 256
    expected = ORIENTED[number](BYTES).astype(int)
    assert found.size == expected.shape[::-1]
    gray = gray[..., 0] if gray.ndim == 3 else gray
    assert np.abs(gray - expected).mean() < (4 if kind in ("jpeg", "mpo") else 1)


def test_color_profiles_are_applied(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = decode(encoded(image, "png", icc_profile=own), "x")
    assert np.array_equal(np.asarray(same), pixels)
    # Lab profiles in RGB images and damaged profiles are ignored.
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (lab, b"damaged", own[:200]):
        assert np.array_equal(np.asarray(decode(encoded(image, "png", icc_profile=profile), "x")), pixels)


def test_profile_with_other_primaries_changes_the_colors() -> None:
    skimage = pytest.importorskip("skimage")
    path = Path(skimage.__file__).parent / "data" / "rocket.jpg"
    with Image.open(path) as image:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert "Adobe RGB" in profile.profile.profile_description
        stored = np.asarray(image).astype(int)
    found = np.asarray(open_image(path)).astype(int)
    # Adobe RGB has purer primaries: its numbers mean stronger colors than the same numbers in sRGB.
    assert np.ptp(found, axis=-1).mean() > 1.05 * np.ptp(stored, axis=-1).mean()


def test_transparency_is_composited_in_blocks() -> None:
    opacity = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.dstack([np.zeros_like(opacity), opacity]))
    found = np.asarray(decode(encoded(image, "png"), "x"))[..., 0]
    assert np.array_equal(found, 255 - opacity)


def test_mask_values_are_read_unchanged() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(np.asarray(decode(encoded(Image.fromarray(values), "png"), "x", None)), values)
    assert np.array_equal(np.asarray(decode(tiff(RAMP.astype(np.float32)), "x", None)), RAMP)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(shown())), st.integers(0, 10**6), st.integers(0, 255))
def test_damaged_files_are_read_or_refused(kind: str, place: int, value: int) -> None:
    content = bytearray(shown()[kind][0])
    content[place % len(content)] = value
    try:
        found = decode(bytes(content), "damaged.png")
    except ExperimentError as error:
        said = str(error)
    else:
        said = f"damaged.png is {found.mode}"
    assert said.startswith("damaged.png ")
