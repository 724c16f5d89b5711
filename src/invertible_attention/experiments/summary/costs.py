"""What networks and solves cost: the detector of Table 4 at its full size, and compiled solves beside eager ones."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..camouflage.models import MODELS
from ..report import format_number
from .content import Row, RowGroup, Section, Source, Table
from .recognition import Result

__all__ = ["sections"]


def sections(results: Sequence[Result]) -> list[Section]:
    """Return one section per measurement."""
    return [
        _detectors(result) if result.kind == "camouflage-measure" else _compiled(result) for result in results
    ]


def _detectors(result: Result) -> Section:
    content = result.content
    settings = content["configuration"]
    what = f"{settings['backbone']} at {settings['size']}×{settings['size']}"
    # The weights are drawn with seed 0, the images too.
    source = Source.of_runs(result.name, f"cost of the detector, {what}", [content["run"]], seeds=[0])
    rows = tuple(
        Row(
            (
                MODELS[model["model"]].title,
                f"{model['parameters']:,}",
                format_number(statistics.median(model["step_seconds"])),
                format_number(model["evaluation_seconds"]),
                format_number(model["step_mib"], 4),
                format_number(model["evaluation_mib"], 4),
            ),
            MODELS[model["model"]].constraint or "",
        )
        for model in content["models"]
    )
    caption = (
        f"Time and peak memory of one training step and one evaluation of the detector, {what}, batches of "
        f"{settings['batch_size']}, {settings['weights']} weights."
    )
    columns = ("", "parameters", "step, s", "evaluation, s", "step, MiB", "evaluation, MiB")
    return Section(
        f"Cost of the detector, {what}", tables=[Table(caption, columns, (RowGroup("", rows),), (source,))]
    )


def _compiled(result: Result) -> Section:
    content = result.content
    source = Source.of_runs(result.name, "compiled solves", [content["metadata"]], seeds=[0])
    rows = tuple(
        Row(
            (
                name,
                format_number(case["eager_ms"]),
                format_number(case["compiled_ms"]),
                f"{case['ratio']:.2f}×",
                format_number(case["difference"], 2),
            )
        )
        for name, case in content["cases"].items()
    )
    caption = (
        f"Solves as they are and compiled, in the same run: {content['what']}, {content['repeats']} repeats."
    )
    columns = ("", "eager, ms", "compiled, ms", "ratio", "largest difference")
    return Section(
        f"Compiled solves: {result.name}", tables=[Table(caption, columns, (RowGroup("", rows),), (source,))]
    )
