from __future__ import annotations

import json

import pytest

from invertible_attention.experiments.camouflage.configuration import Configuration


def test_defaults_are_the_papers() -> None:
    c = Configuration.choose(generated=False)
    assert (c.backbone, c.size, c.batch_size, c.epochs, c.learning_rate, c.schedule) == (
        "resnet50",
        352,
        6,
        30,
        2.5e-5,
        "constant",
    )
    assert c.levels == (1, 2, 3, 4)
    assert not c.generated


def test_images_are_generated_without_data() -> None:
    c = Configuration.choose(generated=True)
    assert c.generated
    assert c.backbone == "tiny"


def test_given_values_are_kept() -> None:
    c = Configuration.choose(generated=False, quick=True, size=64)
    assert (c.size, c.backbone, c.train_images) == (64, "tiny", None)


def test_json_round_trip() -> None:
    c = Configuration.choose(generated=True, levels=(3, 2, 2), gradient_clip=0.5)
    assert c.levels == (2, 3)
    assert Configuration.from_json(json.loads(json.dumps(c.to_json()))) == c


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("levels", ()),
        ("levels", (5,)),
        ("batch_size", 0),
        ("epochs", 0),
        ("size", 47),
        ("heads", 5),
        ("coefficient", 1.0),
        ("learning_rate", 0.0),
        ("schedule", "linear"),
        ("average", 1.0),
        ("gradient_clip", 0.0),
        ("audited_images", 0),
    ],
)
def test_out_of_range_values_are_refused(name, value) -> None:
    with pytest.raises(ValueError, match=name):
        Configuration(**{name: value})
