from __future__ import annotations

import pytest

pytest.importorskip("cyclopts")
pytest.importorskip("lightning")

from invertible_attention.cli.application import build
from invertible_attention.cli.options import Spread
from invertible_attention.experiments.camouflage.models import EARLIER, MODELS, STUDY
from invertible_attention.experiments.density.variants import FAIR_STUDY
from invertible_attention.experiments.errors import UsageError


def test_batch_size_must_divide_evenly() -> None:
    parallel = Spread(2, 2).parallel(batch_size=4, precision="bf16-mixed")
    assert (parallel.processes, parallel.precision) == (4, "bf16-mixed")
    with pytest.raises(UsageError, match="--batch-size 4 cannot be shared evenly by 3 devices"):
        Spread(3).parallel(batch_size=4, precision="32-true")


def test_names_of_earlier_versions_are_read() -> None:
    rows = ["none", "dot_product/certified", "gaussian/relaxed,gaussian", "inv-embedded-gaussian", "base"]
    _, bound, _ = build().parse_args(["camouflage", "study", "--models", *rows], exit_on_error=False)
    expected = ("gaussian/relaxed", "gaussian/ordinary", "embedded_gaussian/relaxed", "none")
    assert bound.arguments["models"] == (*rows[:2], *expected)
    _, bound, _ = build().parse_args(["camouflage", "train", "--model", "certified-dot-product"])
    assert bound.arguments["model"] == "dot_product/certified"


def test_rows_are_called_as_in_density_studies() -> None:
    assert set(FAIR_STUDY) | set(STUDY) <= set(MODELS)
    assert set(EARLIER.values()) == set(MODELS)
