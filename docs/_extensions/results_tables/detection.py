"""Tables of the camouflaged object detection experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results_tables.markdown import Table, fixed, grid, provenance, read

__all__ = ["TABLES"]

MEASURES = {"s_measure": "S ↑", "mean_f": "F ↑", "mean_e": "E ↑", "mae": "MAE ↓"}


def scores(path: Path) -> str:
    """One table per dataset tested on: means over seeds."""
    content = read(path)
    datasets = dict.fromkeys(name for row in content["summary"] for name in row["scores"])
    parts = []
    for dataset in datasets:
        rows = [
            [
                row["title"],
                str(len(row["seeds"])),
                *(_cell(row["scores"][dataset].get(name)) for name in MEASURES),
            ]
            for row in content["summary"]
            if dataset in row["scores"]
        ]
        parts += [f"**{dataset}**", grid(["attention", "seeds", *MEASURES.values()], rows)]
    return "\n\n".join([*parts, provenance(content.get("run"))])


def audits(path: Path) -> str:
    """How many test images each invertible module of the trained networks gives back, by level."""
    content = read(path)
    audited = [cell for cell in content["cells"] if cell.get("audit")]
    levels = sorted({level for cell in audited for level in cell["audit"]})
    rows = []
    for cell in audited:
        found = [cell["audit"].get(level) for level in levels]
        known = [level for level in found if level is not None]
        rows.append(
            [
                _title(content, cell["model"]),
                str(cell["seed"]),
                *("–" if level is None else f"{level['recovered']} of {level['images']}" for level in found),
                f"{max(level['local_lipschitz_largest'] for level in known):.2f}",
                fixed(known[0]["certificate"], 1),
            ]
        )
    head = ["attention", "seed", *(f"level {level}" for level in levels), "largest local constant", "bound"]
    return f"{grid(head, rows)}\n\n{provenance(content.get('run'))}"


def _title(content: dict[str, Any], model: str) -> str:
    return next(row["title"] for row in content["summary"] if row["model"] == model)


def costs(path: Path) -> str:
    """Time and memory of a training step, by attention."""
    content = read(path)
    head = ["attention", "parameters", "training step, s", "evaluation, s", "peak memory of a step, MiB"]
    rows = [
        [
            model["model"],
            f"{model['parameters']:,}",
            f"{min(model['step_seconds']):.1f}",
            f"{model['evaluation_seconds']:.1f}",
            f"{model['step_mib']:,.0f}",
        ]
        for model in content["models"]
    ]
    settings = content["configuration"]
    size = f"{settings['size']}×{settings['size']}"
    more = f"{settings['backbone']} with {settings['weights']} weights, {size}, batches of {settings['batch_size']}, "
    more += f"attention at levels {', '.join(map(str, settings['levels']))}"
    return f"{grid(head, rows)}\n\n{provenance(content['run'], more=more)}"


def _cell(score: dict[str, float | None] | None) -> str:
    if not score or score["mean"] is None:
        return "–"
    spread = "" if score.get("deviation") is None else f" ± {score['deviation']:.3f}"
    return f"{score['mean']:.3f}{spread}"


TABLES = (
    Table(
        "camouflage",
        "camouflage",
        ("results.json", "*/results.json"),
        "invertible-attention camouflage study",
        scores,
    ),
    Table(
        "camouflage-audits",
        "camouflage",
        ("results.json", "*/results.json"),
        "invertible-attention camouflage study",
        audits,
    ),
    Table(
        "camouflage-costs",
        "camouflage",
        ("resnet50-352.json",),
        "invertible-attention camouflage measure",
        costs,
    ),
)
