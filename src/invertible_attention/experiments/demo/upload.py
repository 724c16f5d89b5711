"""Reading an uploaded picture: limits before anything is decoded, and errors without paths."""

from __future__ import annotations

import io
import struct
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..data.appearance import UnclearImageError, as_shown
from ..data.source import identify
from ..errors import ExperimentError

__all__ = ["FORMATS", "MAX_BYTES", "MAX_PIXELS", "read_picture"]

MAX_BYTES = 10 * 2**20
"""Largest file that is accepted."""

MAX_PIXELS = 25_000_000
"""Most pixels that are decoded; the file says how many there are before that."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are read, by Pillow's names; its rarer decoders are not offered to strangers' files."""

SMALLEST = 8


def read_picture(path: str | Path) -> Image.Image:
    """Read a picture as :func:`~invertible_attention.experiments.data.appearance.as_shown` says, with closer limits.

    Args:
        path: the file. No error names it: it is a place on the server.

    Raises:
        ExperimentError: saying in plain words why the file is not taken.
    """
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise ExperimentError(
                f"this file has {size / 2**20:.1f} MB, and at most {MAX_BYTES // 2**20} MB are taken: "
                "choose a smaller one"
            )
        content = Path(path).read_bytes()
    except OSError:
        raise ExperimentError("this file could not be read: choose it again") from None
    return _decode(content)


def _decode(content: bytes) -> Image.Image:
    try:
        image = identify(io.BytesIO(content), FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ExperimentError(_too_large(f"{image.width}×{image.height} pixels"))
        if min(image.size) < SMALLEST:
            raise ExperimentError(
                f"this picture has {image.width}×{image.height} pixels: choose one of at least {SMALLEST}×{SMALLEST}"
            )
        return as_shown(image)
    except UnclearImageError as error:
        raise ExperimentError(f"this picture {error}: choose one of 8 or 16 bits per channel") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ExperimentError(_too_large("far too many pixels")) from None
    except UnidentifiedImageError:
        raise ExperimentError(
            f"this is not a picture in a format that is read here: choose one of {', '.join(FORMATS)}"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Warning, struct.error):
        raise ExperimentError("this picture is damaged and cannot be shown: choose another") from None


def _too_large(what: str) -> str:
    return (
        f"this picture has {what}, and at most {MAX_PIXELS // 10**6} million are taken: choose a smaller one"
    )
