"""The coverage summary counts lines and branches, in total and by package."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "coverage_summary.py"), run_name="script")


def file(lines: int, covered: int, branches: int, taken: int) -> dict[str, dict[str, int]]:
    counts = {"num_statements": lines, "covered_lines": covered}
    return {"summary": counts | {"num_branches": branches, "covered_branches": taken}}


FILES = {
    "src/invertible_attention/residual.py": file(10, 9, 4, 2),
    "src/invertible_attention/solvers/base.py": file(30, 30, 0, 0),
    "src/invertible_attention/experiments/density/run.py": file(40, 30, 12, 6),
    "src/invertible_attention/experiments/density/deeper/run.py": file(20, 20, 0, 0),
    "src/invertible_attention/experiments/files.py": file(0, 0, 0, 0),
}


def test_package_counts_sum_to_the_total() -> None:
    summary = SCRIPT["summarize"]({"files": FILES})
    assert summary["total"] == {
        "lines": 100,
        "lines_percent": 89.0,
        "branches": 16,
        "branches_percent": 50.0,
    }
    assert list(summary["packages"]) == [
        "experiments",
        "experiments.density",
        "invertible_attention",
        "solvers",
    ]
    assert summary["packages"]["experiments.density"]["lines_percent"] == pytest.approx(
        100 * 50 / 60, abs=0.01
    )
    assert summary["packages"]["solvers"]["branches_percent"] == 100.0


@pytest.mark.parametrize(("least", "status"), [(50.0, 0), (50.1, 1), (90.0, 1)])
def test_lines_and_branches_must_each_reach_the_threshold(
    least: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = SCRIPT["main"]
    monkeypatch.setitem(main.__globals__, "measured", lambda: {"files": FILES})
    monkeypatch.setattr("sys.argv", ["coverage_summary.py", "--at-least", str(least)])
    assert main() == status
    assert capsys.readouterr().out == "89.0 % of 100 lines, 50.0 % of 16 branches\n"
