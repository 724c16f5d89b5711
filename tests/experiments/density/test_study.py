"""A study of densities: extension, failed variants, and folders of an earlier version."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from invertible_attention.experiments.density import study as module
from invertible_attention.experiments.density.configuration import Configuration
from invertible_attention.experiments.density.study import run_study
from invertible_attention.experiments.errors import ExperimentError

from ..conftest import blank_figures

RESULTS = Path(__file__).parents[3] / "results" / "density"
PUBLISHED = list(RESULTS.glob("*/study.json"))

TINY = Configuration.choose(
    quick=True,
    attention="none",
    blocks=(1,),
    hidden_channels=4,
    train_images=32,
    test_images=4,
    batch_size=16,
    steps=2,
    evaluate_every=1,
)


def start(folder: Path, variants: tuple[str, ...], seeds: int = 1, **options: Any) -> dict[str, Any]:
    console = Console(file=io.StringIO())
    results = run_study(
        TINY, variants, seeds=seeds, output=folder, device="cpu", draws=2, console=console, **options
    )
    assert results is not None
    return results


def figures(study: dict[str, Any]) -> dict[tuple[str, int], Any]:
    return {(cell["variant"], cell["seed"]): cell["evaluation"] for cell in study["cells"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, to be copied by what changes it."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    with blank_figures():
        start(folder, ("none", "gaussian/certified"), 2)
    return folder


@pytest.fixture(scope="module")
def whole(finished: Path) -> dict[tuple[str, int], Any]:
    return figures(json.loads((finished / "study.json").read_text()))


@pytest.mark.slow
@pytest.mark.usefixtures("no_rendering")
def test_variants_and_seeds_are_added_to_a_finished_study(
    tmp_path: Path, whole: dict[tuple[str, int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(tmp_path, ("gaussian/certified",))
    assert figures(first) == {key: value for key, value in whole.items() if key == ("gaussian/certified", 0)}
    train, trained = module.train_cell, []

    def counted(configuration: Configuration, *arguments: Any, **options: Any) -> Any:
        trained.append((configuration.attention, configuration.seed))
        return train(configuration, *arguments, **options)

    monkeypatch.setattr(module, "train_cell", counted)
    second = start(tmp_path, ("none",), 2, resume=True)
    assert trained == [("none", 0), ("none", 1)]
    assert (second["variants"], second["seeds"]) == (["gaussian/certified", "none"], 2)
    assert figures(second) == {key: value for key, value in whole.items() if key != ("gaussian/certified", 1)}
    # Differences are paired: only of the shared seed.
    assert len(second["rows"][1]["difference"]["values"]) == 1
    assert len(second["rows"][1]["bits_per_dim"]["values"]) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("no_rendering")
def test_study_continues_from_what_was_published_of_it(
    tmp_path: Path, whole: dict[tuple[str, int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path / "first", ("none",))
    published = tmp_path / "published"
    published.mkdir()
    for name in ("study.json", "figures/curve.png"):
        shutil.copy(tmp_path / "first" / name, published)
    train, trained = module.train_cell, []

    def counted(configuration: Configuration, *arguments: Any, **options: Any) -> Any:
        trained.append((configuration.attention, configuration.seed))
        return train(configuration, *arguments, **options)

    monkeypatch.setattr(module, "train_cell", counted)
    with pytest.raises(ExperimentError, match="holds other files"):
        start(published, ("none",), 2)
    study = start(published, ("none", "gaussian/certified"), 2, resume=True)
    assert trained == [("gaussian", 0), ("none", 1), ("gaussian", 1)]
    assert figures(study) == whole


def test_another_file_of_that_name_is_not_continued(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"schema": "invertible-attention/density-study/0"}')
    with pytest.raises(ExperimentError, match="study.json is no study of densities"):
        start(tmp_path, ("none",), resume=True)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in PUBLISHED))
def test_published_studies_can_be_continued_with_the_same_rows(name: str, tmp_path: Path) -> None:
    known = json.loads((RESULTS / name / "study.json").read_text())
    shutil.copy(RESULTS / name / "study.json", tmp_path)
    module.restore(tmp_path)
    cells = tmp_path.glob("cells/*/result.json")
    finished = {cell.parent.name: json.loads(cell.read_text()) for cell in cells}
    again = module._collect(finished, json.loads((tmp_path / "configuration.json").read_text()))
    assert again["cells"] == known["cells"]
    assert again["rows"] == known["rows"]
    assert all(Configuration.from_json(run["configuration"]).seed == run["seed"] for run in finished.values())


@pytest.mark.slow
@pytest.mark.usefixtures("no_rendering")
def test_failing_variant_does_not_stop_the_others(tmp_path: Path, whole: dict[tuple[str, int], Any]) -> None:
    reason = r"1 of 2 densities failed \(none/train_images=99999, seed 0: .*there are 1797"
    with pytest.raises(ExperimentError, match=reason):
        start(tmp_path, ("none", "none/train_images=99999"))
    study = json.loads((tmp_path / "study.json").read_text())
    assert figures(study) == {("none", 0): whole["none", 0]}


@pytest.mark.slow
@pytest.mark.usefixtures("no_rendering")
def test_study_from_an_earlier_version_resumes(
    tmp_path: Path, finished: Path, whole: dict[tuple[str, int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    names = ("none-0", "gaussian-certified-0", "none-1", "gaussian-certified-1")
    for number, name in zip((0, 1, 0, 1), names, strict=True):
        new, old = tmp_path / "cells" / name, tmp_path / "cells" / f"{number:02d}-{name}"
        (old / "run").mkdir(parents=True)
        (new / "data.json").unlink()
        for entry in list(new.iterdir()):
            entry.rename(old / "run" / entry.name)
        (old / "run" / "result.json").rename(old / "results.json")
        (old / "cell.json").write_bytes((old / "run" / "configuration.json").read_bytes())
        new.rmdir()
    monkeypatch.setattr(module, "train_cell", pytest.fail)
    again = start(tmp_path, ("none", "gaussian/certified"), 2, resume=True)
    assert figures(again) == whole
    assert (tmp_path / "cells" / "none-1" / "model.safetensors").is_file()
