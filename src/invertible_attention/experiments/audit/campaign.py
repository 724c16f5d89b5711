"""The search over many groups and networks: in several processes, remembered as it goes, resumable."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..errors import ExperimentError, UsageError
from ..files import read_json, write_json, write_tensors
from ..metadata import run_metadata
from ..output import OutputFolder
from ..progress import RunProgress
from ..report import save_figures
from ..report.summary import print_run, write_run_page
from .attack_figure import draw_attack
from .attack_results import collect
from .networks import Network, search_network
from .search import Budget, Group, search_group

__all__ = ["Campaign", "run_campaign"]

STATE = "search.json"
OWNED = (STATE, "violations", "results.json", "report.html", "figures")
SAVE_EVERY = 20.0
"""Seconds between writes of what is known."""


@dataclass(frozen=True)
class Campaign:
    """What is searched.

    Args:
        configurations: layers; rounded up to whole groups.
        networks: whole residual networks.
        seed: of everything drawn.
        budget: what is spent on a group.

    Raises:
        UsageError: for a negative number, or nothing to search.
    """

    configurations: int = 2000
    networks: int = 10
    seed: int = 0
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        for name in ("configurations", "networks", "seed"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.configurations + self.networks == 0:
            raise UsageError("configurations and networks are both 0: there is nothing to search")

    @property
    def groups(self) -> int:
        """Number of groups."""
        return -(-self.configurations // self.budget.size)

    def to_json(self) -> dict[str, Any]:
        """Return what decides the result, as JSON values. More of the same may be added later."""
        return {"seed": self.seed, "budget": asdict(self.budget)}


def run_campaign(
    campaign: Campaign,
    *,
    output: Path,
    jobs: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Search every group and network that is not done yet, then write results.json, the figure and report.html.

    Args:
        campaign: what is searched.
        output: folder for everything written.
        jobs: processes; what is found does not depend on their number.
        resume: continue an interrupted search, or add to a finished one.
        overwrite: delete an earlier search first.
        console: where progress and the table are shown; the terminal by default.

    Returns:
        The content of results.json.

    Raises:
        ExperimentError: when the folder cannot be used.
    """
    console = console or Console()
    folder = OutputFolder(output, campaign.to_json(), resume=resume, overwrite=overwrite, owned=OWNED)
    with folder:
        state = _State.load(output / STATE)
        todo = [("group", n) for n in range(campaign.groups) if n not in state.groups]
        todo += [("network", n) for n in range(campaign.networks) if n not in state.networks]
        with RunProgress(1, console, unit="search") as progress:
            advance = progress.stage("groups and networks", len(todo))
            try:
                for done, (kind, number, found, seconds) in enumerate(_search(campaign, todo, jobs), start=1):
                    state.add(kind, number, found, seconds, output)
                    advance(done)
                    state.save_now_and_then(output / STATE)
            finally:
                # Also when interrupted: what is found is kept, and reported as far as it goes.
                state.save(output / STATE)
                results = collect(state.to_json(), campaign.to_json(), run_metadata())
                write_json(output / "results.json", results)
                save_figures(output / "figures", [draw_attack(results)])
                write_run_page(output / "report.html", results)
            progress.finish_cell(f"{len(todo)} groups and networks searched")
    print_run(console, results, output, ["violations", "ranges", "cases"])
    console.print(f"Report: {output / 'report.html'}", highlight=False, soft_wrap=True)
    return results


@dataclass
class _State:
    """What is known so far, by number of group and network."""

    groups: dict[int, dict[str, Any]] = field(default_factory=dict)
    networks: dict[int, dict[str, Any]] = field(default_factory=dict)
    processor_seconds: float = 0.0
    saved: float = field(default_factory=time.monotonic)

    @classmethod
    def load(cls, path: Path) -> _State:
        if not path.is_file():
            return cls()
        stored = read_json(path)
        try:
            groups = {item["group"]: item for item in stored["groups"]}
            networks = {item["network"]: item for item in stored["networks"]}
            return cls(groups, networks, stored["processor_seconds"])
        except (KeyError, TypeError) as error:
            raise ExperimentError(
                f"{path} is not a search of this command: choose another --output"
            ) from error

    def add(self, kind: str, number: int, found: Any, seconds: float, output: Path) -> None:
        known = self.groups if kind == "group" else self.networks
        known[number] = found.to_json()
        self.processor_seconds += seconds
        if found.violations and kind == "group":
            write_tensors(output / "violations" / f"{number}.safetensors", found.worst)

    def to_json(self) -> dict[str, Any]:
        return {
            "processor_seconds": self.processor_seconds,
            "groups": [self.groups[number] for number in sorted(self.groups)],
            "networks": [self.networks[number] for number in sorted(self.networks)],
        }

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())
        self.saved = time.monotonic()

    def save_now_and_then(self, path: Path) -> None:
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save(path)


def _search(
    campaign: Campaign, todo: list[tuple[str, int]], jobs: int
) -> Iterator[tuple[str, int, Any, float]]:
    """Yield what is found, in any order."""
    if jobs == 1:
        for kind, number in todo:
            yield kind, number, *_timed(campaign, kind, number)
        return
    # Not forked: a forked process would wait for ever for the threads torch had in its parent.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting: dict[Future[tuple[Any, float]], tuple[str, int]] = {}
        queue = iter(todo)
        try:
            while True:
                for kind, number in _take(queue, 2 * jobs - len(waiting)):
                    waiting[pool.submit(_timed, campaign, kind, number)] = (kind, number)
                if not waiting:
                    return
                for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield *waiting.pop(done), *done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _take(queue: Iterator[tuple[str, int]], count: int) -> Iterator[tuple[str, int]]:
    for _, item in zip(range(count), queue, strict=False):
        yield item


def _timed(campaign: Campaign, kind: str, number: int) -> tuple[Any, float]:
    start = time.process_time()
    found: Group | Network
    if kind == "group":
        found = search_group(campaign.seed, number, campaign.budget)
    else:
        found = search_network(campaign.seed, number, steps=campaign.budget.network_steps)
    return found, time.process_time() - start
