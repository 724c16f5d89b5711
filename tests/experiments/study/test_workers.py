"""Workers: refused settings, and real clusters of Dask and of Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import warnings
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
        (None, "tcp://localhost:8786", r"dask://HOST:PORT or ray://HOST:PORT, got 'tcp://localhost:8786'"),
    ],
)
def test_invalid_worker_settings_are_refused(count: int | None, cluster: str | None, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        Workers(count, cluster)


def dask_cluster() -> Iterator[str]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, protocol="tcp"
    ) as cluster:
        yield cluster.scheduler_address.replace("tcp://", "dask://")


# In a separate process: Ray leaves files open, and warnings are errors.
RAY = """
import sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 2, "include_dashboard": False, "ray_client_server_port": int(sys.argv[1])}
cluster = Cluster(initialize_head=True, head_node_args=head)
print("ready", flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def ray_cluster() -> Iterator[str]:
    pytest.importorskip("ray", reason="needs Ray: pip install invertible-attention[ray]")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # otherwise a token is written to the home folder
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S", "120")  # the machine may be busy
        command = [sys.executable, "-c", RAY, str(port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as head:
            assert head.stdout is not None
            assert any(line == "ready\n" for line in head.stdout)
            yield f"ray://localhost:{port}"
            head.communicate()


@pytest.fixture(scope="module", params=[dask_cluster, ray_cluster])
def cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    """A scheduler and two workers in separate processes."""
    yield from request.param()


@pytest.mark.slow
def test_cluster_computes_the_cells(cluster: str, tmp_path: Path) -> None:
    def where(number: int) -> tuple[int, int]:
        (tmp_path / str(number)).write_text(str(number))
        return number * number, os.getpid()

    found = list(Workers(None, cluster).map(where, [(number,) for number in range(8)]))
    assert sorted(value for value, _ in found) == [number * number for number in range(8)]
    assert os.getpid() not in {process for _, process in found}
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.slow
def test_study_on_a_cluster(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
@pytest.mark.parametrize("cluster", [ray_cluster], indirect=True)
def test_killed_worker_of_ray_is_one_clear_error(cluster: str) -> None:
    def die(_: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ExperimentError, match="a worker's process was killed"):
        list(Workers(None, cluster).map(die, [(1,)]))


@pytest.mark.slow
def test_unreachable_cluster_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "PATIENCE", 1)
    with pytest.raises(ExperimentError, match=r"no Dask scheduler at localhost:1 "):
        list(Workers(None, "dask://localhost:1").map(len, [("a",)]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Ray Client connection timed out")
def test_unreachable_ray_cluster_is_one_clear_error() -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install invertible-attention[ray]")
    with pytest.raises(ExperimentError, match="no Ray cluster answers at ray://localhost:1 "):
        list(Workers(None, "ray://localhost:1").map(len, [("a",)]))


@pytest.mark.slow
def test_a_worker_may_be_replaced_where_warnings_are_errors():
    found = []
    for value in Workers(2).map(lambda n: n, [(1,), (2,)]):
        # What joblib says in the thread that keeps the workers.
        warnings.warn(
            "A worker stopped while some jobs were given to the executor.", UserWarning, stacklevel=1
        )
        found.append(value)
    assert sorted(found) == [1, 2]
    with pytest.raises(UserWarning, match="a warning after all"):
        warnings.warn("a warning after all", UserWarning, stacklevel=1)
