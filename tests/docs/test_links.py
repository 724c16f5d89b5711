"""Links resolve: in the repository's files always, on the site if it has been built."""

from __future__ import annotations

import os
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
SITE = os.environ.get("SITE")
needs_site = pytest.mark.skipif(SITE is None, reason="make docs builds the site and sets SITE")
README = ROOT / "README.md"
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_linked_files_exist(name: str):
    links = LINK.findall((ROOT / name).read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link.partition("#")[0]).exists()]
    assert not missing


def test_the_code_of_the_readme_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (block,) = re.findall(
        r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    script = tmp_path / "readme.py"
    script.write_text(block, encoding="utf-8")
    runpy.run_path(str(script))
    assert capsys.readouterr().out.startswith("tensor(True)")


class Page(HTMLParser):
    """What a page of the site links to, what it loads, and its anchors."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        loads = tag == "link" and given.get("rel") in {"stylesheet", "icon", "preload"}
        self.loaded |= {given["href"]} if loads else set()
        self.loaded |= {given["src"]} if "src" in given else set()


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    return {path.resolve(): Page(path) for path in Path(SITE or "").rglob("*.html")}


@needs_site
def test_internal_links_resolve(pages: dict[Path, Page]):
    assert len(pages) > 20
    broken = []
    for path, page in pages.items():
        for link in page.links | page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            known = pages[target].anchors if target in pages else {anchor}
            if not target.exists() or (anchor and anchor not in known):
                broken.append(f"{path.name}: {link}")
    assert not broken


@needs_site
def test_the_site_loads_no_external_resources(pages: dict[Path, Page]):
    for path, page in pages.items():
        foreign = [link for link in page.loaded if urlsplit(link).netloc]
        assert not foreign, path
    assert any("tex-svg-full.js" in link for page in pages.values() for link in page.loaded)


@needs_site
def test_every_page_names_its_author(pages: dict[Path, Page]):
    for path in pages:
        assert re.search(r"Copyright &#169; \d{4}, \w+", path.read_text(encoding="utf-8")), path
