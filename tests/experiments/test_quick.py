"""With --quick a whole study is small: each of its networks trains less than a single quick run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from invertible_attention.cli import main


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def density(base: Any, variants: Any, **running: Any) -> None:
        found.update(base=base, variants=variants, **running)

    def camouflage(models: Any, seeds: Any, configuration: Any, folders: Any, **running: Any) -> None:
        found.update(base=configuration, variants=models, **running)

    monkeypatch.setattr("invertible_attention.experiments.density.study.run_study", density)
    monkeypatch.setattr("invertible_attention.experiments.camouflage.run.run_study", camouflage)
    return found


def test_quick_density_table_trains_for_seconds(asked: dict[str, Any]) -> None:
    assert main(["density", "table", "--quick"]) == 0
    assert len(asked["variants"]) * asked["seeds"] * asked["base"].minutes < 1
    assert main(["density", "table", "--quick", "--minutes", "2"]) == 0
    assert asked["base"].minutes == 2
    assert main(["density", "table"]) == 0
    assert asked["base"].minutes == 3


def test_quick_density_study_has_one_seed_and_few_steps(asked: dict[str, Any]) -> None:
    assert main(["density", "study", "--quick"]) == 0
    assert asked["seeds"] == 1
    assert len(asked["variants"]) * asked["base"].steps <= 500
    assert main(["density", "study", "--quick", "--seeds", "2", "--steps", "77"]) == 0
    assert (asked["seeds"], asked["base"].steps) == (2, 77)
    assert main(["density", "study"]) == 0
    assert (asked["seeds"], asked["base"].steps) == (3, 1500)


def test_quick_camouflage_study_trains_for_few_steps(asked: dict[str, Any], tmp_path: Path) -> None:
    def steps() -> float:
        base = asked["base"]
        return len(asked["variants"]) * base.epochs * (base.train_images or 0) / base.batch_size

    assert main(["camouflage", "study", "--quick"]) == 0
    assert steps() <= 500
    assert main(["camouflage", "study", "--quick", "--epochs", "3"]) == 0
    assert asked["base"].epochs == 3
    assert main(["camouflage", "study", "--quick", "--data", str(tmp_path)]) == 0
    assert asked["base"].train_images is None
