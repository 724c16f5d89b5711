"""Ask the Python Packaging Advisory Database about every package of this environment.

python scripts/audit_dependencies.py

Ends with 1 where a package has a known vulnerability. Where the service cannot be reached, or knows of no vulnerability
at all as some mirrors do not, nothing was audited: that is said, and is no failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

PROJECT = "invertible-attention"
UNREACHABLE = (
    "could not connect",
    "connection",
    "failed to resolve",
    "max retries exceeded",
    "name resolution",
    "proxyerror",
    "timed out",
    "service unavailable",
)
"""How pip-audit and the libraries under it say that there was no answer."""

VULNERABLE = "torch==2.5.1"
"""What every service knows a vulnerability of (CVE-2025-32434); one that does not would call everything safe."""


def installed() -> list[str]:
    """Return every package of this environment with its version, but for this project.

    The part after ``+``, as of a PyTorch for the CPU, is dropped: advisories do not know it.
    """
    found = {one.metadata["Name"]: one.version.partition("+")[0] for one in distributions()}
    return sorted(f"{name}=={version}" for name, version in found.items() if name != PROJECT)


def ask(requirements: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run pip-audit on exactly these packages."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "requirements.txt"
        path.write_text("\n".join(requirements), encoding="utf-8")
        options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(path), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)


def conclude(
    answer: subprocess.CompletedProcess[str], control: subprocess.CompletedProcess[str]
) -> tuple[int, list[str]]:
    """Return the status to end with, and the lines that say why.

    Args:
        answer: of pip-audit, on what is installed.
        control: of pip-audit, on :data:`VULNERABLE`.
    """
    packages, known = _packages(answer), _packages(control)
    if packages is None or known is None:
        return _no_answer((answer if packages is None else control).stderr.strip())
    passed_over = [package for package in packages if "skip_reason" in package]
    lines = [line for package in packages for line in _advisories(package)]
    vulnerable = len({line.partition(":")[0] for line in lines})
    if not lines and len(passed_over) == len(packages):
        return 0, [f"NOT AUDITED: the advisory service knows none of the {len(packages)} packages"]
    if not lines and not any(_advisories(package) for package in known):
        return 0, [f"NOT AUDITED: the advisory service does not know that {VULNERABLE} is vulnerable"]
    lines += [f"not audited: {package['name']} ({package['skip_reason']})" for package in passed_over]
    lines.append(
        f"{len(packages) - len(passed_over)} packages audited, {vulnerable} with known vulnerabilities"
    )
    return int(bool(vulnerable)), lines


def _packages(answer: subprocess.CompletedProcess[str]) -> list[dict[str, Any]] | None:
    try:
        return json.loads(answer.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return None


def _advisories(package: dict[str, Any]) -> list[str]:
    return [
        f"{package['name']} {package['version']}: {found['id']}, "
        f"fixed in {', '.join(found['fix_versions']) or 'no version yet'}"
        for found in package.get("vulns", ())
    ]


def _no_answer(complaint: str) -> tuple[int, list[str]]:
    reason = (complaint.splitlines() or ["pip-audit said nothing"])[-1]
    if any(sign in complaint.lower() for sign in UNREACHABLE):
        return 0, [f"NOT AUDITED: the advisory service cannot be reached ({reason})"]
    return 1, [f"pip-audit failed: {reason}"]


def main() -> int:
    """Audit this environment."""
    status, lines = conclude(ask(installed()), ask([VULNERABLE]))
    print("\n".join(lines), file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
