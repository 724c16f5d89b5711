"""Reports: tables, figures and pages, defined once per kind of result and rendered in every form."""

from __future__ import annotations

from .figures import COLORS, Figure, FigureKind, image_grid, plot_style, render_png, save_figures
from .formatting import (
    format_error,
    format_fixed,
    format_number,
    format_percent,
    format_ratio,
    format_spread,
    format_value,
    mean_and_deviation,
    mean_and_error,
)
from .kinds import Definition, Kind, Result
from .page import render_page
from .section import Picture, Section, stored_pictures
from .sources import Source
from .table import Column, Line, Row, RowGroup, Table, settings_table, tabulate

__all__ = [
    "COLORS",
    "Column",
    "Definition",
    "Figure",
    "FigureKind",
    "Kind",
    "Line",
    "Picture",
    "Result",
    "Row",
    "RowGroup",
    "Section",
    "Source",
    "Table",
    "format_error",
    "format_fixed",
    "format_number",
    "format_percent",
    "format_ratio",
    "format_spread",
    "format_value",
    "image_grid",
    "mean_and_deviation",
    "mean_and_error",
    "plot_style",
    "render_page",
    "render_png",
    "save_figures",
    "settings_table",
    "stored_pictures",
    "tabulate",
]
