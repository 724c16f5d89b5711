"""Code on the pages about other libraries runs."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "interop"
NEEDS = {
    "zuko": ("zuko",),
    "nflows": ("nflows",),
    "normflows": ("normflows",),
    "freia": ("FrEIA",),
    "distributions": (),
    "pyro": ("pyro",),
    "masks": ("nflows",),
    "export": ("huggingface_hub", "safetensors"),
}


def test_every_page_with_code_is_listed():
    assert {page.stem for page in PAGES.glob("*.md")} == {*NEEDS, "index"}


@pytest.mark.slow
@pytest.mark.parametrize("page", NEEDS)
def test_code_of_every_page_runs(page, tmp_path):
    for library in NEEDS[page]:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"needs {library}: pip install 'invertible-attention[interop]'")
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (PAGES / f"{page}.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) > 1
    script = tmp_path / f"{page}_page.py"
    script.write_text("\n".join(blocks))
    runpy.run_path(str(script))
