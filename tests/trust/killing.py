"""Kill a run at random times, resume it until it finishes, and compare it with an uninterrupted one.

Run by hand for as many moments as wanted; the test suite takes two::

    python tests/trust/killing.py reconstruct --moments 50 --output results/trust/kills-reconstruct.json
    python tests/trust/killing.py density --moments 50 --output results/trust/kills-density.json

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
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from invertible_attention.experiments.density.configuration import Configuration as Density
from invertible_attention.experiments.density.run import train_run
from invertible_attention.experiments.files import write_json
from invertible_attention.experiments.metadata import run_metadata

STAGES = ("start", "training", "evaluation", "report")
"""What a run may be at when it is killed: nothing written yet, training, what comes after, its pages."""

Run = Callable[[Path, bool], None]


def reconstruct() -> Run:
    """Return a tiny reconstruction: two networks, trained, inverted and reported on."""
    from invertible_attention.experiments.reconstruct.configuration import Configuration
    from invertible_attention.experiments.reconstruct.run import run

    configuration = Configuration.choose(
        size=(12, 12),
        variants=("concatenation/certified", "gaussian/certified"),
        train_images=64,
        test_images=8,
        epochs=5,
        batch_size=8,
        repeats=1,
        studied_images=2,
    )

    def start(folder: Path, resume: bool) -> None:
        run(configuration, output=folder, device="cpu", resume=resume, console=silent())

    return start


def density() -> Run:
    """Return a tiny density: trained, evaluated, sampled and reported on."""
    configuration = tiny_density(train_images=64, test_images=8, steps=60, evaluate_every=20)
    return lambda folder, resume: train_density(folder, configuration, resume=resume)


def tiny_density(**settings: Any) -> Density:
    """Return a density that trains within seconds."""
    tiny = {"blocks": (1,), "hidden_channels": 4, "batch_size": 16}
    return Density.choose(quick=True, **tiny | settings)


def train_density(folder: Path, configuration: Density, **options: Any) -> dict[str, Any]:
    """Train a density silently, and return its results."""
    return train_run(configuration, output=folder, device="cpu", draws=1, console=silent(), **options)


def silent() -> Console:
    """Return a console that shows nothing."""
    return Console(file=io.StringIO())


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


def damaged(folder: Path) -> list[str]:
    """Return the final files of a run that cannot be read completely, one phrase each."""
    wrong = []
    files = [path for path in folder.rglob("*") if path.is_file()]
    # Logs are appended to, and what begins with a dot is not finished.
    for path in (file for file in files if "logs" not in file.parts and not file.name.startswith(".")):
        try:
            read_whole(path)
        except Exception as error:
            wrong.append(f"{path.name} is damaged ({type(error).__name__}: {error})")
    return wrong


def read_whole(path: Path) -> None:
    """Read a file completely; raise if it is truncated."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    match path.suffix:
        case ".json":
            json.loads(path.read_text())
        case ".safetensors":
            load_file(path)
        case ".ckpt":
            torch.load(path, map_location="cpu", weights_only=True)
        case ".png":
            Image.open(path).load()
        case ".html" if path.read_text().rstrip().endswith("</html>"):
            pass
        case _:
            raise ValueError(f"not a whole file of a known kind: {path.name}")


def weights(folder: Path) -> dict[str, bytes]:
    """Return the final weights of a run, file by file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("model.safetensors")}


@dataclass
class Outcome:
    """The outcome of a run that was killed repeatedly.

    Args:
        experiment: which.
        seed: of the moments.
        seconds_whole: how long the run takes that is left alone.
        runs: how many were begun.
        kills: of each, the fraction of ``seconds_whole`` it came after, what the run was at, and the files it had
            begun to write.
        mismatches: what was not as it should be, one sentence each.
    """

    experiment: str
    seed: int
    seconds_whole: float = 0.0
    runs: int = 0
    kills: list[dict[str, Any]] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, with the number of kills per stage."""
        counts = Counter(kill["stage"] for kill in self.kills)
        return {
            "schema": "invertible-attention/kills/1",
            "experiment": self.experiment,
            "seed": self.seed,
            "moments": len(self.kills),
            "runs": self.runs,
            "mismatches": self.mismatches,
            "stages": {stage: counts[stage] for stage in STAGES},
            "seconds_whole": round(self.seconds_whole, 2),
            "kills": self.kills,
        }


