"""Size limit of images: the same in every reader, independent of warning filters."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from invertible_attention.experiments.data.folder import folder_splits
from invertible_attention.experiments.data.source import MAX_PIXELS, identify, image_size, open_image
from invertible_attention.experiments.errors import ExperimentError

WARNED = (9_500, 9_700)
"""Above where Pillow warns (89.5 million pixels) and far below where it refuses (179 million)."""


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes with this size in its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def check_image(path: Path) -> None:
    from invertible_attention.experiments.camouflage.data import Pair
    from invertible_attention.experiments.camouflage.data.checks import check_pair

    problem = check_pair(Pair(path.stem, path, None))
    if problem is not None:
        raise ExperimentError(f"{problem.path.name} {problem.reason}")


def predict(path: Path) -> None:
    import torch

    from invertible_attention.experiments.camouflage.data import Pair
    from invertible_attention.experiments.camouflage.predicting import predict_maps

    image = path.with_name("image.png")
    Image.new("L", (8, 8)).save(image)
    list(predict_maps(torch.nn.Identity(), [Pair("x", image, path)], size=8, device=torch.device("cpu")))


def read_from_folder(path: Path) -> None:
    folder_splits(path.parent)["all"][0]


@pytest.mark.parametrize("action", ["error", "ignore", "default"])
@pytest.mark.parametrize("read", [open_image, image_size, read_from_folder, check_image, predict])
@pytest.mark.parametrize("kind", ["png", "jpg", "tif"])
def test_one_limit_for_every_reader(
    tmp_path: Path, kind: str, read: Callable[[Path], object], action: str, large: dict[str, bytes]
) -> None:
    path = tmp_path / f"large.{kind}"
    path.write_bytes(large[kind])
    with warnings.catch_warnings(record=action == "default") as caught:
        warnings.simplefilter(action)
        with pytest.raises(
            ExperimentError, match=rf"large\.{kind} is too large: 9500×9700 pixels, .* 89 million"
        ):
            read(path)
    assert not caught


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("large")
    Image.new("L", WARNED).save(folder / "large.jpg", quality=10)
    Image.new("1", WARNED).save(folder / "large.tif", compression="group4")
    (folder / "large.png").write_bytes(png_that_claims(*WARNED))
    return {kind: (folder / f"large.{kind}").read_bytes() for kind in ("png", "jpg", "tif")}


def test_size_at_the_limit_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "limit.png"
    path.write_bytes(png_that_claims(MAX_PIXELS // 1000, 1000))
    assert image_size(path) == (MAX_PIXELS // 1000, 1000)
    path.write_bytes(png_that_claims(MAX_PIXELS // 1000 + 1, 1000))
    with pytest.raises(ExperimentError, match="too large"):
        image_size(path)


def test_pillow_does_not_warn_about_accepted_images() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS <= Image.MAX_IMAGE_PIXELS


def test_a_tile_larger_than_its_image_is_refused(tmp_path: Path) -> None:
    # Pillow looks at the size of a TIFF's tiles only when it decodes: a warning there is an error here.
    path = tmp_path / "tile.tif"
    Image.new("L", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    offset = struct.unpack_from("<I", content, 4)[0]
    for entry in range(struct.unpack_from("<H", content, offset)[0]):
        place = offset + 2 + 12 * entry
        if struct.unpack_from("<H", content, place)[0] in (256, 257):  # width and height
            struct.pack_into("<HI", content, place + 2, 4, 1)
            struct.pack_into("<I", content, place + 8, 9_600)
    path.write_bytes(bytes(content))
    with pytest.raises(ExperimentError, match=r"tile\.tif is too large"):
        open_image(path)


def test_threads_do_not_change_warning_filters(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("L", (8, 8)).save(path)
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: identify(path).close(), range(400)))
    assert warnings.filters == before


@pytest.mark.parametrize("content", [b"", b"nothing", png_that_claims(8, 8)[:20]])
def test_unreadable_size_error_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.png"
    path.write_bytes(content)
    with pytest.raises(ExperimentError, match=r"damaged\.png cannot be read as an image"):
        image_size(path)
    with pytest.raises(ExperimentError, match=r"cannot read .*absent\.png"):
        image_size(tmp_path / "absent.png")
