"""Tables of the reconstruction experiment: how well inverses recover images, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results_tables.markdown import RESPONSES, Table, fixed, grid, large, provenance, read, small

__all__ = ["TABLES"]

SOLVED = 1e-6
"""Relative residual at which a sample counts as solved in the experiment."""

NAMES = {"released": "authors' code", "relaxed": "relaxed (the paper)", "certified": "certified"}
SOLVERS = {"anderson": "Anderson", "picard": "FixedPoint", "newton-krylov": "NewtonKrylov"}
COMMAND = "invertible-attention reconstruct"


def recovery(path: Path) -> str:
    """How well images are recovered: published, the authors' code, relaxed, certified."""
    contents = _with_sibling(path)
    first = contents[0]
    published = (first["published"] or {}).get("rows", {})
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
        entries = [e for content in contents for e in content["summary"] if e["response"] == response]
        if response in published and entries:
            row = published[response]
            rows.append([title, first["published"]["table"] + " of the paper", ""])
            rows[-1] += [f"{row['v_score']:.1f}", small(row["mse"], 3), f"{row['ssim']:.3f}", "", ""]
        rows += [_recovered(title, entry) for entry in entries]
    images = first["cells"][0]["reconstruction"]["images"]
    seen = f"{images:,} unseen images of {_data(first)}, {_training(first)}"
    return f"{grid(head, rows, text_columns=3)}\n\n{provenance(first['run'], more=seen)}"


def every_recovery(path: Path) -> str:
    """The same under a title; runs whose folder ends in ``-row`` are in the table of their sibling."""
    if path.parent.name.endswith("-row") and _sibling(path).is_file():
        return ""
    if path.parent.name.endswith("-times"):
        return ""
    content = read(path)
    return f"**{_data(content)[:1].upper()}{_data(content)[1:]}**\n\n{recovery(path)}"


def _data(content: dict[str, Any]) -> str:
    size = "×".join(map(str, content["data"]["size"]))
    title = content["data"]["title"].removesuffix(f", {size.replace('×', 'x')}")
    return f"{title} at {size}"


def _sibling(path: Path) -> Path:
    name = path.parent.name
    other = name.removesuffix("-row") if name.endswith("-row") else f"{name}-row"
    return path.parent.with_name(other) / path.name


def _with_sibling(path: Path) -> list[dict[str, Any]]:
    """Read a run and its sibling, without what the first has of the second's rows already."""
    contents = [read(found) for found in (path, _sibling(path)) if found.is_file()]
    seen = {_kind(entry) for entry in contents[0]["summary"]}
    for content in contents[1:]:
        content["summary"] = [entry for entry in content["summary"] if _kind(entry) not in seen]
    return contents


def _kind(entry: dict[str, Any]) -> tuple[str, str, str]:
    return entry["response"], entry["constraint"], entry["normalization"]


def _recovered(title: str, entry: dict[str, Any]) -> list[str]:
    return [
        title,
        NAMES.get(entry["constraint"], entry["constraint"]),
        entry["normalization"],
        fixed(entry["v_score"]["mean"], 1),
        small(entry["mse"]["mean"]),
        fixed(entry["ssim"]["mean"], 3),
        f"{100 * entry['converged_share']['mean']:.1f}",
        fixed(entry["evaluations_mean"]["mean"], 1),
    ]


def _training(content: dict[str, Any]) -> str:
    settings = content["configuration"]
    repeats = settings["repeats"]
    epochs = settings["epochs"]
    return f"{epochs} epoch{'s' * (epochs > 1)}, {repeats} run{'s' * (repeats > 1)} per row"


def training_times(path: Path) -> str:
    """How long training takes, and what that is for an epoch of the paper's 1,000 images."""
    content = read(path)
    settings = content["configuration"]
    seen = settings["epochs"] * settings["train_images"]
    head = ["response", "normalization", "images × epochs", "training, s", "s per 1,000 images"]
    rows = [
        [
            RESPONSES[cell["response"]],
            cell["normalization"],
            f"{settings['train_images']:,} × {settings['epochs']}",
            large(cell["training"]["seconds"]),
            large(1000 * cell["training"]["seconds"] / seen),
        ]
        for cell in content["cells"]
    ]
    return f"{grid(head, rows, text_columns=2)}\n\n{provenance(content['run'], more=_data(content))}"


def solvers(path: Path) -> str:
    """How many evaluations each solver needs, in the median over images."""
    content = read(path)
    head = ["layer", "certified bound", "largest local constant", *SOLVERS.values()]
    rows = []
    for constraint in ("certified", "relaxed"):
        for cell in content["cells"]:
            # Of several repeats the first: the median is over its images.
            if cell["constraint"] != constraint or "study" not in cell or cell["repeat"] != 1:
                continue
            study = cell["study"]
            rows.append(
                [
                    f"{RESPONSES[cell['response']]}, {constraint}, {cell['normalization']}",
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
    contents = _with_sibling(path)
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
            cells = {(c["response"], c["constraint"], c["normalization"]): c for c in content["cells"]}
            for entry in content["summary"]:
                if entry["response"] != response or entry["constraint"] != "certified":
                    continue
                study = cells[response, "certified", entry["normalization"]].get("study")
                rows.append(
                    [
                        title,
                        entry["normalization"],
                        fixed(entry["evaluations_mean"]["mean"], 1),
                        fixed(entry["v_score"]["mean"], 1),
                        small(entry["mse"]["mean"]),
                        large(study and study["local_lipschitz"]["largest"]),
                    ]
                )
    more = f"certified layers on {contents[0]['data']['title']}, {_training(contents[0])}"
    return f"{grid(head, rows, text_columns=2)}\n\n{provenance(contents[0]['run'], more=more)}"


def _reconstruction(name: str, folder: str, write: Any) -> Table:
    return Table(name, f"reconstruct/{folder}", ("results.json",), COMMAND, write)


TABLES = (
    Table("reconstruction", "reconstruct", ("*/results.json",), COMMAND, every_recovery),
    Table(
        "training-times",
        "reconstruct",
        ("*-times/results.json",),
        COMMAND,
        training_times,
    ),
    _reconstruction("reconstruction-cifar10", "cifar10", recovery),
    _reconstruction("solvers", "cifar10", solvers),
    _reconstruction("responses", "cifar10", responses),
)
