"""Every cell is computed once by any number of processes, and finished cells are kept."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.study import Cell, RunProgress, Study, Workers, engine

SETTINGS = {"size": 3, "cells": ["a"]}


def toy(
    log: Path, fail: Sequence[str] = (), interrupt: Sequence[str] = (), seconds: float = 0.0
) -> Callable[[str, Path, RunProgress], dict[str, Any]]:
    """Return a function that computes a cell in two parts and logs each."""

    def run_cell(what: str, folder: Path, progress: RunProgress) -> dict[str, Any]:
        def note(text: str) -> None:
            with log.open("a") as file:
                file.write(f"{text} {what}\n")

        half = folder / "half.txt"
        if not half.is_file():
            note("half")
            half.write_text(what)
            time.sleep(seconds)
        if what in interrupt:
            raise KeyboardInterrupt
        if what in fail:
            raise ZeroDivisionError("nothing left")
        note("whole")
        return {"value": half.read_text() * 2}

    return run_cell


def collect(finished: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"schema": "toy/1", "values": {name: result["value"] for name, result in finished.items()}}


REPORT = engine.Report(
    collect=collect, draw=lambda results: [], shown=[], line=lambda result: result["value"]
)


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "write_run_page", lambda path, content: path)
    monkeypatch.setattr(engine, "print_run", lambda *arguments: None)


def start(
    folder: Path,
    names: Sequence[str],
    run_cell: Any,
    *,
    shared: dict[str, Any] = SETTINGS,
    own: dict[str, Any] | None = None,
    data: str = "1",
    again: bool = False,
    **options: Any,
) -> tuple[dict[str, Any], str]:
    printed = io.StringIO()
    study = Study(
        folder, shared, growing=["cells"], console=Console(file=printed, width=200), unit="cells", **options
    )
    cells = [Cell(name, {"name": name} | (own or {}), name, f"cell {name}", data) for name in names]
    with study:
        pass
    results = study.run(cells, run_cell, REPORT, again=again)
    assert results is not None
    return results["values"], printed.getvalue()


def done(log: Path) -> Counter[str]:
    return Counter(log.read_text().split("\n")[:-1])


def test_study_stores_and_prints_every_cell(tmp_path: Path) -> None:
    values, printed = start(tmp_path / "study", "ab", toy(tmp_path / "log"))
    assert values == {"a": "aa", "b": "bb"}
    assert json.loads((tmp_path / "study" / "results.json").read_text())["values"] == values
    assert json.loads((tmp_path / "study" / "configuration.json").read_text()) == SETTINGS
    assert json.loads((tmp_path / "study" / "cells" / "b" / "configuration.json").read_text()) == {
        "name": "b"
    }
    assert "cell a: aa" in printed
    assert printed.index("cell a: aa") < printed.index("cell b: bb")


@settings(max_examples=20, deadline=None)
@given(order=st.permutations("abcd"), first=st.integers(0, 4))
def test_neither_order_nor_interruption_changes_the_results(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], first: int
) -> None:
    folder = tmp_path_factory.mktemp("study")
    run_cell = toy(folder / "log")
    if first:
        start(folder / "study", order[:first], run_cell)
    values, _ = start(folder / "study", order[::-1], run_cell, resume=True)
    assert values == {name: name * 2 for name in "abcd"}
    assert done(folder / "log") == Counter(f"{part} {name}" for part in ("half", "whole") for name in "abcd")


def test_an_interrupted_cell_is_resumed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "study", "abc", toy(log, interrupt="b"))
    found = json.loads((tmp_path / "study" / "results.json").read_text())
    assert found["values"] == {"a": "aa"}, "what is found is reported as far as it goes"
    values, _ = start(tmp_path / "study", "abc", toy(log), resume=True)
    assert values == {"a": "aa", "b": "bb", "c": "cc"}
    assert done(log)["half b"] == done(log)["whole b"] == 1


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_failing_cell_is_reported_and_the_others_continue(tmp_path: Path, count: int) -> None:
    log, folder = tmp_path / "log", tmp_path / "study"
    with pytest.raises(
        ExperimentError, match=r"1 of 3 cells failed \(cell b: ZeroDivisionError: nothing left\)"
    ):
        start(folder, "abc", toy(log, fail="b"), workers=Workers(count))
    assert json.loads((folder / "results.json").read_text())["values"] == {"a": "aa", "c": "cc"}
    assert "ZeroDivisionError: nothing left" in (folder / "cells" / "b" / "error.txt").read_text()
    values, printed = start(folder, "abc", toy(log), resume=True)
    assert values == {"a": "aa", "b": "bb", "c": "cc"}
    assert "failed" not in printed
    assert not (folder / "cells" / "b" / "error.txt").exists()
    assert done(log)["whole a"] == 1


def test_no_results_file_if_every_cell_fails(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="2 of 2 cells failed"):
        start(tmp_path / "study", "ab", toy(tmp_path / "log", fail="ab"))
    assert not (tmp_path / "study" / "results.json").exists()


def test_cells_are_added_to_a_finished_study(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "study"
    start(folder, "a", toy(log))
    with pytest.raises(ExperimentError, match="--resume continues it"):
        start(folder, "ab", toy(log))
    values, _ = start(folder, "b", toy(log), shared=SETTINGS | {"cells": ["b"]}, resume=True)
    assert values == {"a": "aa", "b": "bb"}, "what was there stays"
    assert json.loads((folder / "configuration.json").read_text())["cells"] == ["a", "b"]
    assert done(log)["whole a"] == 1


def test_overwrite_recomputes_everything(tmp_path: Path) -> None:
    log = tmp_path / "log"
    start(tmp_path / "study", "ab", toy(log))
    start(tmp_path / "study", "ab", toy(log), resume=True, again=True)
    assert done(log)["whole a"] == done(log)["whole b"] == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shared": SETTINGS | {"size": 4}}, "size was 3, now 4"),
        ({"own": {"rate": 2}}, "rate was None, now 2"),
        ({"data": "2"}, "made from other images"),
    ],
)
def test_different_settings_and_data_are_refused_by_name(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    log, folder = tmp_path / "log", tmp_path / "study"
    start(folder, "a", toy(log))
    before = (folder / "results.json").read_bytes()
    with pytest.raises(ExperimentError, match=message):
        start(folder, "ab", toy(log), resume=True, **changed)
    assert (folder / "results.json").read_bytes() == before
    assert done(log)["whole b"] == 0


def test_study_in_use_is_not_overwritten(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "study"
    start(folder, "ab", toy(log))
    with (
        engine.FileLock(folder / "cells" / "b" / ".lock"),
        pytest.raises(ExperimentError, match="in use by another run"),
    ):
        start(folder, "a", toy(log), overwrite=True)
    values, _ = start(folder, "a", toy(log), overwrite=True)
    assert values == {"a": "aa"}


def test_cell_claimed_by_another_process_is_skipped(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "study"
    (folder / "cells" / "b").mkdir(parents=True)
    (folder / "configuration.json").write_text(json.dumps(SETTINGS))
    (folder / "cells" / "b" / ".model.safetensors.ga60p8a_.safetensors").write_text("half")
    with engine.FileLock(folder / "cells" / "b" / ".lock"):
        values, printed = start(folder, "ab", toy(log), resume=True)
    assert values == {"a": "aa"}
    assert "cell b: another process works on it" in printed
    assert list((folder / "cells" / "b").glob(".model*")), "what the other has begun to write is its own"


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_engine as tests
tests.engine.write_run_page = lambda path, content: path
tests.engine.print_run = lambda *arguments: None
folder = Path(sys.argv[2])
tests.start(folder / "study", sys.argv[3], tests.toy(folder / "log", seconds=0.02), resume=True)
"""


