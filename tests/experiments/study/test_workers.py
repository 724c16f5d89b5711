"""Workers: refused settings, and a real Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.study import Cell, Report, Study, Workers, engine, workers


def test_one_worker_runs_in_this_process() -> None:
    assert list(Workers().map(lambda n: (n, os.getpid()), [(1,), (2,)])) == [
        (1, os.getpid()),
        (2, os.getpid()),
    ]
    assert Workers(1).local
    assert not Workers(2).local
    assert not Workers(1, "dask://localhost:1").local


@pytest.mark.parametrize(
    ("count", "cluster", "message"),
    [
        (0, None, "at least 1, got 0"),
        (None, "tcp://localhost:8786", r"dask://HOST:PORT, got 'tcp://localhost:8786'"),
    ],
)
def test_invalid_worker_settings_are_refused(count: int | None, cluster: str | None, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        Workers(count, cluster)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A scheduler and two workers in processes of their own."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, protocol="tcp"
    ) as cluster:
        yield cluster.scheduler_address.replace("tcp://", "dask://")


@pytest.mark.slow
def test_dask_cluster_computes_the_cells(cluster: str, tmp_path: Path) -> None:
    def where(number: int) -> tuple[int, int]:
        (tmp_path / str(number)).write_text(str(number))
        return number * number, os.getpid()

    found = list(Workers(None, cluster).map(where, [(number,) for number in range(8)]))
    assert sorted(value for value, _ in found) == [number * number for number in range(8)]
    assert os.getpid() not in {process for _, process in found}
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.slow
def test_study_on_a_dask_cluster(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_cell(what: str, folder: Path, progress: Any) -> dict[str, Any]:
        if what == "b":
            raise ZeroDivisionError("nothing left")
        return {"value": what, "process": os.getpid()}

    monkeypatch.setattr(engine, "write_run_page", lambda path, content: path)
    monkeypatch.setattr(engine, "print_run", lambda *arguments: None)
    report = Report(collect=lambda finished: {"values": finished}, draw=lambda results: [], shown=[])
    study = Study(tmp_path, {"size": 3}, workers=Workers(2, cluster), console=Console(quiet=True))
    with study:
        pass
    with pytest.raises(ExperimentError, match="1 of 3 networks failed .b: ZeroDivisionError: nothing left"):
        study.run([Cell(name, {"name": name}, name, name) for name in "abc"], run_cell, report)
    assert {name: result["value"] for name, result in study.finished().items()} == {"a": "a", "c": "c"}
    assert os.getpid() not in {result["process"] for result in study.finished().values()}


@pytest.mark.slow
def test_unreachable_cluster_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "PATIENCE", 1)
    with pytest.raises(ExperimentError, match=r"no Dask scheduler at localhost:1 "):
        list(Workers(None, "dask://localhost:1").map(len, [("a",)]))
