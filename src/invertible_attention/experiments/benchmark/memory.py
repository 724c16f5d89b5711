"""Peak memory of one call in a separate process, above what importing the library takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import ExperimentError
from .implementations import work

__all__ = ["peak_memory", "run_alone"]

STATUS = Path("/proc/self/status")


def peak_memory(
    response: str, implementation: str, tokens: int, *, batch: int = 1, backward: bool = False
) -> int | None:
    """Measure the high-water mark of resident memory, inputs and outputs included.

    Args:
        response: see :func:`~.implementations.work`.
        implementation: see there.
        tokens: number of tokens.
        batch: number of samples.
        backward: whether gradients are computed.

    Returns:
        Bytes, or ``None`` on a system that does not report it.
    """
    if not STATUS.exists():
        return None
    arguments = {
        "response": response,
        "implementation": implementation,
        "tokens": tokens,
        "batch": batch,
        "backward": backward,
    }
    return run_alone(__spec__.name, arguments)["bytes"]


def run_alone(module: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a module in a new process with arguments as JSON, and read JSON from its last line.

    Raises:
        ExperimentError: if the process fails, with the end of what it said.
    """
    result = subprocess.run(
        [sys.executable, "-m", module, json.dumps(arguments)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        said = result.stderr.strip().splitlines()[-1:] or [f"exit status {result.returncode}"]
        raise ExperimentError(f"measuring {arguments} failed: {said[0]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def high_water_mark() -> int:
    """Return this process's peak resident memory in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(arguments: dict[str, Any]) -> None:
    """Do the work once and print how far the mark rose."""
    before = high_water_mark()
    work(**arguments)()
    print(json.dumps({"bytes": high_water_mark() - before}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
