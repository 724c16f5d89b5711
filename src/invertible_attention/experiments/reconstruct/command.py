"""The command ``invertible-attention reconstruct``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ...cli.options import Job, Options, Output, Quick, flag, many
from ..errors import UsageError
from ..variants import Normalization, Response
from .configuration import LARGE, OWN_SIZE, QUICK, Configuration, Constraint

__all__ = ["reconstruct"]


class Given(
    Options,
    of=Configuration,
    otherwise={"with --own-size": OWN_SIZE, "above 64 pixels": LARGE, "with --quick": QUICK},
):
    """The settings of a run as options."""


@Parameter(name="*", show=False)
@dataclass(frozen=True)
class Combined:
    """What earlier versions combined to variants."""

    responses: Annotated[tuple[Response, ...], many("")] = ()
    constraints: Annotated[tuple[Constraint, ...], many("")] = ()
    normalizations: Annotated[tuple[Normalization, ...], many("", "--normalization")] = ()


def reconstruct(
    *,
    output: Output = Path("runs/reconstruct"),
    given: Given = Given(),
    combined: Combined = Combined(),
    job: Job = Job(),
    quick: Quick = False,
    reevaluate: Annotated[bool, flag("With --resume: invert trained networks again.")] = False,
) -> None:
    """Train invertible attention on images, invert it, and measure what comes back (Tables 2 and 5).

    One attention block on squeezed images is trained towards a fixed random target, then inverted on all test
    images. The output folder gets results.json, report.html, figures and checkpoints.

    Lists take several values:

        invertible-attention reconstruct --dataset cifar10 --variants gaussian/certified gaussian/released --repeats 1
    """
    chosen = given.given() | {name: values for name, values in vars(combined).items() if values}
    configuration = Configuration.choose(quick=quick, **chosen)
    if reevaluate and not job.resume:
        raise UsageError("--reevaluate is about an earlier run: give --resume too")

    from .run import divide_folder, run

    if configuration.dataset == "folder":
        fixed = ("train_images" in chosen, "test_images" in chosen)
        configuration = divide_folder(configuration, job.data_dir, fixed=fixed)
    run(configuration, output=output, reevaluate=reevaluate, **job.arguments())
