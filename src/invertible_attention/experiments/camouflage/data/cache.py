"""Training images decoded once, or a frozen backbone's features of them, in memory-mapped files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib.format import open_memmap
from torch import Tensor, nn

from ...data.source import image_size, open_image
from ...files import atomic_path
from .augmentation import BILINEAR, CROP, Changes, augment, image_tensor, mask_image, mask_tensor
from .masks import read_mask
from .pairs import Pair

__all__ = ["Batch", "CachedFeatures", "CachedImages", "TrainingImages"]

FORMAT = 1
"""Changes when the content of a cache does."""

CHUNK = 8

Report = Callable[[int], None]
"""What is reported of filling a cache: images done so far."""


class Batch(NamedTuple):
    """What the network is trained on: images, or the features of images, and masks."""

    image: Float[Tensor, "batch 3 size size"] | list[Tensor]
    mask: Float[Tensor, "batch 1 size size"]


class TrainingImages(Protocol):
    """Training images by index, from which batches are made on a device."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def batch(
        self, indices: Sequence[int], random: Sequence[np.random.Generator], device: torch.device
    ) -> Batch:
        """Return a batch, each image changed by its own generator."""
        ...


class CachedImages:
    """Images and masks scaled to squares, a little larger than the network sees, of 8 bits.

    Args:
        pairs: all with masks.
        size: side of the squares the network sees; what cropping takes away is added.
        folder: where the file is; it is named by the content of the images, so that it is never another's.
        workers: threads that decode; 0 for as many as there are cores.
        report: called with how many images are decoded.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        size: int,
        folder: Path,
        workers: int = 0,
        report: Report | None = None,
    ):
        self.size = size
        side = round(size / (1 - CROP))
        shape = (len(pairs), side, side, 4)
        name = f"images-{_digest(pairs, FORMAT, shape)}"

        def decoded() -> Iterator[np.ndarray]:
            with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
                yield from pool.map(lambda pair: _square(pair, side), pairs)

        self._pixels = _filled(folder / f"{name}.npy", shape, np.dtype(np.uint8), decoded, report)
        self._aspect = [_aspect(pair) for pair in pairs]

    def __len__(self) -> int:
        return len(self._pixels)

    def batch(
        self, indices: Sequence[int], random: Sequence[np.random.Generator], device: torch.device
    ) -> Batch:
        """Return images changed at random, the masks alike, and standardized."""
        pixels = torch.from_numpy(self._pixels[list(indices)]).to(device).permute(0, 3, 1, 2)
        changes = [Changes.draw(each) for each in random]
        aspect = [self._aspect[index] for index in indices]
        image, mask = augment(pixels[:, :3], pixels[:, 3:], aspect, changes, self.size)
        return Batch(image.contiguous(memory_format=torch.channels_last), mask)


class CachedFeatures:
    """A frozen backbone's four maps of every image and of its mirror image, in half precision, and the masks.

    Args:
        backbone: what makes the maps; its weights are part of the file's name.
        pairs: all with masks.
        size: side of the squares the backbone sees.
        folder: where the file is.
        device: where the backbone is.
        report: called with how many images are done.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pairs: Sequence[Pair],
        *,
        size: int,
        folder: Path,
        device: torch.device,
        report: Report | None = None,
    ):
        backbone.eval()
        with torch.no_grad():
            maps = backbone(torch.zeros(1, 3, size, size, device=device))
        self.size = size
        self._shapes = [tuple(x.shape[1:]) for x in maps]
        self._lengths = [x[0].numel() for x in maps]
        shape = (len(pairs), 2, sum(self._lengths) + size * size)
        weights = hashlib.sha256()
        for name, value in backbone.state_dict().items():
            weights.update(name.encode())
            weights.update(value.detach().cpu().contiguous().numpy().tobytes())
        name = f"features-{_digest(pairs, FORMAT, shape, weights.hexdigest())}"
        self._values = _filled(
            folder / f"{name}.npy",
            shape,
            np.dtype(np.float16),
            lambda: _features(backbone, pairs, size, device),
            report,
        )

    def __len__(self) -> int:
        return len(self._values)

    def batch(
        self, indices: Sequence[int], random: Sequence[np.random.Generator], device: torch.device
    ) -> Batch:
        """Return the features of images or of their mirror images, with equal probability."""
        mirrored = [int(each.random() < 0.5) for each in random]
        values = torch.from_numpy(self._values[list(indices), mirrored]).to(device).float()
        *maps, mask = values.split([*self._lengths, self.size**2], dim=1)
        features = [
            x.reshape(-1, *shape).contiguous(memory_format=torch.channels_last)
            for x, shape in zip(maps, self._shapes, strict=True)
        ]
        return Batch(features, mask.reshape(-1, 1, self.size, self.size))


@torch.no_grad()
def _features(
    backbone: nn.Module, pairs: Sequence[Pair], size: int, device: torch.device
) -> Iterator[np.ndarray]:
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        images = torch.stack([image_tensor(open_image(pair.image), size) for pair in chunk]).to(device)
        masks = torch.stack([mask_tensor(read_mask(_mask(pair)), size) for pair in chunk])
        both = [
            [x.flatten(1).half().cpu() for x in (*backbone(turned), mask)]
            for turned, mask in ((images, masks), (images.flip(-1), masks.flip(-1)))
        ]
        yield from torch.stack([torch.cat(parts, 1) for parts in both], 1).numpy()


def _square(pair: Pair, side: int) -> np.ndarray:
    """Return the image and, as a fourth channel, the mask."""
    image = open_image(pair.image).resize((side, side), BILINEAR)
    mask = mask_image(read_mask(_mask(pair))).resize((side, side), BILINEAR)
    return np.dstack([np.asarray(image), np.asarray(mask)])


def _aspect(pair: Pair) -> float:
    width, height = image_size(pair.image)
    return width / height


def _mask(pair: Pair) -> Path:
    if pair.mask is None:
        raise ValueError(f"{pair.image} has no mask to train on")
    return pair.mask


def _digest(pairs: Sequence[Pair], *more: object) -> str:
    """Return a digest of every byte of the files, in order."""
    digest = hashlib.sha256(repr(more).encode())
    for pair in pairs:
        for path in (pair.image, _mask(pair)):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]


def _filled(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    rows: Callable[[], Iterator[np.ndarray]],
    report: Report | None,
) -> np.ndarray:
    """Open a file of an array, written first where there is none; several processes may do so at once."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            array = open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
            for index, row in enumerate(rows()):
                array[index] = row
                if report is not None:
                    report(index + 1)
            array.flush()
            del array
    return np.load(path, mmap_mode="r")
