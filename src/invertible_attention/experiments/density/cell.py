"""One cell of a study, run as ``python -m invertible_attention.experiments.density.cell FOLDER …``."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import ExperimentError
from ..files import read_json
from .configuration import Configuration
from .run import train_run

__all__ = ["main"]


def main(folder: str, device: str, draws: str, data_dir: str | None = None) -> int:
    """Train the density that ``cell.json`` in ``folder`` describes, from its checkpoint if there is one."""
    cell = Path(folder)
    configuration = Configuration.from_json(read_json(cell / "cell.json"))
    try:
        train_run(
            configuration,
            output=cell / "run",
            data_dir=None if data_dir is None else Path(data_dir),
            device=device,
            resume=True,
            draws=int(draws),
        )
    except ExperimentError as error:
        print(error, file=sys.stderr)
        return 1
    (cell / "run" / "results.json").rename(cell / "results.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
