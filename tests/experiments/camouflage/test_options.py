from __future__ import annotations

import pytest

pytest.importorskip("cyclopts")
pytest.importorskip("lightning")

from invertible_attention.cli.application import build
from invertible_attention.cli.options import Spread
from invertible_attention.experiments.camouflage.models import MODELS, VARIANTS
from invertible_attention.experiments.density.variants import FAIR_STUDY
from invertible_attention.experiments.errors import UsageError


def test_batch_size_must_divide_evenly() -> None:
    parallel = Spread(2, 2).parallel(batch_size=4, precision="bf16-mixed")
    assert (parallel.processes, parallel.precision) == (4, "bf16-mixed")
    with pytest.raises(UsageError, match="--batch-size 4 cannot be shared evenly by 3 devices"):
        Spread(3).parallel(batch_size=4, precision="32-true")


def test_attention_names_match_density_studies() -> None:
    rows = ["none", "dot_product/certified", "gaussian/relaxed,gaussian/ordinary", "inv-concatenation"]
    _, bound, _ = build().parse_args(["camouflage", "study", "--models", *rows], exit_on_error=False)
    expected = ("base", "certified-dot-product", "inv-gaussian", "gaussian", "inv-concatenation")
    assert bound.arguments["models"] == expected
    _, bound, _ = build().parse_args(["camouflage", "train", "--model", "concatenation/relaxed"])
    assert bound.arguments["model"] == "inv-concatenation"
    constraints = {"certified", "relaxed"}
    for variant in FAIR_STUDY:
        model = MODELS[VARIANTS[variant]]
        assert variant == "none" or f"{model.response}/{model.constraint}" == variant
        assert (model.constraint in constraints) == (variant != "none")
