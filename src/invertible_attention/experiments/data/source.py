"""What a collection of images is: a length, and a photograph for every index."""

from __future__ import annotations

import io
import threading
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from ..errors import ExperimentError

__all__ = ["FORMATS", "MAX_PIXELS", "ImageSource", "decode", "identify", "image_size", "open_image"]

MAX_PIXELS = 89_000_000
"""Most pixels of an image that is read. Pillow warns a little above, and decodes up to twice as many: a program that
turns warnings into errors would refuse what another reads. Below its threshold both are the same."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pixels only: Pillow would hand PostScript, which is a program, to an interpreter."""

_FILTERS = threading.Lock()


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


def open_image(path: Path, mode: str | None = "RGB") -> Image.Image:
    """Read the image file ``path`` in RGB, or as it is stored with ``mode=None``.

    Raises:
        ExperimentError: naming the file when it is missing, damaged or absurdly large.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExperimentError(f"cannot read {path}: {error.strerror or error}") from error
    return decode(content, str(path), mode)


def decode(content: bytes, name: str, mode: str | None = "RGB") -> Image.Image:
    """Decode an image file's bytes.

    Args:
        content: a PNG, JPEG, WebP … file.
        name: what to call it in messages.
        mode: Pillow's name of the pixel format wanted, ``None`` for that of the file.

    Raises:
        ExperimentError: when the bytes are not a whole image, or one of more than 89 million pixels.
    """
    try:
        image = identify(io.BytesIO(content))
        _check_size(image, name)
        if mode is not None:
            return image.convert(mode)
        image.load()
        return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ExperimentError(f"{name} is too large: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
        raise ExperimentError(f"{name} cannot be read as an image ({reason}): mend or remove it") from error


def image_size(path: Path) -> tuple[int, int]:
    """Return an image file's width and height from its header, without decoding it.

    Raises:
        ExperimentError: as :func:`open_image`.
    """
    try:
        with identify(path) as image:
            _check_size(image, str(path))
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return open_image(path).size  # the reader that words the message


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
    # Filters belong to the whole process: two threads that change them at once would leave them changed.
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=formats)


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ExperimentError(
            f"{name} is too large: {image.width}×{image.height} pixels, "
            f"and at most {MAX_PIXELS // 10**6} million are read"
        )