def stage(folder: Path, networks: int) -> str:
    """Return which of :data:`STAGES` a run had reached, judged from its files.

    Args:
        folder: of the run.
        networks: how many it trains.
    """
    if not (folder / "configuration.json").is_file():
        return "start"
    if (folder / "results.json").is_file() or (folder / "samples.png").is_file():
        return "report"
    trained = len(weights(folder))
    if trained > len(list(folder.rglob("result.json"))):
        return "evaluation"
    return "report" if trained == networks else "training"


def kill_and_resume(experiment: str, moments: int, seed: int, scratch: Path) -> Outcome:
    """Kill and resume a run at ``moments`` random times; check it after each and at the end.

    A run that gets done before its moment begins anew in another folder.
    """
    run = EXPERIMENTS[experiment]()
    outcome = Outcome(experiment, seed)
    start = time.monotonic()
    assert forked(run, scratch / "whole", False, None) == 0, (scratch / "whole.error").read_text()
    outcome.seconds_whole = time.monotonic() - start
    expected = weights(scratch / "whole")
    assert expected
    generator = random.Random(seed)
    while len(outcome.kills) < moments:
        folder = scratch / str(outcome.runs)
        outcome.runs += 1
        if not interrupt(run, folder, outcome, moments, generator, networks=len(expected)):
            break
        outcome.mismatches += [f"run {outcome.runs}: {wrong}" for wrong in check_whole(folder, expected)]
        print(f"{len(outcome.kills)} kills, {len(outcome.mismatches)} mismatches", file=sys.stderr)
    return outcome


def interrupt(
    run: Run, folder: Path, outcome: Outcome, moments: int, generator: random.Random, networks: int
) -> bool:
    """Start a run, kill and resume it until it gets done; return whether it did, not ending in an error."""
    resume = False
    while True:
        fraction = generator.random()
        moment = fraction * outcome.seconds_whole if len(outcome.kills) < moments else None
        ended = forked(run, folder, resume, moment)
        if ended == 0:
            return True
        if ended != -signal.SIGKILL:
            error = folder.with_suffix(".error").read_text()
            outcome.mismatches.append(f"run {outcome.runs} failed: {error}")
            return False
        begun = [path.name for path in unfinished(folder)]
        outcome.kills.append(
            {"fraction": round(fraction, 3), "stage": stage(folder, networks), "begun": begun}
        )
        outcome.mismatches += [f"run {outcome.runs}, killed: {wrong}" for wrong in damaged(folder)]
        # Killed before its folder existed, it cannot resume.
        resume = (folder / "configuration.json").is_file()


def check_whole(folder: Path, expected: dict[str, bytes]) -> list[str]:
    """Return the faults of a finished run, one phrase each."""
    wrong = damaged(folder)
    found = weights(folder)
    wrong += [f"other weights in {name}" for name in expected if found.get(name) != expected[name]]
    wrong += [
        f"{name} is missing" for name in ("results.json", "report.html") if not (folder / name).is_file()
    ]
    left = [*folder.rglob("training.ckpt"), *unfinished(folder)]
    return wrong + [f"{path.name} is left behind" for path in left]


def unfinished(folder: Path) -> list[Path]:
    """Return the partially written files of a run."""
    return sorted(path for path in folder.rglob(".*") if path.name != ".lock")


def main() -> int:
    """Read the arguments, write what happened as JSON, and return 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiment", choices=EXPERIMENTS, nargs="+")
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file to write instead of standard output")
    arguments = parser.parse_args()
    if arguments.output is not None and len(arguments.experiment) > 1:
        parser.error("--output is a file of one experiment")
    wrong = False
    for experiment in arguments.experiment:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            outcome = kill_and_resume(experiment, arguments.moments, arguments.seed, Path(scratch))
        seconds = round(time.monotonic() - start, 1)
        found = outcome.to_json() | {"run": run_metadata() | {"seconds": seconds}}
        if arguments.output is None:
            print(json.dumps(found))
        else:
            write_json(arguments.output, found)
        wrong = wrong or bool(outcome.mismatches)
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
