"""The committed figures, drawn again from their results."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the extra experiments")

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "redraw_figures.py"), run_name="script")
RESULTS = SCRIPT["RESULTS"] / "svhn" / "results.json"


@pytest.mark.skipif(not RESULTS.is_file(), reason="results/ is not part of this copy")
def test_only_figures_that_exist_are_redrawn(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "svhn"
    folder.mkdir()
    shutil.copy(RESULTS, folder)
    (folder / "histogram.png").write_bytes(b"an old figure")

    SCRIPT["main"](["--results", str(tmp_path)])

    assert {path.name for path in folder.iterdir()} == {"results.json", "histogram.png"}
    with Image.open(folder / "histogram.png") as image:
        assert image.width > 500
