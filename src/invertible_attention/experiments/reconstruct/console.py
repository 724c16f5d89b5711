"""What a reconstruction run shows on the terminal: progress while it works, a table when it is done."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ..progress import RunProgress
from ..published import RESPONSES
from .results import Group, groups

__all__ = ["RunProgress", "print_summary"]


def print_summary(console: Console, results: dict[str, Any]) -> None:
    """Print the table of the run beside the paper's numbers."""
    published = results["published"]
    table = Table(title=f"Reconstruction of {results['data']['title']}", title_justify="left")
    table.add_column("response")
    table.add_column("constraint")
    for name in ("MSE", "SSIM", "V-score %", "converged %", "evaluations", "local Lipschitz"):
        table.add_column(name, justify="right")
    for response, entries in groups(results).items():
        if published is not None:
            paper = published["rows"][response]
            table.add_row(RESPONSES[response], "paper", *_paper(paper), "", "", "", style="dim")
        for entry in entries:
            table.add_row(RESPONSES[response], entry.label, *_measured(entry))
        table.add_section()
    console.print(table)


def _paper(row: dict[str, float]) -> tuple[str, str, str]:
    return f"{row['mse']:.4g}", f"{row['ssim']:.3f}", f"{row['v_score']:.1f}"


def _measured(entry: Group) -> tuple[str, ...]:
    return (entry.mse, entry.ssim, entry.v_score, entry.converged, entry.evaluations, entry.local_lipschitz)
