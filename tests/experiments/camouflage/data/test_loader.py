from __future__ import annotations

import numpy as np
import pytest
import torch

from invertible_attention.experiments.camouflage.data import CachedImages, EpochBatches, open_data


@pytest.fixture
def images(dataset, tmp_path):
    return CachedImages(open_data([dataset]).train_pairs, size=16, folder=tmp_path / "cache")


def _batches(images, **options) -> list[torch.Tensor]:
    settings = {"batch_size": 2, "seed": 0, "epoch": 0} | options
    return [batch.image for batch in EpochBatches(images, **settings)]


def test_every_pair_is_seen_once_per_epoch(images) -> None:
    loader = EpochBatches(images, batch_size=2, seed=0, epoch=0)
    seen = sorted(index for batch in loader._batches for index in batch)
    assert seen == list(range(6))
    assert len(loader) == 3


def test_epochs_and_seeds_differ_and_repeat(images) -> None:
    first = _batches(images)
    assert all(torch.equal(a, b) for a, b in zip(first, _batches(images), strict=True))
    assert not torch.equal(first[0], _batches(images, epoch=1)[0])
    assert not torch.equal(first[0], _batches(images, seed=1)[0])


def test_global_random_state_is_neither_used_nor_changed(images) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state()
    first = _batches(images)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first[0], _batches(images)[0])


def test_resumed_epoch_continues_where_it_stopped(images) -> None:
    whole = _batches(images)
    loader = EpochBatches(images, batch_size=2, seed=0, epoch=0)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    resumed = EpochBatches(images, batch_size=2, seed=0, epoch=0)
    resumed.load_state_dict(state)
    rest = [batch.image for batch in resumed]
    assert len(rest) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], rest, strict=True))


def test_state_after_the_last_batch_starts_a_new_epoch(images) -> None:
    loader = EpochBatches(images, batch_size=2, seed=0, epoch=0)
    list(loader)
    fresh = EpochBatches(images, batch_size=2, seed=0, epoch=1)
    fresh.load_state_dict(loader.state_dict())
    assert len(list(fresh)) == 3


def test_processes_split_the_same_batches(images) -> None:
    whole = _batches(images)
    shares = [_batches(images, rank=rank, processes=2) for rank in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert torch.equal(batch, torch.cat([first, second]))


def test_indivisible_batch_size_is_refused(images) -> None:
    with pytest.raises(ValueError, match="a batch of 2 cannot be shared evenly by 3"):
        EpochBatches(images, batch_size=2, seed=0, epoch=0, processes=3)


def test_incomplete_last_batch_is_skipped_unless_it_is_the_only_one(images) -> None:
    assert [len(batch) for batch in _batches(images, batch_size=4)] == [4]
    assert [len(batch) for batch in _batches(images, batch_size=10)] == [6]
    assert [len(batch) for batch in _batches(images, batch_size=10, processes=2, rank=1)] == [3]
