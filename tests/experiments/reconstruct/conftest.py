"""A run small enough for tests: 12×12 images, every response and constraint."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock
from rich.console import Console

from invertible_attention.experiments.reconstruct.configuration import Configuration
from invertible_attention.experiments.reconstruct.run import run

TINY = Configuration.choose(
    dataset="photos",
    size=(12, 12),
    train_images=12,
    test_images=6,
    epochs=2,
    batch_size=8,
    repeats=2,
    studied_images=2,
)


class Finished(NamedTuple):
    """A finished run: its folder, its results, and what it printed."""

    folder: Path
    results: dict[str, Any]
    printed: str


def start(folder: Path, configuration: Configuration = TINY, **options: Any) -> Finished:
    stream = io.StringIO()
    console = Console(file=stream, width=140, force_terminal=False)
    results = run(configuration, output=folder, device="cpu", console=console, **options)
    return Finished(folder, results, stream.getvalue())


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run, computed once for all workers of pytest-xdist."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    stored = root / "finished.pickle"
    with FileLock(root / "finished.lock"):
        if not stored.is_file():
            stored.write_bytes(pickle.dumps(tuple(start(tmp_path_factory.mktemp("runs") / "tiny"))))
    return Finished(*pickle.loads(stored.read_bytes()))
