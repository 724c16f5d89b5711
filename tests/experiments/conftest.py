"""What tests of the experiments share: figures that cost nothing, and processes that need not import Lightning."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

StartCommand = Callable[[Sequence[str]], BaseProcess]


@contextmanager
def blank_figures() -> Iterator[None]:
    """Make figures, but save a white pixel in place of each: rendering takes longer than a tiny run's computation."""
    from matplotlib.figure import Figure
    from PIL import Image

    png = io.BytesIO()
    Image.new("RGB", (1, 1), "white").save(png, "png")

    def save(canvas: Figure, buffer: io.BytesIO, **_: Any) -> None:
        buffer.write(png.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield


@pytest.fixture
def no_rendering() -> Iterator[None]:
    """Let a test of something else than figures make them without rendering them."""
    with blank_figures():
        yield


@pytest.fixture(scope="session")
def start_command() -> StartCommand:
    """Return a function that starts a command in a process of its own, with one thread.

    They are forked from one that has imported Lightning, so that it is imported only once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "invertible_attention.cli"])
    program = (
        "import torch; torch.set_num_threads(1); from invertible_attention.cli import main; main(arguments)"
    )

    def start(arguments: Sequence[str]) -> BaseProcess:
        process = context.Process(target=exec, args=(program, {"arguments": list(arguments)}), daemon=True)
        process.start()
        return process

    return start
