"""Pictures are inverted at their own size, and the reconstructions written as PNG."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invertible_attention.cli import main
from invertible_attention.experiments.data import open_image
from invertible_attention.experiments.files import read_json
from invertible_attention.experiments.reconstruct.configuration import Cell, Configuration
from invertible_attention.experiments.reconstruct.network import build_network, initialize
from invertible_attention.experiments.reconstruct.pictures import recover

SIZES = [(12, 12), (13, 40), (64, 31), (33, 17), (1, 1), (40, 1), (3, 10)]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def network():
    made = build_network(Cell("concatenation", "certified", "column", 1), Configuration(), seed=0)
    initialize(made, torch.rand(4, 3, 12, 12) - 0.5)
    return made.eval()


def test_every_pixel_is_reconstructed_at_any_size(network, tmp_path: Path) -> None:
    pictures = [(f"a/{w}x{h}.jpg", picture(w, h, seed)) for seed, (w, h) in enumerate(SIZES)]
    done: list[int] = []
    rows = recover(network, pictures, tmp_path, device=torch.device("cpu"), report=done.append)
    assert done == [1, 2, 3, 4, 5, 6, 7]
    for (w, h), (name, original), row in zip(SIZES, pictures, rows, strict=True):
        assert row["picture"] == Path(name).name
        assert row["size"] == [h, w]
        assert row["converged"]
        assert row["equal_share"] == 1
        assert (row["ssim"] is None) == (min(w, h) < 11)
        assert (row["mse"] > 0) == (w * h > 1)
        assert row["mse"] <= row["error_max"] ** 2 < 0.1
        assert np.array_equal(np.asarray(open_image(tmp_path / row["file"])), np.asarray(original))


def test_failed_reconstruction_is_reported(network, tmp_path: Path, monkeypatch) -> None:
    (block,) = (
        module for module in network.modules() if hasattr(module, "solve_inverse") and module is not network
    )
    solve = block.solve_inverse
    monkeypatch.setattr(block, "solve_inverse", lambda z: replace(solve(z), value=solve(z).value + 1 / 256))
    (row,) = recover(network, [("a.png", picture(16, 15))], tmp_path, device=torch.device("cpu"))
    assert row["equal_share"] < 0.1
    assert row["error_max"] == pytest.approx(255 / 256, rel=1e-2)


def test_files_of_one_name_do_not_overwrite_each_other(network, tmp_path: Path) -> None:
    names = ["x/a.jpg", "a.png", "y/a.jpg", "z/a.jpg"]
    rows = recover(network, [(name, picture(12, 12)) for name in names], tmp_path, device=torch.device("cpu"))
    assert [row["file"] for row in rows] == ["a.png", "a.png.png", "a.jpg.png", "a.jpg-2.png"]
    assert len(list(tmp_path.iterdir())) == 4


def test_command_writes_a_row_and_a_file_per_test_picture(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    for number, (width, height) in enumerate([(40, 33), (21, 50), (33, 20), (64, 64), (17, 19)]):
        picture(width, height, number).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("")
    options = [
        "--dataset",
        "folder",
        "--data-dir",
        str(folder),
        "--own-size",
        "--epochs",
        "1",
        "--size",
        "12",
        "12",
    ]
    assert main(["reconstruct", *options, "--output", str(tmp_path / "run")]) == 0
    results = read_json(tmp_path / "run" / "results.json")
    assert results["data"]["title"] == "Folder holiday"
    assert "skipped" in results["data"]["about"]
    (cell,) = results["cells"]
    files = tmp_path / "run" / "cells" / "concatenation-certified-1" / "pictures"
    assert sorted(row["file"] for row in cell["pictures"]) == sorted(path.name for path in files.iterdir())
    assert len(cell["pictures"]) == results["configuration"]["test_images"] == 3
    page = (tmp_path / "run" / "report.html").read_text()
    assert "5 images, divided into training and test at random" in page
    assert "notes.txt" in page
    for row in cell["pictures"]:
        assert f"{row['size'][0]} × {row['size'][1]}" in page
        original = open_image(folder / row["picture"])
        assert np.array_equal(np.asarray(open_image(files / row["file"])), np.asarray(original))


def test_own_size_is_refused_with_random_crops() -> None:
    for given in ({"dataset": "photos"}, {"dataset": "folder", "random_crops": True}):
        with pytest.raises(ValueError, match="own_size"):
            Configuration.choose(own_size=True, **given)
