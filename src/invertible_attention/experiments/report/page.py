"""A report as one HTML file that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from ..files import write_text
from .formatting import format_number, format_spread

__all__ = ["render_page", "write_page"]


def render_page(template: str, templates: Path | None = None, **context: Any) -> str:
    """Fill a template; values are escaped, a missing one is an error.

    Args:
        template: file name.
        templates: its folder; ``base.html`` and the shared pieces are found beside this module in any case.
        **context: what the template shows.
    """
    folders = [templates] if templates is not None else []
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent / "templates"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.filters["spread"] = format_spread
    return environment.get_template(template).render(**context)


def write_page(path: Path, template: str, templates: Path | None = None, **context: Any) -> None:
    """Fill a template and write it to ``path``, whole or not at all."""
    write_text(path, render_page(template, templates, **context))
