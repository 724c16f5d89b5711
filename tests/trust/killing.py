"""Kill a run at random moments, resume it until it is done, and compare it with one that was left alone.

Run by hand for as many moments as wanted; the test suite takes two::

    python tests/trust/killing.py reconstruct --moments 50
    python tests/trust/killing.py density --moments 50

Runs are forked from one process that has everything imported, so that the moments fall into the work and not into
the start of Python.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[Path, bool], None]


def reconstruct() -> Run:
    """Return a tiny reconstruction: two networks, trained, inverted and reported on."""
    from rich.console import Console

    from invertible_attention.experiments.reconstruct.configuration import Configuration
    from invertible_attention.experiments.reconstruct.run import run

    configuration = Configuration.choose(
        size=(12, 12),
        responses=("concatenation", "gaussian"),
        constraints=("certified",),
        train_images=64,
        test_images=8,
        epochs=5,
        batch_size=8,
        repeats=1,
        studied_images=2,
    )

    def start(folder: Path, resume: bool) -> None:
        run(configuration, output=folder, device="cpu", resume=resume, console=Console(file=io.StringIO()))

    return start


def density() -> Run:
    """Return a tiny density: trained, evaluated, sampled and reported on."""
    from rich.console import Console

    from invertible_attention.experiments.density.configuration import Configuration
    from invertible_attention.experiments.density.run import train_run

    configuration = Configuration.choose(
        quick=True,
        blocks=(1,),
        hidden_channels=4,
        train_images=64,
        test_images=8,
        batch_size=16,
        steps=60,
        evaluate_every=20,
    )

    def start(folder: Path, resume: bool) -> None:
        train_run(
            configuration,
            output=folder,
            device="cpu",
            resume=resume,
            draws=1,
            console=Console(file=io.StringIO()),
        )

    return start


EXPERIMENTS = {"reconstruct": reconstruct, "density": density}


def forked(run: Run, folder: Path, resume: bool, kill_after: float | None) -> int:
    """Run in a child, kill it after some seconds if it still runs, and return how it ended (0 for well)."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.stderr = io.StringIO()
            run(folder, resume)
            status = 0
        except BaseException as error:
            folder.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(status)
    deadline = None if kill_after is None else time.monotonic() + kill_after
    while True:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.001)


def check_files(folder: Path) -> int:
    """Read every file of a run that was cut short; raise where half of one lies under its final name."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    files = [path for path in folder.rglob("*") if path.is_file()]
    # Logs are appended to, and what begins with a dot is not finished.
    files = [path for path in files if "logs" not in path.parts and not path.name.startswith(".")]
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".ckpt":
            torch.load(path, map_location="cpu", weights_only=True)
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path
        else:
            raise AssertionError(f"what is {path}?")
    return len(files)


def weights(folder: Path) -> dict[str, bytes]:
    """Return the final weights of a run, file by file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("model.safetensors")}


def kill_and_resume(experiment: str, moments: int, seed: int, scratch: Path) -> dict[str, Any]:
    """Kill a run at ``moments`` random moments, always resuming it, and check it after each and at the end.

    A run that gets done before its moment begins anew in another folder.

    Returns:
        How many runs there were, how often each was killed, and the fractions of a whole run's time.
    """
    run = EXPERIMENTS[experiment]()
    generator = random.Random(seed)
    start = time.monotonic()
    assert forked(run, scratch / "whole", False, None) == 0, (scratch / "whole.error").read_text()
    seconds = time.monotonic() - start
    expected = weights(scratch / "whole")
    assert expected
    killed, runs, at = 0, 0, []
    while killed < moments:
        folder, resume = scratch / str(runs), False
        runs += 1
        while True:
            fraction = generator.random()
            moment = fraction * seconds if killed < moments else None
            ended = forked(run, folder, resume, moment)
            if ended == 0:
                break
            assert ended == -signal.SIGKILL, folder.with_suffix(".error").read_text()
            killed += 1
            at.append(round(fraction, 3))
            if folder.is_dir():
                check_files(folder)
            # Killed before it had its folder, there is nothing to go on with.
            resume = folder.is_dir() and (folder / "configuration.json").is_file()
        check_files(folder)
        assert weights(folder) == expected, f"run {runs} of {experiment} ended with other weights"
        assert not list(folder.rglob("training.ckpt")), "a checkpoint is left behind"
        print(f"{killed} kills in {runs} runs, each with the weights of the whole one", file=sys.stderr)
    return {"experiment": experiment, "moments": killed, "runs": runs, "seconds_whole": seconds, "at": at}


def main() -> None:
    """Read the arguments, and print what happened as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = kill_and_resume(arguments.experiment, arguments.moments, arguments.seed, Path(scratch))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
