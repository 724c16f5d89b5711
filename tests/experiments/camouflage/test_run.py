from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console
from safetensors.torch import load_file

pytest.importorskip("transformers")
pytest.importorskip("py_sod_metrics")

from invertible_attention.experiments.camouflage import cell as cells
from invertible_attention.experiments.camouflage import run as runs
from invertible_attention.experiments.camouflage.cell import Cell
from invertible_attention.experiments.camouflage.configuration import Configuration
from invertible_attention.experiments.camouflage.run import DataFolders
from invertible_attention.experiments.camouflage.training import DivergedError
from invertible_attention.experiments.errors import ExperimentError

from ..conftest import blank_figures

# In one process they return results.
run_one: Any = runs.run_one
run_study: Any = runs.run_study

SMALL = Configuration(
    backbone="tiny",
    size=48,
    batch_size=2,
    epochs=1,
    learning_rate=1e-3,
    train_images=4,
    test_images=2,
    audited_images=1,
)
ON_DISK = replace(SMALL, train_images=None, test_images=None)
# An audit of attention that promises nothing takes long on the larger maps.
LAST_LEVEL = replace(SMALL, levels=(4,))


def _console() -> Any:
    return Console(file=io.StringIO(), width=200)


def _study(
    output: Path, models=("none", "concatenation/relaxed"), seeds=(0,), configuration=SMALL, **options
):
    console = _console()
    results = run_study(
        models, seeds, configuration, DataFolders(), output=output, console=console, **options
    )
    return results, console.file.getvalue()


