from __future__ import annotations

from itertools import chain

import pytest
import torch

from invertible_attention.experiments.density.batches import TrainingBatches, augment, step_seed

IMAGES = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 8, 8)


def batches(**given: object) -> TrainingBatches:
    settings = {"batch_size": 3, "steps": 7, "seed": 5, "augmentation": "none"} | given
    return TrainingBatches(IMAGES, **settings)  # pyright: ignore[reportArgumentType]


def labels(source: TrainingBatches) -> list[list[int]]:
    return [batch[:, 0, 0, 0].tolist() for batch in source]


def test_every_epoch_is_a_new_permutation() -> None:
    found = labels(batches())
    assert len(found) == 7
    epochs = [list(chain(*found[i : i + 3])) for i in (0, 3)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert labels(batches()) == found
    assert labels(batches(seed=6)) != found


@pytest.mark.parametrize("stop", [0, 1, 3, 5, 7])
def test_resumes_from_a_checkpoint(stop: int) -> None:
    expected = labels(batches())
    source = batches()
    seen = [batch for _, batch in zip(range(stop), labels_of(source), strict=False)]
    state = source.state_dict() if stop else {"next": 0}
    resumed = batches()
    resumed.load_state_dict(state)
    assert seen + labels(resumed) == expected
    assert len(resumed) == 7


def labels_of(source: TrainingBatches):
    for batch in source:
        yield batch[:, 0, 0, 0].tolist()


def test_processes_split_every_batch() -> None:
    whole = labels(batches(batch_size=4))
    shares = [labels(batches(batch_size=4, rank=rank, processes=2)) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(chain(*parts)) == sorted(batch)
        assert [len(part) for part in parts] == [2, 2]


def test_flips_mirror_about_half_of_the_images() -> None:
    images = torch.arange(8, dtype=torch.uint8).expand(1000, 1, 8, 8)
    flipped = augment(images, "flip", torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    same = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 400 < mirrored.sum() < 600


def test_crops_shift_by_at_most_four_black_pixels() -> None:
    image = torch.zeros(1, 2, 12, 12, dtype=torch.uint8)
    image[0, 0, 6, 6], image[0, 1, 6, 6] = 1, 2
    moved = augment(image.expand(500, -1, -1, -1), "crop-flip", torch.Generator().manual_seed(0))
    assert moved.shape == (500, 2, 12, 12)
    assert (moved.flatten(2).sum(-1) == torch.tensor([1, 2])).all()
    assert torch.equal(moved[:, 1], 2 * moved[:, 0])
    _, rows, columns = moved[:, 0].nonzero(as_tuple=True)
    assert (rows.min(), rows.max()) == (2, 10)
    # column 6 or its mirror image 5, moved
    assert (columns.min(), columns.max()) == (1, 10)


def test_step_seeds_are_unique() -> None:
    seeds = {
        step_seed(seed, purpose, step, rank)
        for seed in range(3)
        for purpose in range(4)
        for step in range(50)
        for rank in range(3)
    }
    assert len(seeds) == 3 * 4 * 50 * 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch_size": 11}, "batch_size 11 is larger than the 10 training images"),
        ({"batch_size": 3, "processes": 2}, "divisible by 2 processes, got 3"),
    ],
)
def test_impossible_batch_sizes_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        batches(**given)
