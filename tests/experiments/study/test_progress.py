"""State of the progress bars at the end of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from invertible_attention.experiments.study.progress import RunProgress


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
def test_finished_stage_is_counted_as_done(cells: int, finished: int):
    assert f" {cells}/{cells} " in drawn(cells, finished, None)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_stage_is_not_counted_as_done(error: type[BaseException]):
    assert " 1/3 " in drawn(3, 1, error)


def test_remaining_time_of_a_resumed_stage_counts_its_own_steps() -> None:
    progress = RunProgress(1, Console(file=io.StringIO()))
    now = 0.0
    progress._progress.get_time = lambda: now
    with progress:
        advance = progress.stage("training", 1000)
        now = 100.0
        for done in range(901, 911):
            now += 2.0
            advance(done)
        task = progress._progress.tasks[1]
        assert task.completed == 910
        assert task.time_remaining == 180  # 90 steps of 2 s
