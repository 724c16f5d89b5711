from __future__ import annotations

import pytest

from invertible_attention.experiments.density.configuration import Configuration
from invertible_attention.experiments.density.variants import (
    FAIR_STUDY,
    PLACES_AND_HEADS,
    TABLE_3,
    parse_variant,
    slug,
)

BASE = Configuration.choose(attention="none")


@pytest.mark.parametrize("variants", [FAIR_STUDY, PLACES_AND_HEADS, TABLE_3])
def test_variants_of_a_study_are_different_models(variants: tuple[str, ...]) -> None:
    names = [parse_variant(text, BASE).name for text in variants]
    assert len(set(names)) == len(variants)
    folders = {slug(text, seed, variants) for text in variants for seed in (0, 1)}
    assert len(folders) == 2 * len(variants)
    assert all(set(folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789-=") for folder in folders)


def test_words_change_what_they_name_and_nothing_else() -> None:
    variant = parse_variant("gaussian/relaxed/heads=2/position/learning_rate=0.01/after=0:0+1:-1", BASE)
    assert (variant.attention, variant.constraint, variant.heads) == ("gaussian", "relaxed", 2)
    assert (variant.position_prior, variant.learning_rate) == (True, 0.01)
    assert variant.attention_after == ("0:0", "1:-1")
    assert variant.steps == BASE.steps
    assert parse_variant("none", BASE) == BASE
    assert parse_variant("maf", Configuration.choose()).attention == "none"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fourier", "word 'fourier', which means nothing"),
        ("none/dataset=svhn", "'dataset' cannot be varied"),
        ("none/heads=two", "heads must be a number, got 'two'"),
        ("gaussian/heads=0", "heads must be at least 1, got 0"),
        ("gaussian/after=top", "got 'top'"),
    ],
)
def test_words_that_mean_nothing_are_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_variant(text, BASE)
