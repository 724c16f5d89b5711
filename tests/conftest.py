"""Shared by all tests: seeds, threads, real data, and run-time type checks on request."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

DATA_VARIABLE = "INVERTIBLE_ATTENTION_DATA"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--typecheck",
        action="store_true",
        help="check the library's shape annotations while it runs (jaxtyping with beartype)",
    )
    parser.addoption(
        "--device",
        default="cpu",
        help="device the tests make their tensors on, such as cuda; where there is none, the CPU",
    )


def pytest_report_header(config: pytest.Config) -> str:
    asked, device = str(config.getoption("--device")), _device(config)
    return f"device: {device}" + ("" if device.type == asked.split(":")[0] else f", as there is no {asked}")


def _device(config: pytest.Config) -> torch.device:
    device = torch.device(str(config.getoption("--device")))
    backend = getattr(torch, device.type, None)
    available = device.type == "cpu" or (backend is not None and backend.is_available())
    return device if available else torch.device("cpu")


def pytest_configure(config: pytest.Config) -> None:
    # Before anything imports the libraries concerned: no network, and no traces in the user's own caches.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="invertible-attention-hf-")
    os.environ.setdefault("MPLBACKEND", "agg")
    if config.getoption("--typecheck"):
        from jaxtyping import install_import_hook

        install_import_hook("invertible_attention", "beartype.beartype")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _device(config).type != "cpu":
        for item in items:
            if marker := item.get_closest_marker("cpu"):
                item.add_marker(pytest.mark.skip(reason=f"needs the CPU: {marker.args[0]}"))


def pytest_unconfigure() -> None:
    import shutil

    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    # Several workers share the cores; with more than one thread each they only wait for each other.
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, as a process with ``OMP_NUM_THREADS=1`` does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device of the run, where tensors and modules are made that do not say another."""
    device = _device(request.config)
    if device.type == "cpu":
        yield device
        return
    with device:
        yield device


@pytest.fixture
def float64():
    """Make float64 the default for the length of a test."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch.float64
    torch.set_default_dtype(default)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data (``cifar10/``, ``svhn/``, ``camo/`` …); what needs it skips where it is absent."""
    value = os.environ.get(DATA_VARIABLE)
    if not value:
        pytest.skip(f"needs real data: set {DATA_VARIABLE} to a folder with cifar10/, svhn/ and camo/")
    path = Path(value)
    if not path.is_dir():
        pytest.fail(f"{DATA_VARIABLE} is {value!r}, which is not a folder")
    return path


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[list[Any], ModuleType]]:
    """Run a script as two processes of a group; return what each saved, and the script as a module.

    It is called with its rank, the path of the group's store, that of its output without the rank, and further
    arguments.
    """

    def run(script: Path, *arguments: str) -> tuple[list[Any], ModuleType]:
        folder = tmp_path_factory.mktemp(script.stem)
        paths = [str(folder / "store"), str(folder / "rank")]
        processes = [
            subprocess.Popen(
                [sys.executable, str(script), str(rank), *paths, *arguments],
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            errors = [process.communicate(timeout=300)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0, 0], errors
        spec = importlib.util.spec_from_file_location(script.stem, script)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return [torch.load(f"{paths[1]}{rank}.pt", weights_only=True) for rank in range(2)], module

    return run
