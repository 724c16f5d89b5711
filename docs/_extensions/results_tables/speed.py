"""Tables of the benchmark: time and memory of attention against the N×N form and PyTorch's fused attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results_tables.markdown import RESPONSES, Table, grid, large, provenance, read

__all__ = ["TABLES"]

PAPER_TOKENS = 9701
COMMAND = "invertible-attention benchmark"
FILES = ("results.json", "benchmark.json", "*/results.json", "*/benchmark.json")


def times(path: Path) -> str:
    """Times of this library, and how many times longer the others take."""
    content = read(path)
    return _times(content, content["times"])


def times_at_one_size(path: Path) -> str:
    """The same at the paper's full size, or the largest below it that was measured."""
    content = read(path)
    sizes = {record["tokens"] for record in content["times"] if record["tokens"] <= PAPER_TOKENS}
    return _times(content, [record for record in content["times"] if record["tokens"] == max(sizes)])


def _times(content: dict[str, Any], records: list[dict[str, Any]]) -> str:
    head = ["response", "tokens", "pass", "this library, ms", "N×N takes", "fused softmax takes"]
    by_key = {(*_key(record), record["contender"]): record["seconds"] for record in records}
    rows = []
    for record in records:
        if record["contender"] != "auto":
            continue
        own = record["seconds"]
        others = [by_key.get((*_key(record), name)) for name in ("reference", "sdpa")]
        rows.append(
            [
                RESPONSES[record["response"]],
                f"{record['tokens']:,}",
                "with gradients" if record["backward"] else "forward",
                large(1e3 * own),
                *("–" if other is None else f"{large(other / own)} ×" for other in others),
            ]
        )
    return f"{grid(head, rows)}\n\n{_from(content)}"


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["response"], record["tokens"], record["backward"], record["batch"]


def memory(path: Path) -> str:
    """Peak memory above what importing takes."""
    content = read(path)
    head = ["response", "tokens", "batch", "pass", "this library, MB", "N×N, MB", "fused softmax, MB"]
    found: dict[tuple[Any, ...], dict[str, float | None]] = {}
    for record in content["memory"]:
        size = record["bytes"]
        found.setdefault(_key(record), {})[record["contender"]] = None if size is None else size / 1e6
    rows = [
        [
            RESPONSES[response],
            f"{tokens:,}",
            str(batch),
            "with gradients" if backward else "forward",
            *(large(sizes.get(name)) for name in ("auto", "reference", "sdpa")),
        ]
        for (response, tokens, backward, batch), sizes in found.items()
    ]
    if not rows:
        return f"*Memory was not measured in this run.*\n\n{_from(content)}"
    return f"{grid(head, rows)}\n\n{_from(content)}"


def claims(path: Path) -> str:
    """What the project set out to show, the measurement, and whether it was met."""
    content = read(path)
    rows = [
        [record["claim"], large(record["measured"]), record["limit"], "yes" if record["met"] else "**no**"]
        for record in content["claims"]
    ]
    return f"{grid(['claim', 'measured', 'aim', 'met'], rows)}\n\n{_from(content)}"


def compiled(path: Path) -> str:
    """What compiling the branch saves of an inverse."""
    content = read(path)
    rows = [
        [
            name,
            large(case["eager_ms"]),
            large(case["compiled_ms"]),
            f"{case['ratio']:.2f} ×",
            large(case["difference"]),
        ]
        for name, case in content["cases"].items()
    ]
    head = ["inverse", "eager, ms", "compiled, ms", "faster", "largest difference"]
    return f"{grid(head, rows)}\n\n{provenance(content['metadata'], more=content['what'])}"


def _from(content: dict[str, Any]) -> str:
    return provenance(content.get("run") or content.get("metadata"))


TABLES = (
    Table("attention-times", "benchmark", FILES, COMMAND, times),
    Table("attention-times-at-9701", "benchmark", FILES, COMMAND, times_at_one_size),
    Table("attention-memory", "benchmark", FILES, COMMAND, memory),
    Table("attention-claims", "benchmark", FILES, COMMAND, claims),
    Table("compiled", "compiled", ("inverse.json",), "python benchmarks/compiled_inverse.py", compiled),
)
