"""What a viewer shows of an image file: 8 bits per channel, upright, transparency on white, colors as meant."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps

__all__ = ["UnclearImageError", "as_shown", "shown_size", "upright", "without_warnings"]

ORIENTATION = 274
"""The number of the EXIF tag."""

BROKEN_EXIF = (
    AttributeError,
    KeyError,
    OSError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)
"""What Pillow raises for metadata it cannot parse. Viewers ignore such metadata, and show the picture."""

GRAY_STEP = {"L;2": 85, "L;4": 17}
"""What one level of a PNG of 2 or 4 bits is worth in 8 bits."""


class UnclearImageError(ValueError):
    """An image whose values do not say what they look like; its message continues after the image's name."""


_FILTERS = threading.Lock()


def as_shown(image: Image.Image) -> Image.Image:
    """Return an opened file as a viewer shows it, in RGB.

    - 16 bits are scaled to 8 by the file's own white, 65535 or, of a TIFF of 12 bits, 4095.
    - The EXIF orientation is applied.
    - What is transparent is white, in part where it is in part.
    - Colors are converted to sRGB by the embedded ICC profile, where there is one that fits.
    - Of an animation or a file of several pages, the first.

    Raises:
        UnclearImageError: for floating-point, signed and 32-bit values, of which no file says which is white.
        OSError: among others, as Pillow does, for a damaged file.

    Example:
        >>> as_shown(Image.new("LA", (1, 1), (0, 51))).getpixel((0, 0))
        (204, 204, 204)
    """
    image = upright(image)
    profile = image.info.get("icc_profile")
    alpha = _alpha(image)
    gray = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
    color = _eight_bits(image) if gray else _opaque(image)
    shown = _to_srgb(color, profile)
    if alpha is not None:
        shown = Image.composite(shown, Image.new("RGB", shown.size, "white"), alpha)
    shown.info = {}  # its profile and orientation are applied
    return shown


def upright(image: Image.Image) -> Image.Image:
    """Decode an opened file and turn it as its EXIF orientation says, its values as they are stored.

    Raises:
        UnclearImageError: for a file that is known to be decoded wrongly.
        OSError: among others, as Pillow does, for a damaged file.
    """
    if not image.width or not image.height:
        raise UnclearImageError(f"is empty, {image.width}×{image.height} pixels")
    if _tag(image, 284) == 2 and _tag(image, 258) > 8:
        raise UnclearImageError(
            "is a TIFF of more than 8 bits with one plane per channel, which Pillow decodes wrongly"
        )
    _scale_transparent_gray(image)
    image.load()
    with without_warnings(), contextlib.suppress(*BROKEN_EXIF):
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") and _tag(image, 262, 1) == 0:
        # Zero is white: Pillow inverts such a TIFF in 8 bits only.
        return Image.fromarray(65535 - np.asarray(image))
    return image


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Keep Pillow's warnings of size and of damaged metadata from the program, whatever its filters.

    Filters belong to the whole process: two threads that change them at once would leave them changed, so that only
    one at a time is in here.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height an opened file will have upright, from its header.

    The header of a PNG may leave its orientation to the end of the file, against the advice of the standard and the
    habit of its writers: such a PNG counts as upright.
    """
    turned = False
    if image.format not in ("TIFF", "PNG") or (image.format == "PNG" and "exif" in image.info):
        with without_warnings(), contextlib.suppress(*BROKEN_EXIF):
            turned = image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size  # of a TIFF Pillow has turned it already


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a gray image as ``L``."""
    if image.mode in ("1", "L", "LA"):
        if _tag(image, 339, 1) != 1:
            raise UnclearImageError("has signed values, and nothing says which of them is white")
        return image.convert("L")
    values = np.asarray(image)
    white = _white(image)
    if white is None:
        raise _no_white(image)
    scaled = (values.astype(np.uint32) * 255 + white // 2) // white
    return Image.fromarray(scaled.astype(np.uint8))


def _white(image: Image.Image) -> int | None:
    """Return which stored value is white, ``None`` where the file does not say."""
    if image.mode.startswith("I;16"):
        return 2 ** min(16, _tag(image, 258, 16)) - 1
    # Pillow reads gray PPM of more than 8 bits, and old versions of it 16-bit PNG, into 32 bits.
    return 65535 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _no_white(image: Image.Image) -> UnclearImageError:
    low, high = image.getextrema()
    kind = "floating-point" if image.mode == "F" else "32-bit or signed"
    return UnclearImageError(
        f"has {kind} values, from {low:g} to {high:g}, and nothing says which of them is white"
    )


def _opaque(image: Image.Image) -> Image.Image:
    """Return the colors of an image without their transparency, in RGB or CMYK."""
    if image.mode == "F":
        raise _no_white(image)
    if image.mode == "RGBa":
        image = image.convert("RGBA")
    return image if image.mode in ("RGB", "CMYK") else image.convert("RGB")


def _alpha(image: Image.Image) -> Image.Image | None:
    """Return how opaque each pixel is, ``None`` where all are wholly."""
    if not image.has_transparency_data:
        return None
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        opaque = np.asarray(image) != clear
        return Image.fromarray(opaque.astype(np.uint8) * 255)
    return image.convert("RGBA").getchannel("A")


def _scale_transparent_gray(image: Image.Image) -> None:
    """Bring the transparent value of a PNG of 2 or 4 bits to 8 bits, as Pillow brings its pixels."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    if image.format == "PNG" and tiles and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= GRAY_STEP.get(str(tiles[0].args), 1)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        # A profile that is damaged, or of another kind of color than the image, is ignored, as viewers do.
        with contextlib.suppress(ImageCms.PyCMSError, OSError, TypeError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            if converted is not None:
                return converted
    return image.convert("RGB")


def _tag(image: Image.Image, number: int, default: int = 0) -> int:
    """Return the first value of a TIFF tag, ``default`` where the file is no TIFF or has none."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    if isinstance(value, tuple):
        value = value[0] if value else default
    return value if isinstance(value, int) else default
