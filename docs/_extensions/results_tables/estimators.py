"""Tables of the log-determinant estimators: bias, spread and cost beside the exact value."""

from __future__ import annotations

from pathlib import Path

from results_tables.markdown import Table, grid, large, provenance, read

__all__ = ["TABLES"]


def costs(path: Path) -> str:
    """Bias, spread and time of each estimator on one certified layer."""
    content = read(path)
    head = [
        "estimator",
        "mean error",
        "standard error of it",
        "spread of one call",
        "evaluation",
        "training step",
    ]
    rows = [
        [
            f"`{row['estimator']}`",
            f"{row['mean_error']:+.4f}",
            f"{row['standard_error']:.4f}",
            large(row["deviation"]),
            f"{row['evaluation_relative']:.1f} ×",
            f"{row['training_relative']:.1f} ×",
        ]
        for row in content["rows"]
    ]
    more = (
        f"nats per sample of {content['dim']} values, exact log-determinant {content['exact']:.3f}; processor times "
        "in forward passes of the same layer"
    )
    return f"{grid(head, rows)}\n\n{provenance(content['run'], more=more)}"


TABLES = (Table("logdet", "logdet", ("results.json",), "python benchmarks/logdet.py", costs),)
