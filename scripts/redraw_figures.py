"""Draw the committed figures under results/reconstruct again, from the results next to them.

python scripts/redraw_figures.py [--results RESULTS]

Figures are drawn once, by the run; what a later version calls a row or how it draws an axis, this brings to them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from invertible_attention.experiments.files import read_json
from invertible_attention.experiments.reconstruct.figures import draw_measured
from invertible_attention.experiments.report.figures import save_figures

RESULTS = Path(__file__).resolve().parent.parent / "results" / "reconstruct"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw again the figures that exist."""
    parser = argparse.ArgumentParser(description="Draw the committed figures again from their results.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of result folders")
    for path in sorted(parser.parse_args(arguments).results.glob("*/results.json")):
        figures = [f for f in draw_measured(read_json(path)) if (path.parent / f"{f.name}.png").exists()]
        for written in save_figures(path.parent, figures):
            print(written)


if __name__ == "__main__":
    main()
