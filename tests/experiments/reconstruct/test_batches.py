from __future__ import annotations

import torch

from invertible_attention.experiments.data import quantize
from invertible_attention.experiments.reconstruct.batches import EpochBatches, evaluation_input, fixed_target

IMAGES = torch.randint(0, 256, (37, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def batches(epoch: int = 0, seed: int = 0) -> EpochBatches:
    return EpochBatches(IMAGES, batch_size=8, seed=seed, epoch=epoch)


def test_every_epoch_is_a_new_permutation() -> None:
    first, second = torch.cat(list(batches(0))), torch.cat(list(batches(1)))
    assert [len(batch) for batch in batches()] == [8, 8, 8, 8, 5]
    assert len(batches()) == 5
    for epoch in (first, second):
        rows = {tuple(row) for row in quantize(epoch).flatten(1).tolist()}
        assert rows == {tuple(row) for row in IMAGES.flatten(1).tolist()}
    assert not torch.equal(quantize(first), quantize(second))


def test_epoch_depends_only_on_seed_and_number() -> None:
    torch.manual_seed(1)
    first = torch.cat(list(batches(3)))
    torch.manual_seed(2)
    assert torch.equal(torch.cat(list(batches(3))), first)
    assert not torch.equal(torch.cat(list(batches(3, seed=1))), first)


def test_noise_is_fresh_every_epoch() -> None:
    whole = EpochBatches(IMAGES[:1], batch_size=1, seed=0, epoch=0)
    again = EpochBatches(IMAGES[:1], batch_size=1, seed=0, epoch=1)
    assert not torch.equal(next(iter(whole)), next(iter(again)))


def test_epoch_resumes_from_its_state() -> None:
    interrupted, whole = batches(2), list(batches(2))
    iterator = iter(interrupted)
    seen = [next(iterator) for _ in range(3)]
    resumed = batches(2)
    resumed.load_state_dict(interrupted.state_dict())
    seen += list(resumed)
    assert torch.equal(torch.cat(seen), torch.cat(whole))
    # Only the first pass is shortened.
    assert len(list(resumed)) == 5


def test_target_is_fixed_with_the_squeezed_shape() -> None:
    target = fixed_target(64, (32, 32), seed=0)
    assert target.shape == (64, 12, 16, 16)
    assert torch.equal(target, fixed_target(64, (32, 32), seed=0))
    assert abs(target.mean().item()) < 0.01
    assert abs(target.std().item() - 1) < 0.01
    assert fixed_target(1, (218, 178), seed=0).shape == (1, 12, 109, 89)


def test_test_images_have_fixed_noise() -> None:
    x = evaluation_input(IMAGES, seed=0)
    assert torch.equal(x, evaluation_input(IMAGES, seed=0))
    assert torch.equal(quantize(x), IMAGES)
