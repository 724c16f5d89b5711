"""What a context is worth: densities of the same images without and with their class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..report import format_number
from .content import Row, RowGroup, Section, Source, Table
from .recognition import Result

__all__ = ["sections"]

KINDS = ("unconditional", "conditional")
COLUMNS = ("", "bits/dim", "largest reconstruction error", "parameters")


def sections(results: Sequence[Result]) -> list[Section]:
    """Return one section per conditional density."""
    return [_section(result) for result in results]


def _section(result: Result) -> Section:
    content = result.content
    several = "seeds" in content
    runs: dict[str, Any] = content["seeds"] if several else {str(content["arguments"]["seed"]): content}
    source = _source(result, [int(seed) for seed in runs])
    gain = content["gain"] if several else content["gain_bits_per_dim"]
    error = content["gain_standard_error_over_seeds" if several else "gain_standard_error"]
    over = "over seeds" if several else "over images"
    spread = "" if error is None else f" ± {error:.4f} (standard error {over})"
    lead = (
        f"Knowing the class saves {gain:.4f}{spread} bits per dimension with the same number of parameters, on "
        f"{content['data']}."
    )
    groups = tuple(
        RowGroup(f"seed {seed}" if several else "", tuple(_rows(run))) for seed, run in runs.items()
    )
    caption = (
        "Bits per dimension with and without the class as context, with their standard errors over images; "
        f"log-determinants {content['log_determinant']}."
    )
    return Section(
        f"Conditional density ({result.name})",
        lead=[lead],
        tables=[Table(caption, COLUMNS, groups, (source,))],
        notes=["The paper has no conditional density."],
    )


def _source(result: Result, seeds: list[int]) -> Source:
    content = result.content
    if "metadata" in content:
        return Source.of_runs(result.name, "conditional density", [content["metadata"]], seeds=seeds)
    machine = f"{content['machine']}, torch {content['torch']}"
    return Source(result.name, "conditional density", (), tuple(seeds), machine)


def _rows(run: dict[str, Any]) -> Iterable[Row]:
    for kind in KINDS:
        values = run[kind]
        error = values["standard_error"]
        yield Row(
            (
                kind,
                f"{values['bits_per_dim']:.4f}" + ("" if error is None else f" ± {error:.4f}"),
                format_number(values["largest_reconstruction_error"], 2),
                f"{values['parameters']:,}",
            ),
            "certified" if kind == "conditional" else "",
        )
