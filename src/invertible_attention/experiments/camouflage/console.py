"""The scores of maps on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from .evaluation import Evaluation
from .metrics import CONVENTIONS, MEASURES

__all__ = ["print_evaluation"]

METHOD_MEASURES = ("s_measure", "mean_f", "mean_e", "mae", "weighted_f", "max_f")
"""What fits on a line next to a method's name; the file of scores has every measure."""

NAMED = 5
"""How many skipped files are named."""


def print_evaluation(console: Console, found: Evaluation) -> None:
    """Print every measure of some datasets, of how many images they are, and what was skipped or scaled."""
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
        ("Skipped", found.left_out),
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


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table
