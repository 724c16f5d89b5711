"""Auditing trained networks block by block: the table, results.json and the report."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ...lipschitz.adversarial import adversarial_lipschitz
from ...lipschitz.audit import audit
from ...lipschitz.report import AuditReport
from ..files import finite, write_json
from ..metadata import run_metadata
from ..report import save_figures
from ..report.summary import print_run, write_run_page
from ..study import RunProgress
from ..study.folder import OutputFolder
from .audit_figure import draw_audit
from .blocks import Block, exact_branch
from .checkpoints import Subject, open_checkpoint
from .search import ALLOWANCE
from .settings import Audit
from .tables import AUDIT

__all__ = ["audit_block", "audit_checkpoint"]

OWNED = ("results.json", "report.html", "figures")
STARTS = 4
"""From how many inputs a block is attacked, at most."""
RATE = 0.05
"""Learning rate of the ascents."""


def audit_checkpoint(
    checkpoint: Path,
    settings: Audit,
    *,
    output: Path,
    data_dir: Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Audit every residual block of every network, print a table, and write results.json, a figure and report.html.

    Args:
        checkpoint: file or folder; see :func:`.checkpoints.open_checkpoint`.
        settings: how many inputs, the seed of the random directions of the estimates, and whether each block is
            attacked, in input, and in input and weights.
        output: folder for everything written.
        data_dir: local data, for networks whose inputs are not stored next to them.
        overwrite: delete an earlier audit in ``output`` first.
        console: where progress and the table are shown; the terminal by default.

    Returns:
        The content of results.json.

    Raises:
        ExperimentError: when the checkpoint or the folder cannot be used.
    """
    console = console or Console()
    configuration = {"checkpoint": checkpoint.name, **settings.to_json()}
    with (
        OutputFolder(output, configuration, overwrite=overwrite, owned=OWNED),
        RunProgress(1, console, unit="audit") as progress,
    ):
        progress.stage("opening", None)
        subjects = open_checkpoint(checkpoint, samples=settings.samples, data_dir=data_dir)
        advance = progress.stage("auditing blocks", sum(len(subject.blocks) for subject in subjects))
        rows: list[dict[str, Any]] = []
        for subject in subjects:
            for block in subject.blocks:
                rows.append(_row(subject, block, settings))
                advance(len(rows))
        results = {
            "schema": AUDIT.schema,
            "configuration": configuration,
            "allowance": ALLOWANCE,
            "blocks": rows,
            "run": run_metadata(),
        }
        figure = draw_audit(rows)
        write_json(output / "results.json", results)
        save_figures(output / "figures", [figure])
        write_run_page(output / "report.html", results)
        progress.finish_cell(f"{len(rows)} blocks audited")
    print_run(console, results, output, ["blocks", "ascents"])
    console.print(f"Report: {output / 'report.html'}", highlight=False, soft_wrap=True)
    return results


def audit_block(block: Block, *, seed: int = 0) -> dict[str, Any]:
    """Audit a block at its inputs, one after another, and return a summary as JSON values."""
    # One by one: with all of them at once the estimates would need many N×N matrices.
    reports = [audit(block.module, x, seed=seed) for x in block.x.split(1)]
    certificate = reports[0].certificate
    local = _values(reports, "lipschitz_estimate")
    largest = _largest(local)
    return {
        "samples": len(reports),
        "event_shape": list(reports[0].event_shape),
        "certificate": finite(certificate),
        "lipschitz_estimate": largest,
        "lipschitz_estimates": local,
        "contraction": "certified" if certificate < 1 else "here" if (largest or 2) < 1 else "no",
        "relative_error": _largest(_values(reports, "relative_error")),
        "residual": _largest(_values(reports, "residual")),
        "error_bound": _largest(_values(reports, "error_bound")),
        "smallest_stretch": min(_values(reports, "smallest_stretch"), default=None),
        "evaluations": _mean(_values(reports, "evaluations")),
        "recovered": sum(len(report.recovered) for report in reports),
        "said_to_fail": sum(len(report.failed) for report in reports),
        "silently_wrong": sum(len(report.silently_wrong) for report in reports),
        "second_preimages": sum(len(report.not_injective) for report in reports),
        "searched": any(report.searched for report in reports),
        "exceeds_certificate": sum(int(report.exceeds_certificate.sum()) for report in reports),
        "passed": all(report.passed for report in reports),
    }


def _row(subject: Subject, block: Block, settings: Audit) -> dict[str, Any]:
    row: dict[str, Any] = {
        "network": subject.name,
        "kind": subject.kind,
        "inputs": subject.inputs,
        "block": block.name,
    }
    row |= audit_block(block, seed=settings.seed)
    row["attack"] = _attack(block, settings) if settings.attack_steps and row["certificate"] else None
    return row


def _attack(block: Block, settings: Audit) -> dict[str, Any]:
    """Ascend the local Lipschitz constant in the input alone, and in the weights as well; keep the largest ratio."""
    limit = torch.tensor(float(block.module.lipschitz_bound().detach()), dtype=torch.float64)
    free: Any = copy.deepcopy(block.module.branch).double()
    attempts = {
        "input": (exact_branch(block.module), None, lambda: limit),
        "weights": (free, list(free.parameters()), free.lipschitz_bound),
    }
    # One by one: each ascent needs the Jacobian's derivative, and a large input fills the memory alone.
    starts = block.x[:STARTS].double().split(1)
    found = {}
    for name, (branch, parameters, bound) in attempts.items():
        ascents = []
        for x in starts:
            # In steps that fit the inputs' own scale.
            scale = float(x.square().mean().sqrt().clamp_min(1e-30)) if parameters is None else 1.0
            ascents.append(
                adversarial_lipschitz(
                    branch,
                    x,
                    steps=settings.attack_steps,
                    lr=RATE * scale,
                    parameters=parameters,
                    bound=bound,
                    generator=torch.Generator().manual_seed(settings.seed),
                )
            )
        worst = max(ascents, key=lambda result: result.ratio if result.ratio == result.ratio else math.inf)
        found[name] = {
            "ratio": finite(worst.ratio),
            "constant": finite(worst.constant),
            "bound": worst.bound,
            "ascents": len(ascents),
        }
    return found


def _values(reports: Sequence[AuditReport], name: str) -> list[float]:
    tensors = [getattr(report, name) for report in reports]
    return [
        float(value) for tensor in tensors if tensor is not None for value in tensor if math.isfinite(value)
    ]


def _largest(values: Sequence[float]) -> float | None:
    return max(values, default=None)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
