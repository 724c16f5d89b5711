"""A report as one HTML file that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from .sources import describe

__all__ = ["render_page", "render_piece"]


def _environment(templates: Path | None = None) -> jinja2.Environment:
    folders = [templates] if templates is not None else []
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent / "templates"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["describe"] = describe
    return environment


def render_page(template: str, templates: Path | None = None, **context: Any) -> str:
    """Fill a template; values are escaped, a missing one is an error.

    Args:
        template: file name.
        templates: its folder; ``base.html`` and the shared pieces are found next to this module in any case.
        **context: what the template shows.
    """
    return _environment(templates).get_template(template).render(**context)


def render_piece(name: str, item: Any) -> str:
    """Return one of the shared pieces, a macro of ``pieces.html``, for an item."""
    module = _environment().get_template("pieces.html").make_module()
    return str(getattr(module, name)(item))
