"""The command ``invertible-attention audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...cli.arguments import DataDir, Implementation, Output, Overwrite, Quick, Resume, Seed
from ...cli.checks import check_folders, check_resume

__all__ = ["COMMAND", "audit"]

HELP = """Measure whether a trained network is really invertible, or attack the certificate itself.

audit CHECKPOINT looks at every residual block of what reconstruct, density or camouflage wrote: round-trip error, \
local Lipschitz constant, certificate, evaluations, second preimages.

audit --attack searches random layers of every kind, scale and precision for one that exceeds its bound, and \
audit CHECKPOINT --attack does the same from trained weights.

The output folder gets results.json, report.html and the figures."""

QUICK = (500, 3)


def audit(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="model.safetensors, the folder it is in, or a run's folder.",
            show_default=False,
        ),
    ] = None,
    output: Output = Path("runs/audit"),
    attack: Annotated[
        bool, typer.Option("--attack", help="Search for a local Lipschitz constant above its bound.")
    ] = False,
    configurations: Annotated[
        int | None, typer.Option(min=0, help="Random layers to attack.", show_default="10000")
    ] = None,
    networks: Annotated[
        int | None, typer.Option(min=0, help="Random residual networks to attack.", show_default="20")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each gradient ascent of an attack.")] = 40,
    samples: Annotated[int, typer.Option(min=1, help="Inputs per trained network.")] = 8,
    data_dir: DataDir = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes of the search.")] = 1,
    seed: Seed = 0,
    quick: Quick = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Audit or attack as the options say."""
    if checkpoint is None and not attack:
        raise typer.BadParameter("give a CHECKPOINT to audit, or --attack to search random layers")
    check_resume(resume, overwrite)
    check_folders(data_dir)
    if checkpoint is not None:
        if configurations is not None or networks is not None or resume or jobs != 1:
            raise typer.BadParameter(
                "--configurations, --networks, --jobs and --resume are for --attack without a CHECKPOINT"
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

    chosen = QUICK if quick else (10_000, 20)
    try:
        campaign = Campaign(
            chosen[0] if configurations is None else configurations,
            chosen[1] if networks is None else networks,
            seed,
            Budget.of_steps(steps),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    run_campaign(campaign, output=output, jobs=jobs, resume=resume, overwrite=overwrite)


COMMAND = Implementation(audit, help=HELP)
