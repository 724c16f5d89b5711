"""The search campaign: resumable, independent of the number of processes, with clear errors."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from invertible_attention import Certified
from invertible_attention.experiments.audit import campaign as module
from invertible_attention.experiments.audit.campaign import run_campaign
from invertible_attention.experiments.audit.settings import Campaign
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.files import read_json
from invertible_attention.experiments.study import Workers

from ..conftest import blank_figures

SMALL: Any = {"group_size": 4, "inputs": 1, "ascents": 4, "steps": 2}


def run(
    folder: Path, configurations: int = 16, networks: int = 1, **options: Any
) -> tuple[dict[str, Any], str]:
    stream = io.StringIO()
    campaign = Campaign(configurations, networks, seed=3, **SMALL)
    console = Console(file=stream, width=120)
    results = run_campaign(campaign, output=folder, console=console, **options)
    assert results is not None
    return results, stream.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search, not to be changed."""
    folder = tmp_path_factory.mktemp("search") / "whole"
    with blank_figures():
        run(folder)
    return folder


@pytest.fixture(scope="module")
def whole(finished: Path) -> dict[str, Any]:
    return read_json(finished / "results.json")


def strip(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if name != "run"}


def test_results_record_the_search_space(tmp_path):
    results, printed = run(tmp_path)
    assert results == read_json(tmp_path / "results.json")
    assert (results["configurations"], results["groups"], results["networks"]) == (16, 4, 1)
    assert sum(results["histogram"]["counts"]) == 16
    assert results["violations"] == []
    assert results["run"]["versions"]["torch"]
    assert results["run"]["processor_seconds"] > 0
    assert "16 configurations" in printed
    assert "no bound was exceeded beyond an allowance of 1e-12" in printed
    page = (tmp_path / "report.html").read_text()
    assert "no bound was exceeded" in page
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.usefixtures("no_rendering")
def test_interrupted_search_resumes(tmp_path, whole, monkeypatch):
    search, calls = module.search_group, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return search(*arguments)

    monkeypatch.setattr(module, "search_group", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    assert read_json(tmp_path / "parts" / "results.json")["groups"] == 2
    resumed, _ = run(tmp_path / "parts", resume=True)
    assert strip(resumed) == strip(whole)
    assert len(calls) == 3 + 2


@pytest.mark.usefixtures("no_rendering")
def test_search_from_an_earlier_version_resumes(tmp_path, finished, whole):
    found = [read_json(path) for path in sorted((finished / "cells").glob("group-*/result.json"))]
    (tmp_path / "old").mkdir()
    state = {"processor_seconds": 9.0, "groups": found[:2], "networks": []}
    (tmp_path / "old" / "search.json").write_text(json.dumps(state))
    shutil.copy(finished / "configuration.json", tmp_path / "old")
    resumed, _ = run(tmp_path / "old", resume=True)
    assert strip(resumed) == strip(whole)
    assert resumed["run"]["processor_seconds"] >= 9.0


@pytest.mark.usefixtures("no_rendering")
def test_finished_search_can_be_extended(tmp_path, whole):
    run(tmp_path / "parts", 8, 0)
    more, _ = run(tmp_path / "parts", 16, 1, resume=True)
    assert strip(more) == strip(whole)


@pytest.mark.slow
@pytest.mark.usefixtures("no_rendering")
def test_number_of_processes_does_not_change_the_findings(tmp_path, whole):
    two, _ = run(tmp_path / "two", workers=Workers(2))
    assert strip(two) == strip(whole)


def test_violations_are_reported_with_their_weights(tmp_path, monkeypatch):
    promise = Certified.lipschitz_bound
    monkeypatch.setattr(Certified, "lipschitz_bound", lambda self, log_bound: promise(self, log_bound) * 0.5)
    results, printed = run(tmp_path, networks=0)
    assert results["violations"]
    violation = results["violations"][0]
    assert violation["ratio"] > 1
    assert "BOUNDS WERE EXCEEDED" in printed
    assert "EXCEEDED" in (tmp_path / "report.html").read_text()
    kept = load_file(tmp_path / "violations" / f"{violation['group']}.safetensors")
    assert "layer.branch.out_weight" in kept


@pytest.mark.usefixtures("no_rendering")
def test_different_seed_or_foreign_state_is_refused(tmp_path):
    run(tmp_path, 4, 0)
    with pytest.raises(ExperimentError, match="seed was 3, now 4"):
        run_campaign(Campaign(4, 0, seed=4, **SMALL), output=tmp_path, resume=True)
    with pytest.raises(ExperimentError, match="already holds this run"):
        run(tmp_path, 4, 0)
    before = (tmp_path / "results.json").read_bytes()
    (tmp_path / "search.json").write_text(json.dumps({"groups": 3}))
    with pytest.raises(ExperimentError, match=r"search\.json is not a search"):
        run(tmp_path, 4, 0, resume=True)
    assert (tmp_path / "results.json").read_bytes() == before


@pytest.mark.parametrize("arguments", [{"configurations": -1}, {"networks": -2}, {"seed": -3}])
def test_out_of_range_settings_are_refused(arguments):
    with pytest.raises(ValueError, match=f"must be at least 0, got {next(iter(arguments.values()))}"):
        Campaign(**arguments)


def test_empty_search_is_refused():
    with pytest.raises(ValueError, match="nothing to search"):
        Campaign(0, 0)
