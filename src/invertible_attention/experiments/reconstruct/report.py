"""The report of a run: figures as PNG, and one HTML page that holds everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import write_text
from ..published import RESPONSES
from ..report import Figure, format_fixed, format_number, format_spread, render_page, save_figures
from .figures import draw_figures
from .findings import findings, headline
from .results import Group, groups

__all__ = ["report_page", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"


def write_report(output: Path, results: dict[str, Any]) -> Path:
    """Write ``figures/*.png`` and ``report.html`` for the run in ``output``; return the page's path."""
    figures = draw_figures(output, results)
    save_figures(output / "figures", list(figures.values()))
    path = output / "report.html"
    write_text(path, report_page(results, figures))
    return path


def report_page(results: dict[str, Any], figures: dict[str, Figure]) -> str:
    """Return the report as HTML."""
    by_response = groups(results)
    released = [g for entries in by_response.values() for g in entries if g.constraint == "released"]
    return render_page(
        "reconstruct.html",
        TEMPLATES,
        results=results,
        settings=results["configuration"],
        published=results["published"],
        headline=headline(results),
        errors=[(RESPONSES[name], _errors(name, entries, results)) for name, entries in by_response.items()],
        inverses=[(RESPONSES[name], [_inverse(g) for g in entries]) for name, entries in by_response.items()],
        weights=[_weights(group) for group in released],
        findings=findings(results),
        figures=figures,
        # Images that only have CelebA's format are compared with its numbers, which has to be said.
        standing_in=results["published"] is not None and results["configuration"]["title"] is not None,
    )


def _errors(response: str, entries: list[Group], results: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    if results["published"] is not None:
        paper = results["published"]["rows"][response]
        numbers = [format_number(paper["mse"], 5), f"{paper['ssim']:.3f}", f"{paper['v_score']:.1f}"]
        rows.append(
            {"source": f"paper, {results['published']['table']}", "kind": "paper", "numbers": numbers}
        )
    for group in entries:
        if group.constraint == "released":
            rows.append({"source": "authors’ code, rerun", "kind": "released", "numbers": _scores(group)})
            rows.append(
                {"source": "… clamped as theirs", "kind": "released", "numbers": _scores(group, "_clamped")}
            )
        else:
            rows.append({"source": group.label, "kind": group.constraint, "numbers": _scores(group)})
    return rows


def _scores(group: Group, suffix: str = "") -> list[str]:
    def values(name: str) -> list[float | None]:
        return group.values("reconstruction", name + suffix)

    mse = format_spread(values("mse"), missing="∞")
    if group.non_finite and not suffix:
        mse = f"{mse} ({group.non_finite} images)"
    numbers = [mse, format_fixed(values("ssim"), 3), format_fixed(values("v_score"), 1)]
    if suffix:
        return [*numbers, "", "", ""]
    inverse = [
        format_fixed([None if value is None else 100 * value for value in group.values("inverse", name)], 1)
        for name in ("converged_share", "elsewhere_share")
    ]
    return [*numbers, *inverse, format_fixed(group.values("inverse", "evaluations_mean"), 1)]


def _inverse(group: Group) -> dict[str, Any]:
    above = group.mean("study", "local_lipschitz", "above_one_share") or 0.0
    return {
        "source": group.label,
        "kind": group.constraint,
        "numbers": [
            format_number(group.largest("inverse", "residual_max"), 2, missing="∞"),
            format_number(group.largest("inverse", "error_max"), 2, missing="∞"),
            format_number(group.largest("inverse", "error_bound_max"), 2, missing="none"),
            format_number(group.largest("study", "lipschitz_bound"), missing="none"),
            format_number(group.mean("study", "local_lipschitz", "median"), missing="∞"),
            format_number(group.largest("study", "local_lipschitz", "largest"), missing="∞"),
            f"{100 * above:.0f}",
            format_number(group.mean("training", "seconds")),
            format_number(group.mean("inverse", "seconds")),
        ],
    }


def _weights(group: Group) -> dict[str, Any]:
    def measured(name: str) -> float | None:
        return group.mean("study", "weights", name)

    return {
        "title": RESPONSES[group.response],
        "numbers": [
            f"{100 * (measured('negative_share') or 0):.1f}",
            f"{100 * (measured('mixed_share') or 0):.1f}",
            format_number(measured("cancellation_median"), missing="∞"),
            format_number(group.largest("study", "weights", "cancellation_largest"), missing="∞"),
            format_number(min(group.values("study", "weights", "denominator_smallest")), 2),
        ],
    }
