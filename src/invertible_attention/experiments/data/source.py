"""What a collection of images is, and the one way an image file is read."""

from __future__ import annotations

import io
import struct
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from ..errors import ExperimentError
from .appearance import UnclearImageError, as_shown, shown_size, upright, without_warnings

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "REPAIR",
    "ImageSource",
    "UnusableImageError",
    "decode",
    "identify",
    "image_size",
    "open_image",
]

MAX_PIXELS = 89_000_000
"""Most pixels of an image that is read. Pillow warns a little above, and decodes up to twice as many: a program that
turns warnings into errors would refuse what another reads. Below its threshold both are the same."""

REPAIR = "repair or remove it"
"""What is advised where nothing better is known."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pixels only: Pillow would hand PostScript, which is a program, to an interpreter."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How a TIFF begins."""


class ImageSource(ABC):
    """Images by index, read only when asked for.

    Implementers **must** return RGB images and raise
    :class:`~invertible_attention.experiments.errors.ExperimentError` naming the file for one that cannot
    be read.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return how many images there are."""

    @abstractmethod
    def __getitem__(self, index: int) -> Image.Image:
        """Return image ``index`` in RGB."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what to call image ``index`` in messages."""


class UnusableImageError(ExperimentError):
    """An image that cannot be used.

    Args:
        name: its file, or what else it is called.
        reason: what is wrong with it; continues after the name.
        remedy: what the user may do.
        message: the whole sentence, where it is another than these make.
    """

    def __init__(self, name: str, reason: str, remedy: str = REPAIR, *, message: str | None = None):
        super().__init__(message or f"{name} {reason}: {remedy}")
        self.name = name
        self.reason = reason
        self.remedy = remedy


def open_image(path: Path, mode: str | None = "RGB") -> Image.Image:
    """Read the image file ``path`` as a viewer shows it, or upright and as it is stored with ``mode=None``.

    Raises:
        ExperimentError: naming the file when it is missing, damaged, absurdly large or does not say what it looks like.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        why = error.strerror or error
        message = f"cannot read {path}: {why}"
        raise UnusableImageError(str(path), f"cannot be read ({why})", message=message) from error
    return decode(content, str(path), mode)


def decode(content: bytes, name: str, mode: str | None = "RGB") -> Image.Image:
    """Decode an image file's bytes, as :func:`~invertible_attention.experiments.data.appearance.as_shown` says.

    Args:
        content: a PNG, JPEG, WebP … file.
        name: what to call it in messages.
        mode: Pillow's name of the pixel format wanted; with ``None`` the values as they are stored, upright.

    Raises:
        ExperimentError: when the bytes are not a whole image, one of more than 89 million pixels, or one of which
            nothing says what it looks like.
    """
    try:
        image = identify(io.BytesIO(content))
        _check_size(image, name)
        if mode is None:
            return upright(image)
        shown = as_shown(image)
        return shown if mode == "RGB" else shown.convert(mode)
    except UnclearImageError as error:
        remedy = "save it with 8 or 16 unsigned bits per channel, or remove it"
        raise UnusableImageError(name, str(error), remedy) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusableImageError(name, f"is too large ({error})") from error
    except (
        UnidentifiedImageError,
        EOFError,
        OSError,
        SyntaxError,
        ValueError,
        Warning,
        struct.error,
    ) as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, UnidentifiedImageError):
            # Pillow says the same of what is no TIFF at all and of a TIFF of, say, 64-bit floating point.
            reason = "a kind of TIFF that is not read" if content.startswith(TIFF) else "not an image"
        raise UnusableImageError(name, f"cannot be read as an image ({reason})") from error


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height an image file is shown at, from its header, without decoding it.

    Raises:
        ExperimentError: as :func:`open_image`.
    """
    try:
        with identify(path) as image:
            _check_size(image, str(path))
            return shown_size(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return open_image(path, mode=None).size  # the reader that words the message


def identify(file: Path | IO[bytes], formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open an image file without decoding it: its header says how large it is.

    Pillow warns above 89 million pixels and refuses twice as many. Here no warning is given: the caller has a limit of
    its own, and what is refused must not depend on the program's warning filters.

    Args:
        file: the file or its content.
        formats: Pillow's names of the formats that are tried.

    Raises:
        PIL.Image.DecompressionBombError: above Pillow's limit.
        OSError: among others, as Pillow does, for what is no image.
    """
    Image.init()  # with formats chosen, Pillow does not go looking for their plugins itself
    with without_warnings():
        return Image.open(file, formats=formats)


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UnusableImageError(
            name,
            f"is too large: {image.width}×{image.height} pixels, and at most {MAX_PIXELS // 10**6} million are read",
        )
