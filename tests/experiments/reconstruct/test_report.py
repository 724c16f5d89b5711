from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from invertible_attention.experiments.published import RESPONSES, TABLE_2, TABLE_5
from invertible_attention.experiments.reconstruct.findings import findings, headline
from invertible_attention.experiments.report.kinds import result_of
from invertible_attention.experiments.report.summary import build_page

from .conftest import Finished

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """Collects the text, the table cells and the addresses of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.addresses: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)

    def of(self, source: str) -> list[list[str]]:
        """The rows about a source, without the response's title where they have it."""
        return [row[row.index(source) :] for row in self.rows if source in row]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            self.images.append(named)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def page_of(results: dict[str, Any], folder: Path) -> str:
    return build_page([result_of(results, folder)])


@pytest.fixture(scope="module")
def page(finished: Finished) -> Page:
    return Page((finished.folder / "report.html").read_text(encoding="utf-8"))


def relabeled(finished: Finished, dataset: str, size: list[int], title: str | None = None) -> dict[str, Any]:
    """The same measurements labeled as another dataset."""
    from invertible_attention.experiments.published import reconstruction_table

    results = json.loads(json.dumps(finished.results))
    results["configuration"] |= {"dataset": dataset, "size": size, "title": title}
    table = reconstruction_table(dataset, (size[0], size[1]))
    assert table is not None
    results["published"] = {"table": table[0], "rows": {k: v._asdict() for k, v in table[1].items()}}
    results["data"] = {"title": title or dataset, "size": size}
    return results


def test_page_is_self_contained(page: Page) -> None:
    outside = [address for address in page.addresses if not address.startswith("#")]
    assert outside
    assert all(address.startswith("data:image/png;base64,") for address in outside)


def test_every_response_and_constraint_has_a_row(page: Page) -> None:
    tables = 5  # errors, inverse, solvers, images and training; one more for the authors' code
    for source in ("relaxed, column", "certified, column"):
        assert len(page.of(source)) == tables * 4
    assert len(page.of("authors’ code")) == (tables + 1) * 4
    assert len(page.of("authors’ code, clamped")) == 4
    for title in RESPONSES.values():
        assert sum(row[0] == title for row in page.rows if row) == tables + 1
    for row in page.of("certified, column")[:4]:
        assert row[3] == "100.0 ± 0.0"  # V-score of both repeats


def test_figures_have_alt_text_and_are_stored(page: Page, finished: Finished) -> None:
    assert len(page.images) == 5
    assert all(image["alt"] for image in page.images)
    stored = sorted(path.name for path in (finished.folder / "figures").iterdir())
    assert stored == [
        "histogram.png",
        "iterations.png",
        "latents.png",
        "reconstructions.png",
        "residuals.png",
    ]
    for name in stored:
        with Image.open(finished.folder / "figures" / name) as image:
            assert min(image.size) > 300


@pytest.mark.parametrize(
    ("dataset", "size", "table", "rows"),
    [
        ("cifar10", [32, 32], "Table 2", TABLE_2["cifar10"]),
        ("svhn", [32, 32], "Table 2", TABLE_2["svhn"]),
        ("celeba", [218, 178], "Table 5", TABLE_5),
    ],
)
def test_published_numbers_are_shown_next_to_ours(
    finished: Finished, dataset: str, size: list[int], table: str, rows: dict
) -> None:
    page = Page(page_of(relabeled(finished, dataset, size), finished.folder))
    assert table in page.text
    paper = page.of(f"paper, {table}")
    assert [row[2:4] for row in paper] == [[f"{row.ssim:.3f}", f"{row.v_score:.1f}"] for row in rows.values()]
    assert float(paper[0][1]) == rows["gaussian"].mse


def test_substitute_images_are_named(finished: Finished) -> None:
    title = "Holiday photographs in CelebA's format"
    page = Page(page_of(relabeled(finished, "celeba", [32, 32], title), finished.folder))
    assert f"reconstruction of {title}" in page.text
    assert "published numbers are for another data set" in page.text


def test_titles_are_escaped(finished: Finished) -> None:
    html = page_of(relabeled(finished, "celeba", [32, 32], "<script>alert(1)</script>"), finished.folder)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_findings_use_the_measured_numbers(finished: Finished) -> None:
    dot = next(sentence for sentence in findings(finished.results) if sentence.startswith("Dot-product,"))
    cells = [
        cell
        for cell in finished.results["cells"]
        if cell["constraint"] == "released" and cell["response"] == "dot_product"
    ]
    negative = sum(cell["study"]["weights"]["negative_share"] for cell in cells) / len(cells)
    assert f"{100 * negative:.1f} % of the trained network's weights are negative" in dot
    assert "V-score 100 %" in headline(finished.results)


def test_only_measured_cells_are_explained(finished: Finished) -> None:
    cells = [cell for cell in finished.results["cells"] if cell["constraint"] == "certified"]
    (sentence,) = findings(finished.results | {"cells": cells})
    assert sentence.startswith("Certified:")


def test_violated_certificate_is_shown(finished: Finished) -> None:
    results = json.loads(json.dumps(finished.results))
    cell = next(cell for cell in results["cells"] if cell["constraint"] == "certified")
    cell["reconstruction"]["v_score"] = 83.0
    assert "83.0 % at least" in headline(results)
