"""The command ``invertible-attention audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ...cli.options import DataDir, Output, Overwrite, Quick, Resume, Seed, Work, flag, number
from ..errors import UsageError

__all__ = ["audit"]

QUICK = {"configurations": 500, "networks": 3}


def audit(
    checkpoint: Annotated[
        Path | None, Parameter(help="model.safetensors, the folder it is in, or a run's folder.")
    ] = None,
    /,
    *,
    output: Output = Path("runs/audit"),
    attack: Annotated[bool, flag("Search for a local Lipschitz constant above its bound.")] = False,
    configurations: Annotated[
        int | None, number("Random layers to attack.", 0, show_default="10000; with --quick: 500")
    ] = None,
    networks: Annotated[
        int | None, number("Random residual networks to attack.", 0, show_default="20; with --quick: 3")
    ] = None,
    steps: Annotated[int, number("Steps of each gradient ascent of an attack.")] = 40,
    samples: Annotated[int, number("Inputs per trained network.")] = 8,
    data_dir: DataDir = None,
    work: Work = Work(),
    seed: Seed = 0,
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
    if checkpoint is None and not attack:
        raise UsageError("give a CHECKPOINT to audit, or --attack to search random layers")
    if checkpoint is not None:
        if configurations is not None or networks is not None or resume or work != Work():
            raise UsageError(
                "--configurations, --networks, --workers, --cluster and --resume are for --attack without a CHECKPOINT"
            )
        from .checkpoint_audit import audit_checkpoint

        audit_checkpoint(
            checkpoint,
            output=output,
            samples=min(samples, 2) if quick else samples,
            data_dir=data_dir,
            seed=seed,
            attack_steps=steps if attack else 0,
            overwrite=overwrite,
        )
        return
    from .campaign import Campaign, run_campaign
    from .search import Budget

    fewer = QUICK if quick else {}
    campaign = Campaign(
        fewer.get("configurations", 10_000) if configurations is None else configurations,
        fewer.get("networks", 20) if networks is None else networks,
        seed,
        Budget.of_steps(steps),
    )
    run_campaign(campaign, output=output, workers=work.pool(), resume=resume, overwrite=overwrite)
