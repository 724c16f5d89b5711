"""Tables of the density experiment, and of conditional densities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results_tables.markdown import Table, grid, provenance, read

__all__ = ["TABLES"]


def study(path: Path) -> str:
    """Compare the variants of a study with its first."""
    from invertible_attention.experiments.density.comparison import table_text

    content = read(path)
    _, _, text = table_text(content).partition("\n\n")
    return f"**{content['data']['title']}.** {text}\n{provenance(content.get('run'))}"


def conditional(path: Path) -> str:
    """Compare a flow that is given the class with one that is not."""
    content = read(path)
    head = [
        "seed",
        "flow",
        "bits per dimension",
        "standard error",
        "largest reconstruction error",
        "parameters",
    ]
    rows = [
        [
            seed,
            name,
            f"{run[name]['bits_per_dim']:.4f}",
            f"{run[name]['standard_error']:.4f}",
            f"{run[name]['largest_reconstruction_error']:.1e}",
            f"{run[name]['parameters']:,}",
        ]
        for seed, run in content["seeds"].items()
        for name in ("unconditional", "conditional")
    ]
    error = content["gain_standard_error_over_seeds"]
    gain = f"{content['gain']:.4f}" + ("" if error is None else f" ± {error:.4f} (standard error over seeds)")
    about = f"Paired gain {gain} bits per dimension. {content['data']}; {_lower(content['log_determinant'])}."
    return f"{grid(head, rows, text_columns=2)}\n\n*{about}* {provenance(content.get('metadata'))}"


def _lower(text: Any) -> str:
    return f"log-determinant {text}"


TABLES = (
    Table(
        "density",
        "density",
        ("study.json", "*/study.json", "*/*/study.json"),
        "invertible-attention density-study",
        study,
    ),
    Table(
        "conditional",
        "conditional",
        ("digits.json",),
        "python benchmarks/conditional_digits.py",
        conditional,
    ),
)