@pytest.fixture(scope="module")
def base_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished study of one network, the folder of it, and its results; to be copied by what changes it."""
    folder = tmp_path_factory.mktemp("base")
    with blank_figures():
        results, _ = _study(folder / "study", models=("none",), results_folder=folder / "published")
    return folder, results


@pytest.fixture(scope="module")
def study_of_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    """A finished study of two networks with its results and what it printed; to be copied by what changes it."""
    folder = tmp_path_factory.mktemp("two") / "study"
    with blank_figures():
        return folder, *_study(folder, configuration=LAST_LEVEL)


def test_run_writes_every_documented_file(tmp_path) -> None:
    console = _console()
    # Ten steps, after which the first numbers are logged.
    results = run_one(
        Cell("concatenation/certified", 0),
        replace(SMALL, epochs=5),
        DataFolders(),
        output=tmp_path / "run",
        console=console,
    )
    held = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")}
    assert {
        "model.safetensors",
        "maps/PHOTOS/test_00001.png",
        "maps/PHOTOS/test_00002.png",
        "result.json",
        "results.json",
        "report.html",
        "figures/curves.png",
        "figures/losses.png",
        "figures/examples-PHOTOS.png",
        "logs/version_0/metrics.csv",
    } <= held
    assert "training.ckpt" not in held
    assert any("tfevents" in name for name in held)
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    (result,) = results["cells"]
    assert result["training"]["steps"] == 10
    assert set(result["audit"]) == {"1", "2", "3", "4"}
    assert result["parameters"]["attention"] > 0
    page = (tmp_path / "run" / "report.html").read_text()
    for expected in (
        "Certified Concatenation",
        "Does the attention inside the trained networks still invert?",
        "this command chooses no epoch, weights or settings by scores of test images",
    ):
        assert expected in page
    # For a single network, only its test and run fields.
    assert "CHAMELEON" not in page
    assert "not run" not in page
    assert "training on generated-images 4; testing on PHOTOS 2" in console.file.getvalue()


@pytest.mark.usefixtures("no_rendering")
def test_finished_run_is_not_repeated(tmp_path) -> None:
    first = run_one(Cell("none", 0), SMALL, DataFolders(), output=tmp_path / "run", console=_console())
    model = tmp_path / "run" / "model.safetensors"
    before = model.stat().st_mtime_ns
    with pytest.raises(ExperimentError, match="already holds this run: --resume"):
        run_one(Cell("none", 0), SMALL, DataFolders(), output=tmp_path / "run", console=_console())
    again = run_one(
        Cell("none", 0), SMALL, DataFolders(), output=tmp_path / "run", resume=True, console=_console()
    )
    assert model.stat().st_mtime_ns == before
    assert again["cells"] == first["cells"]
    with pytest.raises(ExperimentError, match="another configuration .seed was 0, now 1"):
        run_one(Cell("none", 1), SMALL, DataFolders(), output=tmp_path / "run", resume=True)


@pytest.mark.usefixtures("no_rendering")
def test_equal_runs_give_equal_weights_and_maps(tmp_path) -> None:
    for name in ("a", "b"):
        run_one(
            Cell("concatenation/ordinary", 3),
            SMALL,
            DataFolders(),
            output=tmp_path / name,
            console=_console(),
        )
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all((first[key] == value).all() for key, value in second.items())
    a, b = (sorted((tmp_path / name / "maps").rglob("*.png")) for name in ("a", "b"))
    assert [path.read_bytes() for path in a] == [path.read_bytes() for path in b]


@pytest.mark.usefixtures("no_rendering")
def test_unusable_files_are_reported_before_writing(dataset, tmp_path) -> None:
    (dataset / "TrainDataset" / "GT" / "train_1.png").unlink()
    (dataset / "TestDataset" / "CAMO" / "Imgs" / "test_1.jpg").write_bytes(b"?")
    output = tmp_path / "run"
    with pytest.raises(
        ExperimentError, match=r"2 files cannot be used: .*train_1.jpg has no mask; .*test_1.jpg"
    ):
        run_one(Cell("none", 0), ON_DISK, DataFolders(roots=(dataset,)), output=output, console=_console())
    assert not output.exists()
    results = run_one(
        Cell("none", 0),
        ON_DISK,
        DataFolders(roots=(dataset,), leave_out_bad=True),
        output=output,
        console=_console(),
    )
    assert results["cells"][0]["test_images"] == {"CAMO": 2}
    assert "paper, Table 4" in (output / "report.html").read_text()


def test_empty_test_set_is_refused(dataset, tmp_path) -> None:
    with pytest.raises(ExperimentError, match="nothing to test on: give --test-data"):
        run_one(
            Cell("none", 0),
            ON_DISK,
            DataFolders(train=(dataset / "TrainDataset",)),
            output=tmp_path / "run",
            console=_console(),
        )


@pytest.mark.usefixtures("no_rendering")
def test_results_from_different_images_are_refused(dataset, tmp_path) -> None:
    def start(**options):
        return run_one(
            Cell("none", 0),
            ON_DISK,
            DataFolders(roots=(dataset,)),
            output=tmp_path / "run",
            console=_console(),
            **options,
        )

    start()
    for folder, suffix in (("Imgs", ".jpg"), ("GT", ".png")):
        (dataset / "TrainDataset" / folder / f"train_5{suffix}").unlink()
    with pytest.raises(ExperimentError, match="made from other images"):
        start(resume=True)


def test_study_can_be_extended(tmp_path, study_of_two) -> None:
    folder, first, printed = study_of_two
    shutil.copytree(folder, tmp_path / "study")
    assert [row["title"] for row in first["summary"]] == ["Base", "InvConcatenation"]
    assert "Base, seed 0: PHOTOS S 0." in printed
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "study" / "cells").glob("*/model.safetensors")
    }
    second, _ = _study(
        tmp_path / "study",
        models=("none", "concatenation/ordinary"),
        seeds=(0, 1),
        configuration=LAST_LEVEL,
        resume=True,
        results_folder=tmp_path / "published",
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [(row["title"], row["seeds"]) for row in second["summary"]] == [
        ("Base", [0, 1]),
        ("Concatenation", [0, 1]),
        ("InvConcatenation", [0]),
    ]
    assert json.loads((tmp_path / "published" / "results.json").read_text())["cells"] == second["cells"]
    assert (tmp_path / "published" / "figures" / "examples-PHOTOS.png").is_file()
    page = (tmp_path / "published" / "report.html").read_text()
    assert "InvConcatenation" in page
    assert "CHAMELEON" not in page
    assert re.search(r"InvConcatenation [+-]0\.\d{3} \((within|more than) one deviation", page)


@pytest.mark.usefixtures("no_rendering")
def test_study_resumes_from_its_results_file_alone(tmp_path, base_study, monkeypatch) -> None:
    folder, first = base_study
    published = shutil.copytree(folder / "published", tmp_path / "published")
    trained = []
    train = cells.train

    def count(*args, **options):
        trained.append(options["seed"])
        return train(*args, **options)

    monkeypatch.setattr(cells, "train", count)
    second, _ = _study(tmp_path / "two", models=("none",), seeds=(0, 1), results_folder=published)
    assert trained == [1]
    assert second["cells"][0] == first["cells"][0]
    assert [cell["seed"] for cell in second["cells"]] == [0, 1]
    changed = replace(SMALL, epochs=SMALL.epochs + 1)
    with pytest.raises(ExperimentError, match=rf"another configuration \(epochs was {SMALL.epochs}, now"):
        _study(tmp_path / "three", models=("none",), configuration=changed, results_folder=published)
    assert json.loads((published / "results.json").read_text())["cells"] == second["cells"]


def call_as_before(folder: Path, name: str) -> None:
    """Store a network's model as earlier versions did."""
    for path in (folder / "configuration.json", folder / "result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model": name}))


