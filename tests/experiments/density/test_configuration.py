from __future__ import annotations

import json

import pytest

from invertible_attention.experiments.density.configuration import Configuration, parse_places
from invertible_attention.experiments.density.variants import parse_variant


def test_defaults_are_the_paper_s_for_cifar10() -> None:
    paper = Configuration()
    assert (paper.dataset, paper.size, paper.train_images, paper.test_images) == (
        "cifar10",
        (32, 32),
        50_000,
        10_000,
    )
    assert (paper.blocks, paper.hidden_channels) == ((16, 16, 16), 512)
    assert (paper.batch_size, paper.learning_rate, paper.augmentation) == (64, 0.003, "crop-flip")
    # 200 epochs
    assert paper.steps == 200 * 50_000 // 64
    assert paper.attention_after == ("0:-1",)
    # but trained without bias
    assert paper.estimator == "roulette"


def test_digits_is_the_default_dataset() -> None:
    chosen = Configuration.choose()
    assert (chosen.dataset, chosen.size, chosen.attention) == ("digits", (8, 8), "concatenation")
    assert chosen.train_images + chosen.test_images == 1797
    quick = Configuration.choose(quick=True)
    assert quick.steps < chosen.steps
    assert Configuration.choose(quick=True, steps=77).steps == 77
    assert Configuration.choose(model="maf").attention == "none"
    assert Configuration.choose(minutes=1.0).decay is False


def test_warmup_and_averaging_scale_with_short_runs() -> None:
    short = Configuration.choose(dataset="cifar10", steps=1000)
    assert (short.warmup, short.average, short.evaluate_every) == (50, 0.99, 200)
    paper, whole = Configuration(), Configuration.choose(dataset="cifar10", steps=156_250)
    assert (whole.warmup, whole.average, whole.evaluate_every) == (780, paper.average, 2000)
    assert Configuration.choose(dataset="cifar10", steps=1000, evaluate_every=7).evaluate_every == 7


def test_where_time_ends_training_few_steps_warm_up() -> None:
    # Of CIFAR-10's 780 a run of minutes may not take as many in all.
    timed = Configuration.choose(dataset="cifar10", minutes=5.0)
    assert (timed.warmup, timed.average, timed.evaluate_every, timed.decay) == (50, 0.99, 0, False)
    assert timed.steps == Configuration().steps
    short = Configuration.choose(dataset="cifar10", minutes=5.0, steps=200)
    assert (short.warmup, short.average, short.evaluate_every) == (10, 0.95, 0)
    given = Configuration.choose(dataset="cifar10", minutes=5.0, warmup=7, evaluate_every=30)
    assert (given.warmup, given.evaluate_every) == (7, 30)
    assert Configuration.choose(quick=True, minutes=0.5).warmup == 20


def test_json_round_trip() -> None:
    configuration = Configuration.choose(blocks=[1, 2], attention_after=["0:0", "1:-1"], model="i-resnet")
    again = Configuration.from_json(json.loads(json.dumps(configuration.to_json())))
    assert again == configuration
    assert type(again.model) is str


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"attention": "none"}, "i-resnet"),
        ({}, "concatenation/certified"),
        (
            {"heads": 4, "position_prior": True, "attention_after": ("0:0", "1:-1"), "constraint": "relaxed"},
            "concatenation/relaxed/heads=4/position/after=0:0+1:-1",
        ),
        ({"model": "residual-flow", "normalization": "row"}, "residual-flow/concatenation/certified/row"),
        ({"attention": "embedded_gaussian", "constraint": "triangular", "heads": 4}, "triangular"),
        ({"constraint": "triangular"}, "concatenation/triangular/heads=1"),
    ],
)
def test_name_is_the_variant_that_builds_the_model(given: dict, name: str) -> None:
    configuration = Configuration.choose(**given)
    assert configuration.name == name
    assert parse_variant(name, Configuration.choose(attention="none")) == configuration


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dataset": "mnist"}, "dataset must be one of .* got 'mnist'"),
        ({"model": "vae"}, "got 'vae'"),
        ({"attention": "linear"}, "got 'linear'"),
        ({"estimator": "hope"}, "got 'hope'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"coefficient": 1.0}, "coefficient must be between 0 and 1, got 1.0"),
        ({"average": 1.0}, "average must be between 0 and 1, got 1.0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"minutes": -1.0}, "minutes must be positive, got -1.0"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"blocks": ()}, r"blocks must be positive numbers, got \(\)"),
        ({"attention_after": ("last",)}, "scale:block such as 0:-1, got 'last'"),
        ({"model": "maf", "attention": "gaussian"}, "residual models only, got model maf"),
    ],
)
def test_out_of_range_settings_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Configuration(**given)


def test_attention_placements() -> None:
    assert parse_places(("0:-1", "2:3")) == ((0, -1), (2, 3))
