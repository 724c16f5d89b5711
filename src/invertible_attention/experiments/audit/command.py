"""The command ``invertible-attention audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ...cli.options import DataDir, Options, Output, Overwrite, Quick, Resume, Work, flag
from ..errors import UsageError
from .settings import QUICK, QUICK_AUDIT, Audit, Campaign

__all__ = ["audit"]


class Audited(Options, of=Audit, only=("samples",), otherwise={"with --quick": QUICK_AUDIT}):
    """The settings of an audit as options, besides those that a search has, too."""


class Searched(Options, of=Campaign, otherwise={"with --quick": QUICK}):
    """The settings of a search as options."""


def audit(
    checkpoint: Annotated[
        Path | None, Parameter(help="model.safetensors, the folder it is in, or a run's folder.")
    ] = None,
    /,
    *,
    output: Output = Path("runs/audit"),
    attack: Annotated[bool, flag("Search for a local Lipschitz constant above its bound.")] = False,
    searched: Searched = Searched(),
    audited: Audited = Audited(),
    data_dir: DataDir = None,
    work: Work = Work(),
    quick: Quick = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure whether a trained network is really invertible, or attack the certificate itself.

    With a checkpoint, every residual block of what reconstruct, density or camouflage wrote: round-trip error, local
    Lipschitz constant, certificate, function evaluations, second preimages. With --attack, random layers of every
    kind, scale and precision are searched for one that exceeds its bound; with both, the search starts from the
    trained weights:

        invertible-attention audit runs/density --samples 16

    The output folder gets results.json, report.html and the figures.
    """
    given = searched.given()
    campaign = Campaign.from_json((QUICK if quick else {}) | given)
    if checkpoint is None:
        if not attack:
            raise UsageError("give a CHECKPOINT to audit, or --attack to search random layers")
        if audited.given() or data_dir is not None:
            raise UsageError("--samples and --data-dir are for a CHECKPOINT, not for random layers")
        from .campaign import run_campaign

        run_campaign(campaign, output=output, workers=work.pool(), resume=resume, overwrite=overwrite)
        return
    others = given | vars(work) | {"resume": resume or None}
    alone = [name for name, value in others.items() if value is not None and name not in ("steps", "seed")]
    if alone:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in alone)
        raise UsageError(f"only for --attack without a CHECKPOINT: {names}")
    from .checkpoint_audit import audit_checkpoint

    shared = {"seed": campaign.seed, "attack_steps": campaign.steps if attack else 0}
    settings = Audit.from_json((QUICK_AUDIT if quick else {}) | audited.given() | shared)
    audit_checkpoint(checkpoint, settings, output=output, data_dir=data_dir, overwrite=overwrite)
