"""The results as HTML, self-contained: every picture is inside."""

from __future__ import annotations

from html import escape
from pathlib import Path

from ..report import Figure, render_page
from .computation import Outcome
from .drawing import draw_constants, draw_pictures, draw_residuals, draw_scale
from .words import TITLES, headline, honesty, table

__all__ = ["render_attention", "render_error", "render_results"]

TEMPLATES = Path(__file__).parent / "templates"


def render_results(outcome: Outcome) -> str:
    """Return everything about both networks."""
    sides = (outcome.chosen, outcome.other)
    return render_page(
        "results.html",
        TEMPLATES,
        headline=headline(outcome),
        good=[side.recovered for side in sides],
        sides=[(side.constraint, TITLES[side.constraint]) for side in sides],
        pictures=draw_pictures(outcome),
        scale=draw_scale(),
        constants=draw_constants(outcome),
        residuals=draw_residuals(outcome),
        table=table(outcome),
        honesty=honesty(outcome),
    )


def render_attention(figure: Figure) -> str:
    """Return the map of where a pixel attends."""
    return render_page("attention.html", TEMPLATES, figure=figure)


def render_error(message: str) -> str:
    """Return a message that screen readers speak at once.

    Example:
        >>> render_error("this is <not> a picture")
        '<div class="ia-error" role="alert">This is &lt;not&gt; a picture.</div>'
    """
    sentence = message[:1].upper() + message[1:]
    return f'<div class="ia-error" role="alert">{escape(sentence.rstrip("."))}.</div>'
