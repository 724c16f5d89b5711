"""What a collection of images is: a length, and a photograph for every index."""

from __future__ import annotations

import io
import warnings
from abc import ABC, abstractmethod
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import ExperimentError

__all__ = ["ImageSource", "decode", "open_image"]

MAX_PIXELS = 100_000_000

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pixels only: Pillow would hand PostScript, which is a program, to an interpreter."""


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
        ExperimentError: when the bytes are not a whole image, or one of more than 100 million pixels.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns above 90 million pixels; the limit below is the one that counts here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.init()  # with formats chosen, Pillow does not go looking for their plugins itself
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ExperimentError(f"{name} is too large: {image.width}×{image.height} pixels")
        if mode is not None:
            return image.convert(mode)
        image.load()
        return image
    except Image.DecompressionBombError as error:
        raise ExperimentError(f"{name} is too large: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
        raise ExperimentError(f"{name} cannot be read as an image ({reason}): mend or remove it") from error
