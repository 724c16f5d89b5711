"""Missing images: one error each, naming the image and the remedy."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from invertible_attention.experiments.data import parquet_splits, photographs
from invertible_attention.experiments.data.folder import folder_splits
from invertible_attention.experiments.data.photographs import BundledPhotographs, bundled_photograph
from invertible_attention.experiments.errors import ExperimentError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:datasets.*")


def write_rows(folder: Path, rows: list[dict[str, object] | None]) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"img": pa.array(rows, kind)}), folder / "train.parquet")


def test_empty_row_is_reported_and_path_row_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), (1, 2, 3)).save(tmp_path / "one.png")
    rows = [None, {"bytes": None, "path": None}, {"bytes": None, "path": str(tmp_path / "one.png")}]
    write_rows(tmp_path, rows)
    images = parquet_splits(tmp_path)["train"]
    for index in (0, 1):
        with pytest.raises(ExperimentError, match=rf"\(train\), row {index} is empty"):
            images[index]
    assert images[2].getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("quiet", [True, False])
def test_reading_parquet_restores_progress_bars(quiet: bool, tmp_path: Path) -> None:
    import datasets

    write_rows(tmp_path, [None])
    logger = logging.getLogger("datasets")
    level, before = logger.level, datasets.are_progress_bars_disabled()
    try:
        (datasets.disable_progress_bars if quiet else datasets.enable_progress_bars)()
        parquet_splits(tmp_path)
        assert datasets.are_progress_bars_disabled() is quiet
        assert logger.level == level
    finally:
        (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()


def test_missing_photographs_name_the_package_to_install() -> None:
    with pytest.raises(ExperimentError, match=r"need the package no_such_package: pip install"):
        bundled_photograph("no_such_package/a.png")
    with pytest.raises(ExperimentError, match=r"cannot read .*no_such\.png"):
        bundled_photograph("skimage/data/no_such.png")


def test_photographs_are_named_by_their_package_path() -> None:
    with pytest.raises(ValueError, match=r"\['test', 'train'\], got 'all'"):
        BundledPhotographs("all")
    source = BundledPhotographs("test")
    assert [source.name(i) for i in range(len(source))] == list(photographs.PHOTOGRAPHS["test"])


def test_blank_partition_lines_are_skipped(tmp_path: Path) -> None:
    images = tmp_path / "img_align_celeba"
    images.mkdir()
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (4, 4)).save(images / name)
    (tmp_path / "list_eval_partition.txt").write_text("1.jpg 0\n\n2.jpg 2\n\n")
    splits = folder_splits(tmp_path)
    assert {split: len(source) for split, source in splits.items()} == {"train": 1, "valid": 0, "test": 1}
