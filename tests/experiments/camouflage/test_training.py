from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")

from invertible_attention.experiments.camouflage.cell import Cell, build_network
from invertible_attention.experiments.camouflage.configuration import Configuration
from invertible_attention.experiments.camouflage.data import open_data, read_mask
from invertible_attention.experiments.camouflage.data.augmentation import image_tensor, mask_tensor
from invertible_attention.experiments.camouflage.training import (
    DivergedError,
    learning_rate_factor,
    train,
    training_images,
)
from invertible_attention.experiments.data import open_image

SMALL = Configuration(
    backbone="tiny", size=48, batch_size=2, epochs=3, learning_rate=1e-3, schedule="cosine", average=0.9
)


CPU = torch.device("cpu")


def _fit(network, dataset, folder, configuration=SMALL, **options):
    pairs = open_data([dataset]).train_pairs
    images = training_images(network, pairs, configuration, folder=folder / "cache", device=CPU)
    return train(network, images, configuration, seed=0, device=CPU, folder=folder, **options)[0]


def _train(dataset, folder, model="concatenation/certified", configuration=SMALL, report=None):
    network = build_network(Cell(model, 0), configuration)
    losses = _fit(network, dataset, folder, configuration, report=report)
    return network.state_dict(), losses


def test_training_lowers_the_loss(dataset, tmp_path) -> None:
    _, losses = _train(dataset, tmp_path, configuration=replace(SMALL, epochs=25))
    assert len(losses) == 75
    assert sum(losses[-6:]) < 0.6 * sum(losses[:6])


@pytest.mark.parametrize("stop", [4, 6, 8])
def test_interrupted_run_gives_the_same_weights(dataset, tmp_path, stop) -> None:
    expected, losses = _train(dataset, tmp_path / "whole")

    def interrupt(step: int, loss: float) -> None:
        if step == stop:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        _train(dataset, tmp_path / "parts", report=interrupt)
    steps: list[int] = []
    found, resumed = _train(dataset, tmp_path / "parts", report=lambda step, loss: steps.append(step))
    # Three steps an epoch, a checkpoint after each.
    assert steps[0] == (stop - 1) // 3 * 3 + 1
    assert resumed == losses
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_evaluation_uses_averaged_weights(dataset, tmp_path) -> None:
    last, losses = _train(dataset, tmp_path / "a", configuration=replace(SMALL, average=0.0))
    average, same = _train(dataset, tmp_path / "b")
    assert same == losses
    assert any(not torch.equal(last[key], average[key]) for key in last)


def test_rows_train_on_the_same_image_order(dataset, tmp_path) -> None:
    # Base and attention that is the identity are the same network.
    network = build_network(Cell("concatenation/ordinary", 0), SMALL)
    base = build_network(Cell("none", 0), SMALL)
    for module in network.attention:
        torch.nn.init.zeros_(module.branch.out_weight)
        module.branch.requires_grad_(False)
    losses = []
    for name, candidate in (("none", base), ("concatenation/ordinary", network)):
        losses.append(_fit(candidate, dataset, tmp_path / name))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_batch_statistics_update_for_a_backbone_loaded_in_evaluation_mode(dataset, tmp_path) -> None:
    network = build_network(Cell("none", 0), SMALL).eval()
    before = {name: value.clone() for name, value in network.named_buffers() if name.endswith("running_mean")}
    assert before
    _fit(network, dataset, tmp_path)
    after = dict(network.named_buffers())
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    assert not any(module.training for module in network.modules())


def test_nan_loss_is_reported(dataset, tmp_path) -> None:
    network = build_network(Cell("none", 0), SMALL)
    torch.nn.init.constant_(network.predict.branches[0].bias, float("nan"))
    with pytest.raises(DivergedError, match=r"loss is nan at step 1: lower --learning-rate"):
        _fit(network, dataset, tmp_path)


def test_damaged_checkpoint_error_names_the_file(dataset, tmp_path) -> None:
    from invertible_attention.experiments.errors import ExperimentError

    (tmp_path / "training.ckpt").write_bytes(b"?")
    with pytest.raises(ExperimentError, match=r"training\.ckpt is damaged"):
        _train(dataset, tmp_path)


def test_schedules() -> None:
    assert learning_rate_factor("constant", 10)(7) == 1.0
    factor = learning_rate_factor("cosine", 200)
    values = [factor(step) for step in range(200)]
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[-1] < 1e-3
    assert learning_rate_factor("cosine", 1)(0) == 1.0


def test_half_precision_trains(dataset, tmp_path) -> None:
    from invertible_attention.experiments.training import Parallel

    configuration = replace(SMALL, precision="bf16-mixed")
    network = build_network(Cell("concatenation/relaxed", 0), configuration)
    losses = _fit(network, dataset, tmp_path, configuration, parallel=Parallel(precision="bf16-mixed"))
    assert losses[-1] < losses[0]
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_frozen_backbone_is_unchanged_while_the_rest_trains(dataset, tmp_path) -> None:
    configuration = replace(SMALL, freeze_backbone=True, average=0.0)
    network = build_network(Cell("concatenation/certified", 0), configuration)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    _fit(network, dataset, tmp_path, configuration)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("backbone.") for name in changed)
    assert {name for name, _ in network.named_parameters() if not name.startswith("backbone.")} <= changed


def test_cached_features_train_identically(dataset, tmp_path) -> None:
    """The first loss is that of the network on the same images, up to the cache's half precision."""
    configuration = replace(SMALL, freeze_backbone=True, batch_size=6)
    network = build_network(Cell("concatenation/ordinary", 0), configuration)
    pairs = open_data([dataset]).train_pairs
    expected = []
    for pair in pairs:
        image = image_tensor(open_image(pair.image), 48)[None]
        mask = mask_tensor(read_mask(pair.mask), 48)[None]
        losses = [
            torch.nn.functional.binary_cross_entropy_with_logits(network(image.flip(k)), mask.flip(k)).item()
            for k in ([], [-1])
        ]
        expected.append(losses)
    first = _fit(network, dataset, tmp_path, configuration)[0]
    lowest, highest = (sum(choose(each) for each in expected) / 6 for choose in (min, max))
    assert lowest - 1e-4 <= first <= highest + 1e-4


def test_interrupted_run_on_features_gives_the_same_weights(dataset, tmp_path) -> None:
    configuration = replace(SMALL, freeze_backbone=True)
    expected, _ = _train(dataset, tmp_path / "whole", configuration=configuration)

    def interrupt(step: int, loss: float) -> None:
        if step == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        _train(dataset, tmp_path / "parts", configuration=configuration, report=interrupt)
    found, _ = _train(dataset, tmp_path / "parts", configuration=configuration)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
