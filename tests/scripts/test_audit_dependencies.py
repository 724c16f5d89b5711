"""Conclusions of the dependency audit from pip-audit's output, without querying any service."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

SCRIPT = runpy.run_path(
    str(Path(__file__).parents[2] / "scripts" / "audit_dependencies.py"), run_name="script"
)


def answer(*packages: dict[str, Any], stderr: str = "") -> CompletedProcess[str]:
    return CompletedProcess([], 0, json.dumps({"dependencies": packages, "fixes": []}), stderr)


def silence(stderr: str) -> CompletedProcess[str]:
    return CompletedProcess([], 1, "", stderr)


FLAW = {"id": "PYSEC-1", "fix_versions": ["2.6.0"], "aliases": [], "description": "?"}
SAFE = {"name": "numpy", "version": "2.3.4", "vulns": []}
BAD = {"name": "torch", "version": "2.5.1", "vulns": [FLAW, FLAW | {"id": "PYSEC-2", "fix_versions": []}]}
UNKNOWN = {"name": "mine", "skip_reason": "not found"}


def test_clean_audit_passes_with_the_package_count() -> None:
    status, lines = SCRIPT["conclude"](answer(SAFE, UNKNOWN), answer(BAD))
    assert status == 0
    assert lines == ["not audited: mine (not found)", "1 packages audited, 0 with known vulnerabilities"]


def test_vulnerability_fails_and_names_the_fix() -> None:
    status, lines = SCRIPT["conclude"](answer(SAFE, BAD), answer(BAD))
    assert status == 1
    assert lines[0] == "torch 2.5.1: PYSEC-1, fixed in 2.6.0"
    assert lines[1] == "torch 2.5.1: PYSEC-2, fixed in no version yet"
    assert lines[-1] == "2 packages audited, 1 with known vulnerabilities"


@pytest.mark.parametrize(
    "complaint",
    [
        "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed\nERROR:pip_audit._cli:Tip: try another",
        "requests.exceptions.ConnectionError: Max retries exceeded with url: /pypi/torch/2.13.0/json",
    ],
)
def test_unreachable_service_is_reported_without_failing(complaint: str) -> None:
    for answers in ((silence(complaint), answer(BAD)), (answer(SAFE), silence(complaint))):
        status, (line,) = SCRIPT["conclude"](*answers)
        assert status == 0
        assert line.startswith("NOT AUDITED: the advisory service cannot be reached")
        assert complaint.splitlines()[-1] in line


def test_service_without_advisories_does_not_count_as_an_audit() -> None:
    status, (line,) = SCRIPT["conclude"](answer(SAFE), answer(BAD | {"vulns": []}))
    assert (status, line) == (
        0,
        "NOT AUDITED: the advisory service does not know that torch==2.5.1 is vulnerable",
    )
    status, (line,) = SCRIPT["conclude"](answer(UNKNOWN, UNKNOWN), answer(UNKNOWN))
    assert (status, line) == (0, "NOT AUDITED: the advisory service knows none of the 2 packages")


def test_any_other_tool_failure_fails() -> None:
    status, (line,) = SCRIPT["conclude"](silence("No module named pip_audit"), answer())
    assert (status, line) == (1, "pip-audit failed: No module named pip_audit")


def test_every_installed_package_is_queried_without_local_versions() -> None:
    requirements = SCRIPT["installed"]()
    names = {requirement.partition("==")[0] for requirement in requirements}
    assert {"torch", "jaxtyping", "pytest"} <= names
    assert "invertible-attention" not in names
    assert not [requirement for requirement in requirements if "+" in requirement]
