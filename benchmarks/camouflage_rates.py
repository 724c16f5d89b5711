"""Claim: batches of detection images come faster from a cache than from files, and training steps from features.

The reference decodes both files of every image and changes them with Pillow at full size at every step, as the command
did before it had a cache. Rates are per second of CPU time of one thread, so that other programs do not matter.

    python benchmarks/camouflage_rates.py --data camo/ --output rates.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from invertible_attention.experiments.camouflage.cell import Cell, build_network
from invertible_attention.experiments.camouflage.configuration import Configuration
from invertible_attention.experiments.camouflage.data import (
    Batch,
    CachedFeatures,
    CachedImages,
    Pair,
    generate_data,
    open_data,
    read_mask,
)
from invertible_attention.experiments.camouflage.data.augmentation import (
    CROP,
    JITTER,
    ROTATION,
    ROTATION_PROBABILITY,
    image_tensor,
    mask_image,
    mask_tensor,
)
from invertible_attention.experiments.data import open_image
from invertible_attention.experiments.files import write_json
from invertible_attention.experiments.metadata import run_metadata

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, ImageEnhance.Sharpness)
CPU = torch.device("cpu")


def from_files(pair: Pair, size: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    image, mask = open_image(pair.image), mask_image(read_mask(pair.mask))
    if random.random() < 0.5:
        image, mask = (x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for x in (image, mask))
    box = [0, 0, 0, 0]
    for axis, side in enumerate(image.size):
        length = side - int(random.integers(int(side * CROP) + 1))
        box[axis] = int(random.integers(side - length + 1))
        box[axis + 2] = box[axis] + length
    image, mask = image.crop(tuple(box)), mask.crop(tuple(box))
    if random.random() < ROTATION_PROBABILITY:
        angle = random.uniform(-ROTATION, ROTATION)
        image, mask = image.rotate(angle, Image.Resampling.BICUBIC), mask.rotate(angle)
    for enhance, (low, high) in zip(ENHANCERS, JITTER, strict=True):
        image = enhance(image).enhance(random.uniform(low, high))
    return image_tensor(image, size), mask_tensor(np.asarray(mask) > 127, size)


def rate(work: Callable[[int], object], repeats: int) -> float:
    """Return how often ``work`` is done per second of CPU time, excluding the first time."""
    work(0)
    seconds = []
    for number in range(1, repeats + 1):
        start = time.process_time()
        work(number)
        seconds.append(time.process_time() - start)
    return 1 / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a dataset; generated images by default")
    parser.add_argument("--backbone", default="efficientnet-lite2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=48, help="training images that are used")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    configuration = Configuration(backbone=given.backbone, size=given.size, batch_size=given.batch_size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = given.data
        if root is None:
            root = folder / "generated"
            generate_data(root, train=given.images, test=1, size=max(given.size, 384))
        pairs = open_data([root]).train_pairs[: given.images]
        rows = measure(pairs, configuration, folder, given.repeats)
    reference = {"loader": rows["loader: files"], "step": rows["step: files, whole network"]}
    table = [
        {"what": what, "per_second": value, "ratio": value / reference[what.partition(":")[0]]}
        for what, value in rows.items()
    ]
    for row in table:
        print(f"{row['what']:45} {row['per_second']:8.2f} a second {row['ratio']:8.2f} times")
    if given.output is not None:
        settings = {name: value for name, value in vars(given).items() if name not in ("output", "data")}
        head = {"schema": "invertible-attention/camouflage-rates/1", "settings": settings}
        write_json(given.output, head | {"threads": 1, "rows": table, "run": run_metadata()})
        print(json.dumps(settings))


def measure(
    pairs: tuple[Pair, ...], configuration: Configuration, folder: Path, repeats: int
) -> dict[str, float]:
    size, count = configuration.size, configuration.batch_size
    whole = build_network(Cell("none", 0), configuration).to(memory_format=torch.channels_last).train()
    frozen = build_network(Cell("none", 0), replace(configuration, freeze_backbone=True))
    frozen = frozen.to(memory_format=torch.channels_last).train()
    images = CachedImages(pairs, size=size, folder=folder, workers=1)
    features = CachedFeatures(frozen.backbone, pairs, size=size, folder=folder, device=CPU)

    def chosen(number: int) -> tuple[list[int], list[np.random.Generator]]:
        indices = [(number * count + i) % len(pairs) for i in range(count)]
        return indices, [np.random.default_rng([number, i]) for i in indices]

    def files(number: int) -> Batch:
        indices, random = chosen(number)
        made = [from_files(pairs[i], size, own) for i, own in zip(indices, random, strict=True)]
        return Batch(torch.stack([x for x, _ in made]), torch.stack([y for _, y in made]))

    def step(make: Callable[[int], Batch], network: torch.nn.Module, low: bool) -> Callable[[int], None]:
        optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-4)

        def work(number: int) -> None:
            batch = make(number)
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                maps = network.backbone(batch.image) if isinstance(batch.image, torch.Tensor) else batch.image
                logits = network.decode(maps, batch.mask.shape[-2:]).float()
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.mask).backward()
            optimizer.step()

        return work

    def cached(number: int) -> Batch:
        return images.batch(*chosen(number), CPU)

    def from_features(number: int) -> Batch:
        return features.batch(*chosen(number), CPU)

    rows: dict[str, float] = {}
    for what, make in (("files", files), ("cached images", cached), ("cached features", from_features)):
        rows[f"loader: {what}"] = rate(make, repeats)
    rows["step: files, whole network"] = rate(step(files, whole, False), repeats)
    rows["step: cached images, whole network"] = rate(step(cached, whole, False), repeats)
    rows["step: cached images, whole network, bf16"] = rate(step(cached, whole, True), repeats)
    rows["step: cached features, frozen backbone"] = rate(step(from_features, frozen, False), repeats)
    rows["step: cached features, frozen backbone, bf16"] = rate(step(from_features, frozen, True), repeats)
    return rows


if __name__ == "__main__":
    main()
