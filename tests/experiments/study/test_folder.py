from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.study.folder import OutputFolder

ONE = {"seed": 1, "size": [32, 32]}
TWO = {"seed": 2, "size": [32, 32]}


def run(path: Path, configuration: dict, **options: Any) -> None:
    with OutputFolder(path, configuration, owned=("results.json", "cells"), **options) as folder:
        (folder / "results.json").write_text("{}")
        (folder / "cells").mkdir(exist_ok=True)


def test_empty_or_absent_folder_is_accepted(tmp_path: Path) -> None:
    run(tmp_path / "absent" / "deep", ONE)
    run(tmp_path / "resumable", ONE, resume=True)
    for folder in (tmp_path / "absent" / "deep", tmp_path / "resumable"):
        held = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        assert held == ["cells", "configuration.json", "results.json"]
        assert json.loads((folder / "configuration.json").read_text()) == ONE


def test_results_are_not_overwritten_without_the_flag(tmp_path: Path) -> None:
    run(tmp_path, ONE)
    with pytest.raises(ExperimentError, match="--resume continues it"):
        run(tmp_path, ONE)


def test_resume_needs_the_same_configuration(tmp_path: Path) -> None:
    run(tmp_path, ONE)
    run(tmp_path, ONE, resume=True)
    with pytest.raises(ExperimentError, match="seed was 1, now 2"):
        run(tmp_path, TWO, resume=True)


def test_run_without_results_does_not_block_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no images"), OutputFolder(tmp_path, ONE):
        raise ExperimentError("no images")
    run(tmp_path, TWO)
    with pytest.raises(ExperimentError, match="no images"), OutputFolder(tmp_path, TWO, resume=True):
        raise ExperimentError("no images")
    with pytest.raises(ExperimentError, match="seed was 2, now 1"):
        run(tmp_path, ONE)


def test_interruption_message_says_how_to_resume(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="^$"), OutputFolder(tmp_path, ONE):
        raise KeyboardInterrupt
    run(tmp_path, ONE)
    with pytest.raises(KeyboardInterrupt, match="--resume"), OutputFolder(tmp_path, ONE, resume=True):
        raise KeyboardInterrupt
    run(tmp_path, ONE, resume=True)


def test_overwrite_deletes_only_files_of_the_run(tmp_path: Path) -> None:
    run(tmp_path, ONE)
    (tmp_path / "cells" / "old").write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    run(tmp_path, TWO, overwrite=True)
    assert not (tmp_path / "cells" / "old").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
def test_partial_files_of_a_killed_run_are_removed(tmp_path: Path, options: dict[str, bool]) -> None:
    run(tmp_path, ONE)
    (tmp_path / "cells" / ".model.safetensors.ga60p8a_.safetensors").write_text("half")
    with pytest.raises(ExperimentError):
        run(tmp_path, TWO, resume=True)
    assert (tmp_path / "cells" / ".model.safetensors.ga60p8a_.safetensors").exists()
    run(tmp_path, ONE, **options)
    assert not list((tmp_path / "cells").iterdir())


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_folder_with_other_files_is_refused(tmp_path: Path, option: str) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ExperimentError, match=r"holds other files \(thesis\.tex\)"):
        run(tmp_path, ONE, **{option: True})
    assert (tmp_path / "thesis.tex").exists()


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    with OutputFolder(tmp_path, ONE), pytest.raises(ExperimentError, match="in use by another run"):
        run(tmp_path, ONE, resume=True)
    run(tmp_path, ONE, resume=True)


def test_lock_is_released_when_the_folder_is_refused(tmp_path: Path) -> None:
    run(tmp_path, ONE)
    with pytest.raises(ExperimentError):
        run(tmp_path, TWO, resume=True)
    run(tmp_path, ONE, resume=True)


def test_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match="cannot write to"):
        run(tmp_path / "file" / "folder", ONE)
