from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from invertible_attention.cli import main
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.published import TABLE_2, TABLE_3, TABLE_4, TABLE_5
from invertible_attention.experiments.reconstruct import overview
from invertible_attention.experiments.reconstruct.results import groups
from invertible_attention.experiments.report.render import STYLES
from invertible_attention.experiments.report.results import find_results
from invertible_attention.experiments.report.sources import Source, describe
from invertible_attention.experiments.report.summary import build_page
from invertible_attention.experiments.report.table import Row, RowGroup, Table

from .conftest import CONTENTS, density, write

Folders = Callable[..., list[Path]]


class Page(HTMLParser):
    """The page's content as a reader or a screen reader finds it."""

    def __init__(self, html: str):
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.headings: list[int] = []
        self.tables: list[list[list[str]]] = []
        self.captions = 0
        self.in_cell = False
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]
        self.anchors += [named["id"] or ""] if "id" in named else []
        self.images += [named] if tag == "img" else []
        self.captions += tag == "caption"
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data

    def rows(self, first: str) -> list[list[str]]:
        """All lines that begin with a cell."""
        return [row for table in self.tables for row in table if row and row[0] == first]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, reconstructions: Path) -> Page:
    folder = tmp_path_factory.mktemp("all")
    paths = [write(folder / kind, kind) for kind in CONTENTS]
    return Page(build_page(*find_results([reconstructions, *paths])))


def test_page_is_self_contained(page: Page) -> None:
    outside = [address for address in page.addresses if not address.startswith("#")]
    assert outside
    assert all(address.startswith("data:image/png;base64,") for address in outside)
    inside = [address[1:] for address in page.addresses if address.startswith("#")]
    assert set(inside) <= set(page.anchors)
    assert len(set(page.anchors)) == len(page.anchors)


def test_page_is_accessible(page: Page) -> None:
    assert page.headings.count(1) == 1
    assert page.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert page.images
    assert all(image["alt"] for image in page.images)
    assert page.captions == len(page.tables)


def test_every_published_number_is_shown_next_to_ours(page: Page) -> None:
    of_the_paper = page.rows("paper, Table 2")
    shown = {tuple(row[1:4]) for row in of_the_paper}
    for dataset in TABLE_2.values():
        for row in dataset.values():
            assert (f"{row.mse:g}", f"{row.ssim:.3f}", f"{row.v_score:.1f}") in shown
    for name, value in TABLE_3.items():
        assert page.rows(name)[0][1] == f"{value:.2f}"
    scores = {tuple(row[1:5]) for table in page.tables for row in table if len(row) > 4}
    for datasets in TABLE_4.values():
        for row in datasets.values():
            assert tuple(f"{value:.3f}" for value in row) in scores


def test_table_5_is_shown_at_the_papers_size(tmp_path: Path, reconstructions: Path) -> None:
    (result,), _ = find_results([reconstructions / "celeba-format"])
    result.content["data"]["size"] = result.content["configuration"]["size"] = [218, 178]
    rows = {name: row._asdict() for name, row in TABLE_5.items()}
    result.content["published"] = {"table": "Table 5", "rows": rows}
    page = Page(build_page([result]))
    assert "Table 5: CAMO photographs in CelebA's format, 218×178" in page.text
    assert "another data set of the same format" in page.text
    result.content["data"]["title"] += ", 218x178"
    again = Page(build_page([result]))
    assert "Table 5: CAMO photographs in CelebA's format, 218×178" in again.text
    assert "218x178, 218×178" not in again.text  # the size once, not twice
    published = {row[1] for row in page.rows("paper, Table 5")}
    assert published == {"64.975", "27.506", "251.231", "1.555 × 10⁻⁶"}


def test_error_figure_titles_do_not_overlap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = []
    monkeypatch.setattr(overview, "render_png", lambda canvas: drawn.append(FigureCanvasAgg(canvas)) or b"")
    title = "Photographs of scikit-image and scikit-learn, 32×32"
    overview.draw_errors({title: (None, {}), f"{title}.": (None, {}), f"{title}!": (None, {})})
    (canvas,) = drawn
    canvas.draw()
    boxes = [axes.title.get_window_extent(canvas.get_renderer()) for axes in canvas.figure.axes]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_error_figure_shows_smallest_and_zero_errors(
    monkeypatch: pytest.MonkeyPatch, reconstructions: Path
) -> None:
    drawn = []
    monkeypatch.setattr(overview, "render_png", lambda canvas: drawn.append(canvas) or b"")
    (result,), _ = find_results([reconstructions / "cifar10"])
    smallest = {"gaussian": 3e-14, "concatenation": 0.0}
    for cell in result.content["cells"]:
        cell["reconstruction"]["mse"] = smallest.get(cell["response"], 1.0)
    entries = {
        response: [("", group) for group in found] for response, found in groups(result.content).items()
    }
    overview.draw_errors({"CIFAR-10": (None, entries)})
    (axes,) = (axes for axes in drawn[0].axes if axes.get_title())
    low, high = axes.get_xlim()
    points = [x for line in axes.lines if line.get_marker() != "None" for x in line.get_xdata()]
    assert min(points) == low
    assert any(abs(point - 3e-14) < 1e-20 for point in points)
    assert max(points) < high


def test_shorter_run_is_not_labeled_as_the_papers_table(reconstructions: Path) -> None:
    (result,), _ = find_results([reconstructions / "cifar10"])
    result.content["configuration"]["epochs"] = 2
    assert "After Table 2, 2 of 100 epochs: CIFAR-10" in Page(build_page([result])).text


