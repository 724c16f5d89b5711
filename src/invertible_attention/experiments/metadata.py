"""Where a result comes from: versions, machine, commit and time."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["commit", "machine", "now", "run_metadata", "versions"]

PACKAGES = ("torch", "numpy", "lightning", "torchmetrics", "datasets", "scikit-image", "scikit-learn")


def run_metadata(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what is needed to say under which conditions a number was measured, as JSON values."""
    return {"time": now(), "commit": commit(), "versions": versions(), "machine": machine(device)}


def now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and the packages that influence results."""
    found = {"python": platform.python_version(), "invertible-attention": version("invertible-attention")}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return processor, cores, threads, memory, system and accelerator; nothing that names a host."""
    device = torch.device(device)
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.type,
        "accelerator": accelerator,
    }


def commit() -> str | None:
    """Return the commit of the source tree this package runs from, ``+`` marking local changes to it.

    ``None`` when the package is installed rather than run from its repository.
    """
    package = Path(__file__).resolve().parents[1]
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or package != Path(top).resolve() / "src" / package.name:
        return None
    head = _git(package, "rev-parse", "--short=12", "HEAD")
    changed = _git(package, "status", "--porcelain", "--", ".")
    return None if head is None else head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None
