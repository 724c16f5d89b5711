from __future__ import annotations

import pytest

from invertible_attention.experiments.density.configuration import Configuration
from invertible_attention.experiments.density.variants import (
    FAIR_STUDY,
    ORDER_STUDY,
    PLACES_AND_HEADS,
    TABLE_3,
    parse_variant,
)
from invertible_attention.experiments.variants import slug

BASE = Configuration.choose(attention="none")


@pytest.mark.parametrize("variants", [FAIR_STUDY, ORDER_STUDY, PLACES_AND_HEADS, TABLE_3])
def test_variants_build_different_models(variants: tuple[str, ...]) -> None:
    assert len({parse_variant(text, BASE) for text in variants}) == len(variants)
    folders = {slug(text, seed) for text in variants for seed in (0, 1)}
    assert len(folders) == 2 * len(variants)
    assert all(set(folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789-=") for folder in folders)


def test_each_word_changes_only_its_setting() -> None:
    variant = parse_variant("gaussian/relaxed/row/heads=2/position/learning_rate=0.01/after=0:0+1:-1", BASE)
    assert (variant.attention, variant.constraint, variant.heads) == ("gaussian", "relaxed", 2)
    assert (variant.position_prior, variant.learning_rate) == (True, 0.01)
    assert (variant.attention_after, variant.normalization) == (("0:0", "1:-1"), "row")
    assert variant.steps == BASE.steps
    assert parse_variant("none", BASE) == BASE
    assert parse_variant("glow/blocks=4+2", BASE).blocks == (4, 2)
    assert parse_variant("maf", Configuration.choose()).attention == "none"


def test_triangular_alone_means_embedded_gaussian_attention_with_four_heads() -> None:
    variant = parse_variant("triangular/affine", BASE)
    assert (variant.attention, variant.constraint, variant.heads) == ("embedded_gaussian", "triangular", 4)
    assert variant.affine
    other = parse_variant("concatenation/triangular/heads=2/width=24", BASE)
    assert (other.attention, other.heads, other.width, other.affine) == ("concatenation", 2, 24, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gaussian/maf", "got model maf"),
        ("gaussian/ordinary", "constraint must be one of certified, relaxed, triangular, got 'ordinary'"),
        ("gaussian/certified/affine", "only triangular attention scales tokens"),
        ("triangular/position", "without a prior"),
        ("fourier", "word 'fourier', which means nothing"),
        ("gaussian/certified/dot_product", "two words for its response: gaussian and dot_product"),
        ("none/gaussian", "two words for its response"),
        ("glow/realnvp", "gives model twice"),
        ("gaussian/heads=2/heads=4", "gives heads twice"),
        ("gaussian/row/all", "two words for its normalization: row and all"),
        ("none/dataset=svhn", "'dataset' cannot be varied"),
        ("none/heads=two", "heads must be a number, got 'two'"),
        ("glow/blocks=4,4", "blocks must be numbers with \\+ between them, got '4,4'"),
        ("gaussian/heads=0", "heads must be at least 1, got 0"),
        ("gaussian/after=top", "got 'top'"),
    ],
)
def test_unknown_words_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_variant(text, BASE)
