"""The commands ``density study`` and ``density table``: many densities on the same data and budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ...cli.options import Job, Options, Output, Quick, many, number
from .configuration import DIGITS, QUICK, QUICK_STUDY, TIMED, Configuration
from .options import OTHERWISE, Draws
from .variants import FAIR_STUDY, TABLE_3

__all__ = ["study", "table"]

Seeds = Annotated[int, number("Seeds per variant, counted from --seed.")]
VARIED = ("attention", "constraint", "affine", "width", "heads", "position_prior", "attention_after")
BUDGET = ("steps", "decay", "evaluate_every")
MINUTES = {"minutes": 3.0}


class Shared(
    Options,
    of=Configuration,
    without=VARIED,
    defaults={"dataset": "digits"},
    otherwise=OTHERWISE | {"with --quick": QUICK | {"steps": QUICK_STUDY["steps"]}},
):
    """The settings that all variants share."""


class Timed(
    Options,
    of=Configuration,
    without=(*VARIED, *BUDGET),
    defaults={"dataset": "digits"},
    otherwise={"digits": DIGITS, "in a table": MINUTES | TIMED, "with --quick": QUICK | QUICK_STUDY},
):
    """The settings that all rows share, where time is the budget."""


def study(
    *,
    output: Output = Path("runs/density-study"),
    variants: Annotated[
        tuple[str, ...],
        many(
            "What to compare; the first is the reference: none, concatenation/certified, gaussian/relaxed/heads=4, "
            "dot_product/certified/position/after=0:0+0:-1, made, maf, …",
            show_default="none and the four responses, certified and relaxed",
        ),
    ] = FAIR_STUDY,
    seeds: Annotated[
        int | None, number("Seeds per variant, counted from --seed.", show_default="3; with --quick 1")
    ] = None,
    job: Job = Job(),
    given: Shared = Shared(),
    draws: Draws = 4,
    quick: Quick = False,
) -> None:
    """Train every variant with every seed and compare them, paired by seed, with the first.

    A variant is a model or a response, a constraint, and settings, divided by ``/``:

        invertible-attention density study --variants none concatenation/certified/heads=2 maf --seeds 5 --workers 4

    With ``--resume``, variants and seeds are added to a study, of which a folder with its study.json is enough.
    """
    fewer = {"steps": QUICK_STUDY["steps"]} if quick else {}
    seeds = (1 if quick else 3) if seeds is None else seeds
    base = Configuration.choose(quick=quick, **fewer | given.given() | {"attention": "none"})
    from .study import run_study

    run_study(base, variants, seeds=seeds, output=output, draws=draws, **job.arguments())


def table(
    *,
    output: Output = Path("runs/density-table"),
    variants: Annotated[
        tuple[str, ...],
        many(
            "Rows of the table; the first is the reference.",
            show_default="i-ResNet, the paper's Table 3, Residual Flow and attention that is invertible by order",
        ),
    ] = TABLE_3,
    seeds: Seeds = 1,
    job: Job = Job(),
    given: Timed = Timed(),
    draws: Draws = 4,
    quick: Quick = False,
) -> None:
    """Train every row of Table 3, some of zuko and normflows, on the same data for the same time.

    Rows differ in what a step takes: they are compared at equal time, and at the steps of the slowest. A size of one's
    own is part of a row:

        invertible-attention density table --variants none glow/blocks=8+8+8 maf/hidden_channels=512 --minutes 5
    """
    # Time is the budget; a row of few operators takes many steps.
    budget = {"attention": "none", "steps": 1_000_000, "decay": False, "evaluate_every": 0}
    time = {"minutes": QUICK_STUDY["minutes"]} if quick else MINUTES
    base = Configuration.choose(quick=quick, **time | given.given() | budget)
    from .study import run_study

    run_study(base, variants, seeds=seeds, output=output, draws=draws, **job.arguments())
