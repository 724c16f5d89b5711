"""What the bars of a run say when it ends."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from invertible_attention.experiments.progress import RunProgress


def drawn(cells: int, finished: int, error: type[BaseException] | None) -> str:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=False)
    try:
        with RunProgress(cells, console) as progress:
            progress.stage("training", 5)(3, 0.5)
            for number in range(finished):
                progress.finish_cell(f"network {number} done")
            if error is not None:
                raise error
    except (KeyboardInterrupt, RuntimeError):
        pass
    return file.getvalue().splitlines()[-1]


@pytest.mark.parametrize(("cells", "finished"), [(1, 0), (1, 1), (3, 3)])
def test_a_run_that_ends_is_counted_as_done(cells: int, finished: int):
    assert f" {cells}/{cells} " in drawn(cells, finished, None)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_one_that_is_interrupted_is_not(error: type[BaseException]):
    assert " 1/3 " in drawn(3, 1, error)
