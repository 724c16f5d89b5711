"""Write the README's table from the results under results/reconstruct, or check that it is up to date.

python scripts/update_readme.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from invertible_attention.experiments.report.render import to_markdown
from invertible_attention.experiments.report.results import find_results
from invertible_attention.experiments.report.summary import build_sections

ROOT = Path(__file__).resolve().parent.parent
START = "<!-- reconstruction table: written by scripts/update_readme.py from results/ -->\n"
END = "<!-- end -->"


def table(results: Path) -> str:
    """Return the Markdown table of one results.json: published, authors' code per seed, certified."""
    (section,) = build_sections(find_results([results])[0])
    return to_markdown(next(table for table in section.tables if table.name == "beside")) + "\n"


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
