"""From images to maps: predictions at the size of the originals, as PNG in the field's layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from ..data.source import image_size, open_image
from ..errors import ExperimentError
from ..files import atomic_path
from .data import Collection, Pair
from .data.augmentation import image_tensor

__all__ = ["predict_maps", "to_map", "write_maps"]

BATCH = 8

Report = Callable[[int], None]


def to_map(
    logits: Float[Tensor, "1 1 height width"], size: tuple[int, int]
) -> UInt8[np.ndarray, "rows columns"]:
    """Return the 8-bit map of one image: logits scaled to ``size``, sigmoid, stretched to the whole range.

    Args:
        logits: of one image.
        size: height and width of the map.
    """
    scaled = nn.functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    p = scaled[0, 0].sigmoid()
    p = (p - p.min()) / (p.max() - p.min() + 1e-8)
    return torch.round(255 * p).to(torch.uint8).cpu().numpy()


@torch.no_grad()
def predict_maps(
    network: nn.Module, pairs: Sequence[Pair], *, size: int, device: torch.device
) -> Iterator[tuple[Pair, UInt8[np.ndarray, "height width"]]]:
    """Yield the map of every image, at the size of its mask (of the image, where there is none)."""
    network.eval()
    for start in range(0, len(pairs), BATCH):
        chunk = pairs[start : start + BATCH]
        images = [open_image(pair.image) for pair in chunk]
        batch = torch.stack([image_tensor(image, size) for image in images]).to(device)
        for pair, image, logits in zip(chunk, images, network(batch).split(1), strict=True):
            yield pair, to_map(logits, _size(pair, image))


def write_maps(
    network: nn.Module,
    collections: Sequence[Collection],
    folder: Path,
    *,
    size: int,
    device: torch.device,
    report: Report | None = None,
) -> int:
    """Write ``folder/DATASET/NAME.png`` for every image; return how many.

    Raises:
        ExperimentError: when two images would get the same file, naming both.
    """
    first: dict[tuple[str, str], Path] = {}
    for collection in collections:
        for pair in collection.pairs:
            name = (collection.name.casefold(), pair.name.casefold())  # some file systems know no case
            if (other := first.setdefault(name, pair.image)) != pair.image:
                raise ExperimentError(
                    f"the maps of {other} and {pair.image} would both be {collection.name}/{pair.name}.png: rename one"
                )
    done = 0
    for collection in collections:
        for pair, values in predict_maps(network, collection.pairs, size=size, device=device):
            with atomic_path(folder / collection.name / f"{pair.name}.png") as temporary:
                Image.fromarray(values).save(temporary)
            done += 1
            if report is not None:
                report(done)
    return done


def _size(pair: Pair, image: Image.Image) -> tuple[int, int]:
    if pair.mask is None:
        return image.height, image.width
    width, height = image_size(pair.mask)
    return height, width
