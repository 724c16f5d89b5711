"""Tables of the reconstruction experiment: how well inverses recover images, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results_tables.markdown import RESPONSES, Table, grid, large, provenance, read, small

__all__ = ["TABLES"]

SOLVED = 1e-6
"""Relative residual at which a sample counts as solved in the experiment."""

NAMES = {"released": "authors' code", "relaxed": "relaxed (the paper)", "certified": "certified"}
SOLVERS = {"anderson": "Anderson", "picard": "FixedPoint", "newton-krylov": "NewtonKrylov"}
COMMAND = "invertible-attention reconstruct"


def recovery(path: Path) -> str:
    """How well images are recovered: published, the authors' code, relaxed, certified."""
    content = read(path)
    published = (content["published"] or {}).get("rows", {})
    head = [
        "response",
        "constraint",
        "normalization",
        "V-score %",
        "MSE (0–255)",
        "SSIM",
        "converged %",
        "evaluations",
    ]
    rows = []
    for response, title in RESPONSES.items():
        if response in published and "row" not in content["configuration"]["normalizations"]:
            row = published[response]
            rows.append([title, content["published"]["table"] + " of the paper", "", f"{row['v_score']:.1f}"])
            rows[-1] += [small(row["mse"]), f"{row['ssim']:.3f}", "", ""]
        rows += [_recovered(title, entry) for entry in content["summary"] if entry["response"] == response]
    size = "×".join(map(str, content["data"]["size"]))
    images = content["cells"][0]["reconstruction"]["images"]
    seen = f"{images:,} unseen images of {content['data']['title']} at {size}, {_training(content)}"
    return f"{grid(head, rows, text_columns=3)}\n\n{provenance(content['run'], more=seen)}"


def _recovered(title: str, entry: dict[str, Any]) -> list[str]:
    return [
        title,
        NAMES.get(entry["constraint"], entry["constraint"]),
        entry["normalization"],
        f"{entry['v_score']['mean']:.1f}",
        small(entry["mse"]["mean"]),
        f"{entry['ssim']['mean']:.3f}",
        f"{100 * entry['converged_share']['mean']:.1f}",
        f"{entry['evaluations_mean']['mean']:.1f}",
    ]


def _training(content: dict[str, Any]) -> str:
    settings = content["configuration"]
    repeats = settings["repeats"]
    return f"{settings['epochs']} epochs, {repeats} run{'s' if repeats > 1 else ''} per row"


def solvers(path: Path) -> str:
    """How many evaluations each solver needs, in the median over images."""
    content = read(path)
    head = ["layer", "certified bound", "largest local constant", *SOLVERS.values()]
    rows = []
    for constraint in ("certified", "relaxed"):
        for cell in content["cells"]:
            if cell["constraint"] != constraint or "study" not in cell:
                continue
            study = cell["study"]
            rows.append(
                [
                    f"{RESPONSES[cell['response']]}, {constraint}",
                    large(study["lipschitz_bound"]),
                    large(study["local_lipschitz"]["largest"]),
                    *(_needed(study["solvers"][name]["median"]) for name in SOLVERS),
                ]
            )
    more = f"evaluations until the median relative residual of {content['cells'][0]['study']['images']} images of "
    more += f"{content['data']['title']} is below {small(SOLVED, 1)}; products with the Jacobian count as one each"
    return f"{grid(head, rows)}\n\n{provenance(content['run'], more=more)}"


def _needed(trace: list[float | None]) -> str:
    found = next(
        (n for n, residual in enumerate(trace, 1) if residual is not None and residual <= SOLVED), None
    )
    return f"> {len(trace)}" if found is None else str(found)


def responses(path: Path) -> str:
    """What each response costs under a certificate, by normalization where both were run."""
    contents = [read(path)]
    sibling = path.parent.with_name(path.parent.name + "-row") / path.name
    if sibling.is_file():
        contents.append(read(sibling))
    head = [
        "response",
        "normalization",
        "evaluations of the inverse",
        "V-score %",
        "MSE (0–255)",
        "local constant",
    ]
    rows = []
    for response, title in RESPONSES.items():
        for content in contents:
            cells = {(c["response"], c["constraint"]): c for c in content["cells"]}
            for entry in content["summary"]:
                if entry["response"] != response or entry["constraint"] != "certified":
                    continue
                study = cells[response, "certified"].get("study")
                rows.append(
                    [
                        title,
                        entry["normalization"],
                        f"{entry['evaluations_mean']['mean']:.1f}",
                        f"{entry['v_score']['mean']:.1f}",
                        small(entry["mse"]["mean"]),
                        large(study and study["local_lipschitz"]["largest"]),
                    ]
                )
    more = f"certified layers on {contents[0]['data']['title']}, {_training(contents[0])}"
    return f"{grid(head, rows, text_columns=2)}\n\n{provenance(contents[0]['run'], more=more)}"


def _reconstruction(name: str, folder: str, write: Any) -> Table:
    return Table(name, f"reconstruct/{folder}", ("results.json",), COMMAND, write)


TABLES = (
    _reconstruction("reconstruction-cifar10", "cifar10", recovery),
    _reconstruction("reconstruction-cifar10-row", "cifar10-row", recovery),
    _reconstruction("reconstruction-svhn", "svhn", recovery),
    _reconstruction("reconstruction-svhn-row", "svhn-row", recovery),
    _reconstruction("reconstruction-celeba-format", "celeba-format", recovery),
    _reconstruction("reconstruction-celeba-format-row", "celeba-format-row", recovery),
    _reconstruction("reconstruction-celeba-full-size", "celeba-full-size", recovery),
    _reconstruction("solvers", "cifar10", solvers),
    _reconstruction("responses", "cifar10", responses),
)
