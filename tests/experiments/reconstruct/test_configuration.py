from __future__ import annotations

import json
import re
from typing import Any

import pytest

from invertible_attention.experiments.reconstruct.configuration import Cell, Configuration


def test_the_defaults_are_the_papers_protocol() -> None:
    protocol = Configuration.choose(dataset="cifar10")
    assert (protocol.train_images, protocol.test_images, protocol.repeats) == (1000, 1000, 3)
    assert (protocol.epochs, protocol.batch_size, protocol.learning_rate) == (100, 64, 0.003)
    assert protocol.size == (32, 32)
    assert protocol.coefficient == 0.9


def test_full_size_images_train_one_epoch_with_batch_size_one() -> None:
    protocol = Configuration.choose(dataset="celeba", size=(218, 178))
    assert (protocol.epochs, protocol.batch_size) == (1, 1)
    assert Configuration.choose(size=(218, 178), batch_size=64).batch_size == 64


def test_quick_shrinks_only_settings_not_given() -> None:
    quick = Configuration.choose(quick=True)
    assert quick.train_images < 1000
    assert quick.repeats == 1
    assert quick.epochs < 100
    assert Configuration.choose(quick=True, epochs=7).epochs == 7
    assert Configuration.choose(quick=True, size=(218, 178)).epochs == 1


def test_lists_of_earlier_versions_are_combined_and_released_has_one_normalization() -> None:
    lists = {"normalizations": ("column", "row"), "responses": ("gaussian", "dot_product")}
    configuration = Configuration.choose(repeats=2, **lists)
    cells = list(configuration.cells())
    assert len(cells) == len(set(cells)) == 2 * 2 * (2 + 2 + 1)
    assert {cell.normalization for cell in cells if cell.constraint == "released"} == {"row"}
    assert len({cell.folder for cell in cells}) == len(cells)
    assert cells[0] == Cell("gaussian", "certified", "column", 1)
    assert [configuration.seed_of(repeat) for repeat in (1, 2)] == [0, 1]


def test_duplicate_values_count_once() -> None:
    twice = ("gaussian/certified", "gaussian/certified")
    assert Configuration(variants=twice).variants == ("gaussian/certified",)


def test_lists_given_leave_the_others_as_they_are() -> None:
    own = Configuration.choose(dataset="folder", own_size=True, responses=("gaussian",))
    assert own.variants == ("gaussian/certified",)
    assert len(Configuration.choose(constraints=("certified",)).variants) == 4


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("train_images", -1),
        ("repeats", 0),
        ("batch_size", 0),
        ("micro_batch", 0),
        ("coefficient", 1.0),
        ("coefficient", 0.0),
        ("coefficient", float("nan")),
        ("learning_rate", 0.0),
        ("tolerance", -1e-6),
        ("size", (33, 32)),
        ("size", (10, 32)),
    ],
)
def test_out_of_range_values_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{setting} must be .*got {re.escape(str(value))}"):
        Configuration(**{setting: value})


def test_json_round_trip() -> None:
    configuration = Configuration.choose(dataset="svhn", size=(218, 178), title="x")
    values = json.loads(json.dumps(configuration.to_json()))
    assert Configuration(**values) == configuration


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"micro_batch": 0}, "micro_batch must be at least 1, got 0"),
        ({"variants": ()}, "variants must be RESPONSE/CONSTRAINT"),
        ({"variants": ("gaussian/ordinary",)}, "variants must be RESPONSE/CONSTRAINT"),
        ({"variants": ("gaussian/certified/heads=2",)}, "variants must be RESPONSE/CONSTRAINT"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
)
def test_out_of_range_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Configuration(**settings)
