"""Settings: command line, JSON and checks follow from the fields."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cyclopts")

from hypothesis import given
from hypothesis import strategies as st

from invertible_attention.cli.application import build
from invertible_attention.experiments.audit.settings import Audit, Campaign
from invertible_attention.experiments.benchmark.configuration import Configuration as Benchmark
from invertible_attention.experiments.camouflage.configuration import Configuration as Camouflage
from invertible_attention.experiments.density.configuration import Configuration as Density
from invertible_attention.experiments.errors import UsageError
from invertible_attention.experiments.reconstruct.configuration import Configuration as Reconstruct
from invertible_attention.experiments.settings import Settings

TRAINING = {Camouflage: ("camouflage", "train"), Density: ("density", "train"), Reconstruct: ("reconstruct",)}
COMMANDS: dict[type[Settings], tuple[str, ...]] = {
    **TRAINING,
    Campaign: ("audit",),
    Benchmark: ("benchmark",),
}
RESULTS = Path(__file__).parent.parent.parent / "results"


def options(*command: str) -> dict[str, str]:
    """Return the options of a command with their help."""
    app = build()
    for name in command:
        app = app[name]
    found = app.assemble_argument_collection()
    return {name: argument.parameter.help or "" for argument in found for name in argument.names}


@pytest.mark.parametrize("settings", COMMANDS)
def test_every_field_is_an_option_with_help(settings: type[Settings]) -> None:
    found = options(*COMMANDS[settings])
    for declared in fields(settings):
        name = declared.metadata["option"].get("name", f"--{declared.name.replace('_', '-')}")
        assert found[name] == declared.metadata["help"]


@pytest.mark.parametrize("command", [("camouflage", "study"), ("density", "study"), ("density", "table")])
def test_study_shares_the_options_of_training(command: tuple[str, str]) -> None:
    one, many = options(command[0], "train"), options(*command)
    shared = one.keys() & many.keys()
    assert len(shared) > 20
    # The seeds of a study are counted from --seed, its --data are the same.
    assert {name: one[name] for name in shared} == {name: many[name] for name in shared}


@pytest.mark.parametrize("settings", [*COMMANDS, Audit])
def test_every_help_is_a_sentence(settings: type[Settings]) -> None:
    for declared in fields(settings):
        assert re.fullmatch(r"[A-Z].*\.", declared.metadata["help"]), declared.name


@pytest.mark.parametrize("settings", TRAINING)
def test_unknown_names_and_wrong_types_are_refused(settings: type[Settings]) -> None:
    with pytest.raises(UsageError, match="there is no setting epcohs, zeal"):
        settings.from_json({"batch_size": 1, "epcohs": 3, "zeal": 1})
    for value in ("3", 2.5, True, [3], None):
        with pytest.raises(
            UsageError, match=rf"batch_size must be a whole number, got {re.escape(repr(value))}"
        ):
            settings.from_json({"batch_size": value})


@given(batch_size=st.integers(-3, 3), learning_rate=st.floats() | st.integers(-2, 2))
def test_valid_settings_round_trip_and_invalid_ones_are_refused(
    batch_size: int, learning_rate: float
) -> None:
    values = {"batch_size": batch_size, "learning_rate": learning_rate}
    for settings in TRAINING:
        if batch_size >= 1 and learning_rate > 0:
            made = settings.from_json(values)
            assert settings.from_json(json.loads(json.dumps(made.to_json()))) == made
        else:
            with pytest.raises(UsageError, match=r"(batch_size|learning_rate) must be .*, got"):
                settings.from_json(values)


def stored() -> list[tuple[type[Settings], dict[str, Any]]]:
    """Return the settings in every results file of the repository."""
    found: list[tuple[type[Settings], dict[str, Any]]] = []
    kinds = {"camouflage": Camouflage, "density": Density, "reconstruct": Reconstruct}
    for kind, settings in kinds.items():
        for path in (RESULTS / kind).rglob("*.json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            parts = [content, *content.get("cells", ())] if isinstance(content, dict) else []
            for part in parts:
                found += [(settings, part[name]) for name in ("configuration", "base") if name in part]
    return found


def test_settings_stored_by_earlier_versions_are_read() -> None:
    found = stored()
    assert len(found) > 10
    for settings, values in found:
        made = settings.from_json(values).to_json()
        assert {name: made[name] for name in values} == values
