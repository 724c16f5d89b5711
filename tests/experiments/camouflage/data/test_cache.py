"""Caches match the image files and are never read for other files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from invertible_attention.experiments.camouflage.data import (
    CachedFeatures,
    CachedImages,
    cache,
    open_data,
    read_mask,
)
from invertible_attention.experiments.camouflage.data.augmentation import image_tensor, mask_tensor
from invertible_attention.experiments.camouflage.network import random_backbone
from invertible_attention.experiments.data import open_image

CPU = torch.device("cpu")


class Never:
    """A generator that never flips."""

    def random(self) -> float:
        return 0.9


class Always:
    """A generator that always flips."""

    def random(self) -> float:
        return 0.1


@pytest.fixture
def pairs(dataset):
    return open_data([dataset]).train_pairs


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return random_backbone("tiny").eval()


def _features(backbone, pairs, folder, **options):
    return CachedFeatures(backbone, pairs, size=64, folder=folder, device=CPU, **options)


def test_cached_images_match_the_resized_files(pairs, tmp_path) -> None:
    images = CachedImages(pairs, size=22, folder=tmp_path)
    for index, pair in enumerate(pairs):
        expected = np.asarray(open_image(pair.image).resize((24, 24), Image.Resampling.BILINEAR))
        assert np.array_equal(images._pixels[index, ..., :3], expected)
        target = mask_tensor(read_mask(pair.mask), 24)[0].numpy()
        np.testing.assert_allclose(images._pixels[index, ..., 3] / 255, target, atol=1e-6)
        assert images._aspect[index] == pytest.approx(40 / 30)


def test_batches_have_the_networks_size_and_dtype(pairs, tmp_path) -> None:
    images = CachedImages(pairs, size=22, folder=tmp_path)
    batch = images.batch([3, 1], [np.random.default_rng(i) for i in range(2)], CPU)
    assert batch.image.shape == (2, 3, 22, 22)
    assert batch.mask.shape == (2, 1, 22, 22)
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= batch.mask.min() <= batch.mask.max() <= 1


def test_features_match_the_backbone_on_images_and_their_mirrors(pairs, backbone, tmp_path) -> None:
    features = _features(backbone, pairs, tmp_path)
    for random, turn in ((Never(), []), (Always(), [-1])):
        found = features.batch([4, 0], [random, random], CPU)
        images = torch.stack([image_tensor(open_image(pairs[i].image), 64) for i in (4, 0)]).flip(turn)
        with torch.no_grad():
            expected = backbone(images)
        assert len(found.image) == 4
        for a, b in zip(found.image, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-2, rtol=2e-3)
        masks = torch.stack([mask_tensor(read_mask(pairs[i].mask), 64) for i in (4, 0)]).flip(turn)
        torch.testing.assert_close(found.mask, masks, atol=1e-3, rtol=0)


def test_a_cache_is_filled_once(pairs, backbone, tmp_path, monkeypatch) -> None:
    seen: list[int] = []
    CachedImages(pairs, size=22, folder=tmp_path, report=seen.append)
    _features(backbone, pairs, tmp_path, report=seen.append)
    assert seen == 2 * list(range(1, 7))
    monkeypatch.delattr(cache, "open_image")
    CachedImages(pairs, size=22, folder=tmp_path, report=seen.append)
    _features(backbone, pairs, tmp_path, report=seen.append)
    assert len(seen) == 12


def test_stale_cache_is_not_read(pairs, backbone, tmp_path) -> None:
    """A changed pixel, order, size or weight makes a new cache."""
    CachedImages(pairs, size=22, folder=tmp_path)
    CachedImages(pairs, size=23, folder=tmp_path)
    CachedImages(pairs[::-1], size=22, folder=tmp_path)
    before = _features(backbone, pairs, tmp_path).batch([0], [Never()], CPU)
    with torch.no_grad():
        next(backbone.parameters()).mul_(2)
    after = _features(backbone, pairs, tmp_path).batch([0], [Never()], CPU)
    assert not torch.equal(before.image[0], after.image[0])
    assert len(list(tmp_path.glob("images-*"))) == 3
    assert len(list(tmp_path.glob("features-*"))) == 2
    first = pairs[0].image
    size = first.stat().st_size
    Image.new("RGB", (40, 30)).save(first, quality=95)
    first.write_bytes(first.read_bytes().ljust(size, b"\0"))  # as long as it was
    images = CachedImages(pairs, size=22, folder=tmp_path)
    assert not images._pixels[0, ..., :3].any()


def test_incomplete_cache_is_not_read(pairs, tmp_path) -> None:
    def stop(done: int) -> None:
        if done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        CachedImages(pairs, size=22, folder=tmp_path / "cache", report=stop)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_number_of_workers_does_not_change_the_images(pairs, tmp_path, workers) -> None:
    several = CachedImages(pairs, size=22, folder=tmp_path / str(workers), workers=workers)
    assert np.array_equal(several._pixels, CachedImages(pairs, size=22, folder=tmp_path / "0")._pixels)
