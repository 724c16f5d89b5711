"""Count the lines of the library, the experiments, their templates, the documentation's extension, and the tests.

python scripts/count_lines.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

PARTS = {
    "library": ("src/invertible_attention", "*.py"),
    "experiments": ("src/invertible_attention/experiments", "*.py"),
    "templates": ("src/invertible_attention/experiments", "*.html"),
    "documentation's extension": ("docs/_extensions", "*.py"),
    "script of the tables": ("scripts", "update_tables.py"),
    "tests": ("tests", "*.py"),
}


def count(root: Path) -> dict[str, tuple[int, int]]:
    """Return the number of files and of lines of every part; the library is what is no experiment."""
    found = {}
    for part, (folder, pattern) in PARTS.items():
        files = [
            path
            for path in (root / folder).rglob(pattern)
            if part != "library" or "experiments" not in path.relative_to(root / folder).parts
        ]
        found[part] = (len(files), sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files))
    return found


def main() -> None:
    """Print the counts of the repository, or of another folder."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    for part, (files, lines) in count(root).items():
        print(f"{part:26} {files:4} files {lines:6,} lines")


if __name__ == "__main__":
    main()
