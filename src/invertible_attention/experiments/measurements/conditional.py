"""What a context is worth: densities of the same images without and with their class."""

from __future__ import annotations

from ..report import (
    Column,
    Definition,
    Kind,
    Line,
    Result,
    Section,
    Source,
    format_error,
    format_number,
    settings_table,
    tabulate,
)

__all__ = ["DEFINITION"]

FLOWS = ("unconditional", "conditional")
COLUMNS = (
    Column("bits/dim", lambda flow: format_error(flow["bits_per_dim"], flow["standard_error"])),
    Column(
        "largest reconstruction error", lambda flow: format_number(flow["largest_reconstruction_error"], 2)
    ),
    Column("parameters", lambda flow: f"{flow['parameters']:,}"),
    Column("CPU s", lambda flow: format_number(flow["cpu_seconds"])),
)


def _section(result: Result) -> Section:
    content = result.content
    seeds = content["seeds"]
    source = Source.of_runs(result.name, "conditional density", [content["run"]], seeds=map(int, seeds))
    gain = format_error(content["gain"], content["gain_standard_error_over_seeds"])
    totals = content["bits_per_dim"]
    lead = (
        f"Knowing the class saves {gain} bits per dimension (standard error over seeds; over images "
        f"{content['gain_standard_error_over_images']:.4f}) with the same number of parameters, on {content['data']}: "
        f"{totals['conditional']:.4f} instead of {totals['unconditional']:.4f}, {content['ratio']:.4f} of it."
    )
    gains = "; ".join(
        f"seed {seed} {format_error(run['gain'], run['standard_error_over_images'])}"
        for seed, run in seeds.items()
    )
    lines: dict[str, list[Line]] = {
        f"seed {seed}": [(flow, run[flow], "certified" if flow == "conditional" else "") for flow in FLOWS]
        for seed, run in seeds.items()
    }
    caption = (
        "Bits per dimension with and without the class as context, with their standard errors over images; "
        f"log-determinants {content['log_determinant']}. Gains: {gains}."
    )
    return Section(
        f"Conditional density ({result.name})",
        lead=[lead],
        tables=[
            tabulate("flows", caption, COLUMNS, lines, (source,)),
            settings_table({result.name: content["settings"]}, (source,)),
        ],
        notes=["The paper has no conditional density."],
    )


DEFINITION = Definition.of_each(
    Kind("conditional", "conditional density", "python benchmarks/conditional_digits.py"), _section, place=3
)
