"""Write the README's table from the results under results/reconstruct, or check that it is up to date.

python scripts/update_readme.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START = "<!-- reconstruction table: written by scripts/update_readme.py from results/ -->\n"
END = "<!-- end -->"
NAMES = {
    "gaussian": "Gaussian",
    "embedded_gaussian": "Embedded Gaussian",
    "dot_product": "Dot-product",
    "concatenation": "Concatenation",
}


def table(results: Path) -> str:
    """Return the Markdown table of one results.json: published, authors' code per seed, certified."""
    content = json.loads(results.read_text(encoding="utf-8"))
    summary = {
        (entry["response"], entry["constraint"], entry["normalization"]): entry
        for entry in content["summary"]
    }
    published = content["published"]["rows"]
    seeds = max(entry["repeats"] for entry in content["summary"])
    lines = [
        f"| {content['data']['title']}, {seeds} seed{'s' * (seeds > 1)} "
        "| V-score, paper | authors' code, per seed | **certified** "
        "| MSE, paper | **certified** | evaluations, paper | **certified** |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for response, name in NAMES.items():
        certified = summary[response, "certified", "column"]
        released = sorted(
            (cell["repeat"], cell["reconstruction"]["v_score"])
            for cell in content["cells"]
            if (cell["response"], cell["constraint"]) == (response, "released")
        )
        cells = [
            f"{published[response]['v_score']:.1f} %",
            " / ".join(f"{score:.1f}" for _, score in released) + " %",
            f"**{certified['v_score']['mean']:.1f} %**",
            f"{published[response]['mse']:.3g}",
            f"**{_number(certified['mse']['mean'])}**",
            "100",
            f"**{certified['evaluations_mean']['mean']:.1f}**",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{value:.2g}"


def render(readme: str) -> str:
    """Return the README with its table replaced."""
    before, rest = readme.split(START)
    _, after = rest.split(END, 1)
    return before + START + table(ROOT / "results" / "reconstruct" / "cifar10" / "results.json") + END + after


def main() -> int:
    """Update the README, or return 1 if ``--check`` finds it out of date."""
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = render(old)
    if "--check" in sys.argv[1:]:
        return int(old != new)
    path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