@pytest.mark.usefixtures("no_rendering")
def test_runs_of_earlier_versions_are_continued(tmp_path, study_of_two, monkeypatch) -> None:
    folder, first, _ = study_of_two
    shutil.copytree(folder, tmp_path / "study")
    cells_folder, old = (
        tmp_path / "study" / "cells",
        {"none": "base", "concatenation-relaxed": "inv-concatenation"},
    )
    for name, before in old.items():
        call_as_before(cells_folder / f"{name}-0", before)
        (cells_folder / f"{name}-0").rename(cells_folder / f"{before}-0")
    one = shutil.copytree(cells_folder / "base-0", tmp_path / "one")
    monkeypatch.setattr(cells, "train", pytest.fail)
    with FileLock(cells_folder / "base-0" / ".lock"), pytest.raises(ExperimentError, match="earlier version"):
        _study(tmp_path / "study", configuration=LAST_LEVEL, resume=True)
    again, _ = _study(tmp_path / "study", models=("none",), configuration=LAST_LEVEL, resume=True)
    assert again["cells"] == first["cells"]
    assert sorted(path.name for path in cells_folder.iterdir()) == ["concatenation-relaxed-0", "none-0"]
    alone = run_one(Cell("none", 0), LAST_LEVEL, DataFolders(), output=one, resume=True, console=_console())
    assert alone["cells"] == first["cells"][:1]


@pytest.mark.usefixtures("no_rendering")
def test_networks_claimed_by_another_process_are_skipped(tmp_path, base_study) -> None:
    from invertible_attention.experiments.study.folder import OutputFolder

    shutil.copytree(base_study[0] / "study", tmp_path / "study")
    folder = tmp_path / "study" / "cells" / "none-1"
    settings = SMALL.to_json() | {"model": "none", "seed": 1}
    with OutputFolder(folder, settings):
        results, printed = _study(tmp_path / "study", models=("none",), seeds=(0, 1), resume=True)
    assert "Base, seed 1: another process works on it" in printed
    assert results["summary"][0]["seeds"] == [0]


@pytest.mark.usefixtures("no_rendering")
def test_the_cache_stays_while_another_process_needs_it(tmp_path, base_study) -> None:
    # Two processes share the folder: this one is done, the other one trains a network of its own list.
    shutil.copytree(base_study[0] / "study", tmp_path, dirs_exist_ok=True)
    assert not (tmp_path / "cache").exists()
    cached = tmp_path / "cache" / "images.npy"
    other = tmp_path / "cells" / "concatenation-ordinary-0"
    for path in (cached, other / "training.ckpt"):
        path.parent.mkdir(parents=True)
        path.write_text("")
    _study(tmp_path, models=("none",), resume=True)
    assert cached.exists()
    shutil.rmtree(other)
    _study(tmp_path, models=("none",), resume=True)
    assert not cached.exists()


@pytest.mark.usefixtures("no_rendering")
def test_diverging_network_does_not_stop_the_study(tmp_path, monkeypatch) -> None:
    train = cells.train

    def diverge(network, *args, **options):
        if network.invertible_attention():
            raise DivergedError("the loss is nan at step 7")
        return train(network, *args, **options)

    monkeypatch.setattr(cells, "train", diverge)
    results, printed = _study(tmp_path / "study")
    assert "InvConcatenation, seed 0: diverged (the loss is nan at step 7)" in printed
    assert [row["diverged"] for row in results["summary"]] == [0, 1]
    assert "diverged" in (tmp_path / "study" / "report.html").read_text()
    with pytest.raises(ExperimentError, match="nan at step 7"):
        run_one(
            Cell("gaussian/relaxed", 0), SMALL, DataFolders(), output=tmp_path / "one", console=_console()
        )
    assert not (tmp_path / "one" / "result.json").exists()


@pytest.mark.usefixtures("no_rendering")
def test_interrupted_evaluation_does_not_retrain(tmp_path, monkeypatch) -> None:
    def fail(*args, **options):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(cells, "audit_network", fail)
        with pytest.raises(InterruptedError):
            run_one(Cell("none", 0), SMALL, DataFolders(), output=tmp_path / "run", console=_console())
    monkeypatch.setattr(cells, "train", fail)
    results = run_one(
        Cell("none", 0), SMALL, DataFolders(), output=tmp_path / "run", resume=True, console=_console()
    )
    assert results["cells"][0]["training"]["steps"] == 2
