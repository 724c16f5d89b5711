"""The results of a run: gathered from its networks, summarized over seeds, next to the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..metadata import run_metadata
from ..published import TABLE_4_DATASETS
from ..report import format_fixed, mean_and_deviation
from .configuration import Configuration
from .metrics import MEASURES
from .models import MODELS, STUDY, Model

__all__ = ["SCHEMA", "TABLE_MEASURES", "Row", "collect", "datasets", "rows"]

SCHEMA = "invertible-attention/camouflage/2"

TABLE_MEASURES = {"s_measure": "s_measure", "mean_f": "f_measure", "mean_e": "e_measure", "mae": "mae"}
"""Table 4's columns: our name of the measure, and the published row's."""


def collect(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of results.json."""
    ordered = sorted(map(_portable, cells), key=lambda cell: (_place(cell["model"]), cell["seed"]))
    return {
        "schema": SCHEMA,
        "configuration": ordered[0]["configuration"] if ordered else {},
        "run": run_metadata(),
        "summary": [row.to_json() for row in _rows(ordered)],
        "cells": ordered,
    }


def _portable(cell: dict[str, Any]) -> dict[str, Any]:
    return cell | {"configuration": Configuration.from_json(cell["configuration"]).portable()}


@dataclass(frozen=True)
class Row:
    """The networks of one model, one per seed."""

    name: str
    cells: tuple[dict[str, Any], ...]

    @property
    def model(self) -> Model:
        """Which attention it has."""
        return MODELS[self.name]

    @property
    def title(self) -> str:
        """What it is called in tables."""
        return self.model.title

    @property
    def scored(self) -> tuple[dict[str, Any], ...]:
        """The networks whose training did not diverge."""
        return tuple(cell for cell in self.cells if "scores" in cell)

    @property
    def diverged(self) -> int:
        """How many trainings diverged."""
        return len(self.cells) - len(self.scored)

    def values(self, dataset: str, measure: str) -> list[float]:
        """Return a measure of every seed's network on a dataset; empty where it was not tested, or not measured."""
        scores = [cell["scores"][dataset] for cell in self.scored if dataset in cell["scores"]]
        return [values[measure] for values in scores if measure in values]

    def by_seed(self, dataset: str, measure: str) -> dict[int, float]:
        """Return a measure on a dataset by the network's seed; empty where it was not tested."""
        return {
            cell["seed"]: cell["scores"][dataset][measure]
            for cell in self.scored
            if dataset in cell["scores"]
        }

    def text(self, dataset: str, measure: str, decimals: int = 3) -> str:
        """Return mean and deviation over seeds."""
        return format_fixed(self.values(dataset, measure), decimals)

    def curve(self, dataset: str, name: str) -> list[float] | None:
        """Return a curve, the mean over seeds."""
        curves = [cell["scores"][dataset][name] for cell in self.scored if dataset in cell["scores"]]
        if not curves:
            return None
        return [sum(column) / len(curves) for column in zip(*curves, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Return means and deviations over seeds."""
        tested = dict.fromkeys(name for cell in self.scored for name in cell["scores"])
        scores = {
            dataset: {
                measure: dict(
                    zip(("mean", "deviation"), mean_and_deviation(self.values(dataset, measure)), strict=True)
                )
                for measure in MEASURES
            }
            for dataset in tested
        }
        return {
            "model": self.name,
            "title": self.title,
            "seeds": [cell["seed"] for cell in self.cells],
            "diverged": self.diverged,
            "parameters": self.scored[0]["parameters"] if self.scored else None,
            "training_seconds": [cell["training"]["seconds"] for cell in self.scored],
            "scores": scores,
        }


def rows(results: dict[str, Any]) -> list[Row]:
    """Return the rows of a results.json, seeds together, in the order of the table."""
    return _rows(results["cells"])


def datasets(results: dict[str, Any]) -> list[str]:
    """Return the datasets tested on: the paper's first, in its order."""
    tested = {name for cell in results["cells"] for name in cell.get("scores", {})}
    return [name for name in TABLE_4_DATASETS if name in tested] + sorted(tested - set(TABLE_4_DATASETS))


def _rows(cells: Sequence[dict[str, Any]]) -> list[Row]:
    names = sorted({cell["model"] for cell in cells}, key=_place)
    return [Row(name, tuple(cell for cell in cells if cell["model"] == name)) for name in names]


def _place(name: str) -> int:
    return STUDY.index(name) if name in STUDY else len(STUDY) + list(MODELS).index(name)
