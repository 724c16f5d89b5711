from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from invertible_attention.experiments.demo import upload
from invertible_attention.experiments.demo.upload import FORMATS, MAX_BYTES, MAX_PIXELS, read_picture
from invertible_attention.experiments.errors import ExperimentError


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes with any size in its header: the beginning of a decompression bomb."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture
def gradient() -> Image.Image:
    ramp = np.linspace(0, 255, 16 * 24 * 3).astype(np.uint8).reshape(16, 24, 3)
    return Image.fromarray(ramp)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(tmp_path: Path, gradient: Image.Image, kind: str) -> None:
    found = read_picture(save(tmp_path / "picture", gradient, format=kind))
    assert (found.mode, found.size) == ("RGB", (24, 16))
    if kind in ("PNG", "BMP"):
        assert np.array_equal(np.asarray(found), np.asarray(gradient))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path, gradient: Image.Image, mode: str) -> None:
    source = gradient.convert("L").convert("I;16") if mode == "I;16" else gradient.convert(mode)
    kind = "jpeg" if mode == "CMYK" else "png"
    assert read_picture(save(tmp_path / f"x.{kind}", source)).mode == "RGB"


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    found = read_picture(save(tmp_path / "x.png", Image.new("RGBA", (9, 9), (200, 0, 0, 0))))
    assert found.getpixel((4, 4)) == (255, 255, 255)


def test_exif_orientation_is_applied(tmp_path: Path, gradient: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_picture(save(tmp_path / "x.jpg", gradient, exif=exif)).size == (16, 24)


def test_animations_use_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (10, 10), color) for color in ("red", "blue")]
    path = save(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])
    assert read_picture(path).getpixel((0, 0)) == (254, 0, 0) or read_picture(path).getpixel((0, 0)) == (
        255,
        0,
        0,
    )


@pytest.mark.parametrize("size", [(40_000, 40_000), (MAX_PIXELS + 1, 1), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_before_decoding(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", decode)
    monkeypatch.setattr(Image.Image, "convert", decode)
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(*size))
    with pytest.raises(ExperimentError, match="at most 25 million are taken"):
        read_picture(path)


def test_large_files_are_refused_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", None)
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ExperimentError, match="at most 10 MB are taken"):
        read_picture(path)


def damaged(tmp_path: Path) -> list[Path]:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "png")
    contents = {
        "empty": b"",
        "text.png": b"not a picture",
        "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "half.png": buffer.getvalue()[:60],
        "claims.png": png_that_claims(300, 300),
        "tiny.png": png_that_claims(2, 2),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return [*(tmp_path / name for name in contents), tmp_path / "absent.png", tmp_path]


@pytest.mark.parametrize("place", range(8))
def test_errors_are_plain_and_show_no_path(tmp_path: Path, place: int) -> None:
    path = damaged(tmp_path)[place]
    with pytest.raises(ExperimentError) as caught:
        read_picture(path)
    message = str(caught.value)
    assert str(tmp_path) not in message
    assert path.name not in message
    assert "choose" in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_rare_formats_are_refused(tmp_path: Path, gradient: Image.Image) -> None:
    assert "EPS" not in upload.FORMATS
    with pytest.raises(ExperimentError, match="not a picture in a format that is read here"):
        read_picture(save(tmp_path / "x.ppm", gradient))
