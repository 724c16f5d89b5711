"""Cells of a study run in processes of their own; one that fails ends the others."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from invertible_attention.experiments.density import cell, study
from invertible_attention.experiments.errors import ExperimentError

PROGRAMS = {
    "good": "",
    "slow": "import time; time.sleep(60)",
    "bad": "import sys; print('loading'); print('no space is left'); sys.exit(1)",
    "dumb": "import sys; sys.exit(3)",
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, subprocess.Popen[bytes]]:
    """What was started, by name; the environment is that of the last."""
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(folder: Path, data_dir: Path | None, device: str, draws: int, environment: Any) -> Any:
        folder.mkdir()
        with (folder / "log.txt").open("wb") as log:
            program = [sys.executable, "-S", "-c", PROGRAMS[folder.name]]
            processes[folder.name] = subprocess.Popen(program, stdout=log, stderr=log, env=environment)
        return processes[folder.name]

    monkeypatch.setattr(study, "_start", start)
    return processes


def run(names: list[str], folder: Path, jobs: int) -> str:
    shown = io.StringIO()
    study._run_cells(names, folder, None, "cpu", jobs, 2, Console(file=shown))
    return shown.getvalue()


def test_cells_wait_for_their_turn(started: dict[str, Any], tmp_path: Path) -> None:
    shown = run(["good"], tmp_path, 1)
    assert re.fullmatch(r"good: \d+ s, 0 left\n", shown)
    assert list(started) == ["good"]


@pytest.mark.parametrize(("name", "reason"), [("bad", "no space is left"), ("dumb", "$")])
def test_a_cell_that_fails_ends_the_others(
    name: str, reason: str, started: dict[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    with pytest.raises(ExperimentError, match=rf"cell {name} failed: {reason}"):
        run(["slow", name, "good"], tmp_path, 2)
    assert list(started) == ["slow", name]
    assert started["slow"].returncode < 0, "it was ended, not waited for"


def test_a_cell_says_what_was_wrong_on_its_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ExperimentError("there is no folder /nowhere")

    monkeypatch.setattr(cell, "train_run", refuse)
    monkeypatch.setattr(cell, "read_json", lambda path: {"attention": "none"})
    assert cell.main(str(tmp_path), "cpu", "2") == 1
    assert capsys.readouterr().err == "there is no folder /nowhere\n"