def test_measured_numbers_match_the_files(page: Page, reconstructions: Path) -> None:
    (result,), _ = find_results([reconstructions / "cifar10"])
    for entry in result.content["summary"]:
        if entry["constraint"] == "certified":
            label = f"certified, {entry['normalization']}"
            evaluations = f"{entry['evaluations_mean']['mean']:.1f}"
            assert any(row[-1].startswith(evaluations) for row in page.rows(label))
    scores, run = page.rows("concatenation/certified")
    assert scores[:2] == ["concatenation/certified", "3.2500 ± 0.0100"]
    assert run[1:] == ["1,234", "60", "0", "1.6", "1.5", "8 of 8", "2 of 2", "–"]
    assert page.rows("concatenation/certified, untrained")[0][1] == "not finite on 3 values"
    compared, in_study = (row for row in page.rows("none") if len(row) > 1)
    assert compared[1] == in_study[1] == "[2.5000 ± 0.2500]"
    assert "diverge" in in_study
    assert page.rows("64 tokens, forward")[0][1:] == ["1", "2", "5", "4×", "–"]
    assert page.rows("0.branch")[0][1:] == [
        *("8 of 8", "1.0 × 10⁻⁷", "0.9", "0.75", "certified", "9.5", "excluded", "0", "0", "yes")
    ]
    assert page.rows("1.branch")[0][2:4] == ["∞", "none"]
    assert page.rows("gaussian") == [["gaussian", "0.999999", "0.500000"]]
    assert "1 of 2 blocks passed" in page.text
    assert "12,345 configurations and 6 blocks of 2 networks: no bound was exceeded" in page.text
    assert [row[1] for row in page.rows("conditional")] == ["2.2500 ± 0.0100", "conditional density"]
    assert (
        "Knowing the class saves 0.2500 ± 0.0200 bits per dimension (standard error over seeds" in page.text
    )
    assert page.rows("PowerSeries(terms=5)")[0][1:] == ["+0.5000 ± 0.1000", "6.5", "2.5×", "5.5×", "100"]
    (cost,) = [row for row in page.rows("Certified Concatenation") if row[1:2] == ["1,234,567"]]
    assert cost[2:] == ["1.5", "0.5", "2217", "1777.5", "500", "0.5"]
    assert page.rows("Anderson") == [["Anderson", "9.5", "8", "1.19×", "1.0 × 10⁻⁷"]]
    assert page.rows("seed 0, level 4")[0][1] == "2 of 2"
    (ours,) = [row for row in page.rows("camouflage") if len(row) == 6 and row[1] == "0.550 ± 0.071"][:1]
    assert ours[-1] == "2"


def test_numbers_show_commit_seed_and_machine(page: Page) -> None:
    assert "density-study: commit 0123456789ab, seeds 0–2, 5, A processor, 1 thread, 2026-01-02" in page.text
    sources = {row[0] for row in page.tables[-1][1:]}
    assert sources >= {
        "density",
        "density-study",
        "conditional",
        "camouflage",
        "benchmark",
        "cifar10",
        "svhn",
    }


def test_tables_without_results_are_listed(folders: Folders) -> None:
    page = Page(build_page(*find_results(folders("benchmark"))))
    for number in (2, 3, 4, 5):
        assert f"Table {number}: " in page.text.partition("Time and memory")[2].partition("1 of 1 claims")[0]


def test_incomplete_results_are_reported(tmp_path: Path) -> None:
    content = density()
    del content["samples"]
    write(tmp_path / "good", "density")
    write(tmp_path / "half", "density", content)
    with pytest.raises(
        ExperimentError, match=r"half/results\.json is not a whole result \(lacks 'samples'\)"
    ):
        build_page(*find_results([tmp_path]))


def test_figures_of_a_run_are_included(folders: Folders) -> None:
    from PIL import Image

    (folder,) = folders("density")
    Image.new("RGB", (40, 20), "red").save(folder / "samples.png")
    page = Page(build_page(*find_results([folder])))
    (samples,) = [image for image in page.images if "generated images" in (image["alt"] or "")]
    assert samples["width"] == "40"


def test_report_command(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "pages" / "all.html"
    assert main(["report", *map(str, folders("benchmark", "conditional")), "--output", str(output)]) == 0
    assert output.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert f"Report: {output}" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "benchmark"), "--output", str(tmp_path)]) == 1
    assert "is a folder: --output is the page" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nothing")]) == 1
    assert main(["report"]) == 2


def test_shared_conditions_are_stated_once() -> None:
    same = [Source(name, "", ("abc",), (), "m") for name in ("x", "y")]
    other = Source("z", "", (), (1,), "m")
    assert describe([*same, other]) == [
        "x, y: commit abc, seed not recorded, m",
        "z: commit not recorded, seed 1, m",
    ]


def test_skipped_results_are_reported(folders: Folders) -> None:
    found, _ = find_results(folders("benchmark"))
    assert "kinds this version does not know: one, two." in Page(build_page(found, ["one", "two"])).text


def test_rows_must_fit_their_table() -> None:
    with pytest.raises(ValueError, match="2 columns, got a row of 1"):
        Table("", "", ("", "a"), (RowGroup("", (Row(("x",)),)),))


def test_every_highlighted_row_class_has_a_style(folders: Folders) -> None:
    """The page says that published rows are gray and certified ones highlighted."""
    html = build_page(*find_results(folders("density")))
    style = html.partition("<style>")[2].partition("</style>")[0]
    rules = {
        selector.strip() for line in style.splitlines() for selector in line.partition("{")[0].split(",")
    }
    for kind in STYLES:
        assert {f"table.summary tr.{kind} th", f"table.summary tr.{kind} td"} <= rules, kind


def test_run_page_does_not_list_missing_tables(folders: Folders) -> None:
    found, unknown = find_results(folders("density"))
    assert "No result for: " in build_page(found, unknown)
    assert "No result for: " not in build_page(found, unknown, complete=False)
