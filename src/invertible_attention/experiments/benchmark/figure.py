"""Time and memory against the number of tokens, both axes logarithmic."""

from __future__ import annotations

from typing import Any

from ..published import RESPONSES as TITLES
from ..report import COLORS, Figure, plot_style, render_png
from .implementations import IMPLEMENTATIONS, RESPONSES

__all__ = ["draw"]

LABELS = {"auto": "this library", "reference": "N×N matrix", "sdpa": "fused softmax attention (SDPA)"}


def draw(results: dict[str, Any]) -> Figure:
    """Draw one column per response: time of a forward pass above, peak memory below."""
    from matplotlib.figure import Figure as Canvas

    kinds = [kind for kind in ("times", "memory") if results[kind]]
    with plot_style():
        canvas = Canvas(figsize=(10.5, 2.9 * len(kinds)))
        grid = canvas.subplots(len(kinds), len(RESPONSES), sharex=True, sharey="row", squeeze=False)
        for row, kind in zip(grid, kinds, strict=True):
            for axes, response in zip(row, RESPONSES, strict=True):
                _panel(axes, results, kind, response)
            row[0].set_ylabel("seconds, forward" if kind == "times" else "peak memory, MB")
        for axes, response in zip(grid[0], RESPONSES, strict=True):
            axes.set_title(TITLES[response])
        for axes in grid[-1]:
            axes.set_xlabel("tokens")
        handles, labels = grid[0][0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        png = render_png(canvas)
    caption = "Time and peak memory of one forward pass, one sample of 12 channels, normalized by column."
    description = (
        "Eight panels on logarithmic axes. The N×N matrix grows with the square of the tokens in time and memory; "
        "this library's memory grows linearly for every response, and its time almost linearly for Concatenation."
    )
    return Figure("attention", caption, description, png)


def _panel(axes: Any, results: dict[str, Any], kind: str, response: str) -> None:
    unit, scale = ("seconds", 1.0) if kind == "times" else ("bytes", 1e6)
    for implementation, color in zip(IMPLEMENTATIONS, COLORS, strict=False):
        points = sorted(
            (record["tokens"], record[unit] / scale)
            for record in results[kind]
            if record["response"] == response
            and record["contender"] == implementation
            and not record["backward"]
            and record["batch"] == 1
            and record[unit]
        )
        if points:
            axes.loglog(
                *zip(*points, strict=True), marker="o", ms=3, color=color, label=LABELS[implementation]
            )
    for record in results["released"]:
        if record["response"] == response:
            axes.loglog(
                record["tokens"],
                record[unit] / scale,
                "x",
                color="black",
                ms=7,
                ls="none",
                label="authors’ code",
            )
