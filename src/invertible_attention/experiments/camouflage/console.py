"""The table a camouflage run leaves on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from .evaluation import Evaluation
from .metrics import CONVENTIONS, MEASURES
from .results import TABLE_MEASURES, datasets, rows

if TYPE_CHECKING:
    from .measure import Measurement

__all__ = ["print_evaluation", "print_measurements", "print_summary"]

METHOD_MEASURES = ("s_measure", "mean_f", "mean_e", "mae", "weighted_f", "max_f")
"""What fits on a line beside a method's name; the file of scores has every measure."""

NAMED = 5
"""How many files that were left out are named."""


def print_summary(console: Console, results: dict[str, Any]) -> None:
    """Print Table 4's measures of every row, the paper's numbers below them."""
    for dataset in datasets(results):
        table = _table(dataset, [MEASURES[name] for name in TABLE_MEASURES])
        for row in rows(results):
            if row.values(dataset, "mae"):
                table.add_row(row.title, *(row.text(dataset, measure) for measure in TABLE_MEASURES))
            if (paper := row.published(dataset)) is not None:
                values = [f"{getattr(paper, key):.3f}" for key in TABLE_MEASURES.values()]
                table.add_row("  paper", *values, style="dim")
        console.print(table)


def print_evaluation(console: Console, found: Evaluation) -> None:
    """Print every measure of some datasets, of how many images they are, and what was left out or scaled."""
    labels = {name: name.rpartition("/") for name in found.scores}
    for dataset in dict.fromkeys(dataset for method, _, dataset in labels.values() if method):
        table = _table(dataset, [MEASURES[name] for name in METHOD_MEASURES] + ["images"])
        for label, (method, _, own) in labels.items():
            if method and own == dataset:
                values = [f"{getattr(found.scores[label], name):.3f}" for name in METHOD_MEASURES]
                table.add_row(method, *values, str(found.images[label]))
        console.print(table)
    if names := [name for name, (method, _, _) in labels.items() if not method]:
        table = _table("", names)
        for measure, title in MEASURES.items():
            table.add_row(title, *(f"{getattr(found.scores[name], measure):.3f}" for name in names))
        table.add_row("images scored", *(str(found.images[name]) for name in names))
        console.print(table)
    resized = [item for items in found.resized.values() for item in items]
    for title, items in (
        ("Left out", found.left_out),
        ("Not scored", found.unmatched),
        ("Scaled to their masks", resized),
    ):
        if items:
            named = "; ".join(str(item) for item in items[:NAMED])
            more = f"; and {len(items) - NAMED} more" if len(items) > NAMED else ""
            _print_line(console, f"{title}, {len(items)}: {named}{more}")
    for name, convention in CONVENTIONS.items():
        _print_line(console, f"{name}: {convention}", style="dim")


def _print_line(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True, style=style)


def print_measurements(console: Console, found: Sequence[Measurement], titles: Mapping[str, str]) -> None:
    """Print what every model costs."""
    table = _table("", ["parameters", "step, s", "peak, MiB", "evaluation, s", "peak, MiB"])
    for item in found:
        # The first step does some things only once.
        steps = item.step_seconds[1:] or item.step_seconds
        table.add_row(
            titles[item.model],
            f"{item.parameters:,}",
            f"{sum(steps) / len(steps):.2f}",
            f"{item.step_mib:.0f}",
            f"{item.evaluation_seconds:.2f}",
            f"{item.evaluation_mib:.0f}",
        )
    console.print(table)


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table
