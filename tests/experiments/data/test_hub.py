from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from invertible_attention.experiments.data import open_splits, parquet_splits
from invertible_attention.experiments.errors import ExperimentError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:datasets.*")


def encode(color: int, size: tuple[int, int] = (32, 32), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), color, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(path: Path, contents: list[bytes], column: str = "img", *, hub: bool = True) -> None:
    """Write a file as the hub has it: a struct of bytes and path, with the features in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pa.array(
        [{"bytes": content, "path": None} for content in contents],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({column: images, "label": pa.array(range(len(contents)), pa.int64())})
    if hub:
        features = {column: {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


@pytest.mark.parametrize("hub", [True, False], ids=["with metadata", "plain"])
@pytest.mark.parametrize("column", ["img", "image"])
def test_hub_shards_are_read(tmp_path: Path, column: str, hub: bool) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [encode(0), encode(1)], column, hub=hub)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [encode(2, kind="WEBP")], column, hub=hub)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [encode(9)], column, hub=hub)
    splits = parquet_splits(tmp_path)
    assert {split: len(source) for split, source in splits.items()} == {"train": 3, "test": 1}
    colors = [splits["train"][i].getpixel((5, 5)) for i in range(3)]
    assert colors == [(c, c, c) for c in range(3)]


def test_dataset_is_found_in_the_subfolder_of_its_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "cifar10" / "train.parquet", [encode(3)])
    write_parquet(tmp_path / "svhn" / "train.parquet", [encode(4)], "image")
    assert open_splits("cifar10", tmp_path)["train"][0].getpixel((0, 0)) == (3, 3, 3)
    assert open_splits("svhn", tmp_path)["train"][0].getpixel((0, 0)) == (4, 4, 4)


def test_damaged_row_error_names_file_and_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "train.parquet", [encode(0), encode(1)[:50]])
    source = parquet_splits(tmp_path / "data")["train"]
    source[0]
    with pytest.raises(ExperimentError, match=r"data \(train\), row 1 cannot be read as an image"):
        source[1]


def test_truncated_file_error_names_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "data" / "train.parquet"
    write_parquet(path, [encode(0)] * 10)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ExperimentError, match=r"cannot read the parquet files in .*data"):
        parquet_splits(tmp_path / "data")


def test_a_table_without_images_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "train.parquet")
    with pytest.raises(ExperimentError, match="has no image column, only text, label"):
        parquet_splits(tmp_path)


def test_offline_hub_is_one_clear_error() -> None:
    with pytest.raises(ExperimentError, match=r"cannot load uoft-cs/cifar10 from the hub .*--data-dir"):
        open_splits("cifar10")


def test_local_cifar10(data_dir: Path) -> None:
    splits = open_splits("cifar10", data_dir)
    assert {split: len(source) for split, source in splits.items()} == {"train": 50_000, "test": 10_000}
    assert splits["test"][0].size == (32, 32)


def test_local_svhn(data_dir: Path) -> None:
    splits = open_splits("svhn", data_dir)
    assert len(splits["train"]) == 1_000
    assert splits["train"][999].size == (32, 32)