@pytest.mark.slow
def test_concurrent_processes_compute_every_cell_once(tmp_path: Path) -> None:
    names = "abcdefghijklmnopqrstuvwxyz"
    script = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path)]
    processes = [subprocess.Popen([*script, order]) for order in (names, names[::-1], names)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert done(tmp_path / "log") == Counter(f"{part} {name}" for part in ("half", "whole") for name in names)
    found = json.loads((tmp_path / "study" / "results.json").read_text())
    assert found["values"] == {name: name * 2 for name in names}, "the last to finish reports everything"


def test_results_file_is_always_complete(tmp_path: Path) -> None:
    folder, stop, seen = tmp_path / "study", threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if (folder / "results.json").is_file():
                seen.append(len(json.loads((folder / "results.json").read_text())["values"]))

    reader = threading.Thread(target=read)
    reader.start()
    for count in range(1, 27):
        start(folder, "abcdefghijklmnopqrstuvwxyz"[:count], toy(tmp_path / "log"), resume=True)
    stop.set()
    reader.join()
    assert seen == sorted(seen)
    assert seen[-1] > 1


@pytest.mark.slow
def test_number_of_workers_does_not_change_the_results(tmp_path: Path) -> None:
    values, printed = start(tmp_path / "study", "abcd", toy(tmp_path / "log"), workers=Workers(2))
    assert values == {name: name * 2 for name in "abcd"}
    assert set(re.findall(r"cell (\w): (\w\w)", printed)) == {(name, name * 2) for name in "abcd"}


@pytest.mark.slow
def test_killed_worker_is_one_clear_error(tmp_path: Path) -> None:
    def run_cell(what: str, folder: Path, progress: RunProgress) -> dict[str, Any]:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with pytest.raises(ExperimentError, match=r"process was killed.*continue with --resume"):
        start(tmp_path / "study", "ab", run_cell, workers=Workers(2))
    values, _ = start(tmp_path / "study", "ab", toy(tmp_path / "log"), resume=True)
    assert values == {"a": "aa", "b": "bb"}
