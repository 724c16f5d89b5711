"""Reports: numbers, figures and self-contained HTML pages."""

from __future__ import annotations

from .figures import COLORS, Figure, image_grid, plot_style, render_png, save_figures
from .formatting import format_fixed, format_number, format_spread, mean_and_deviation, mean_and_error
from .page import render_page, write_page

__all__ = [
    "COLORS",
    "Figure",
    "format_fixed",
    "format_number",
    "format_spread",
    "image_grid",
    "mean_and_deviation",
    "mean_and_error",
    "plot_style",
    "render_page",
    "render_png",
    "save_figures",
    "write_page",
]
