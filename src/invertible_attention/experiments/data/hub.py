"""Images in tables: a dataset of the Hugging Face hub, or its parquet files on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import ExperimentError
from .source import ImageSource, decode

__all__ = ["HubImages", "hub_splits", "parquet_files", "parquet_splits"]


class HubImages(ImageSource):
    """The image column of a Hugging Face dataset.

    Args:
        table: a ``datasets.Dataset``; its image column is found by type, whatever its name.
        title: what to call the dataset in messages.

    Raises:
        ExperimentError: when no column holds images.
    """

    def __init__(self, table: Any, title: str):
        from datasets import Image as ImageFeature

        columns = [name for name, kind in table.features.items() if isinstance(kind, ImageFeature)]
        columns = columns or [name for name, kind in table.features.items() if _holds_files(kind)]
        if not columns:
            raise ExperimentError(f"{title} has no image column, only {', '.join(table.column_names)}")
        self.column = columns[0]
        self.title = title
        self.table = table.cast_column(self.column, ImageFeature(decode=False))

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> Image.Image:
        entry = self.table[int(index)][self.column]
        name = self.name(index)
        if entry is None or (entry.get("bytes") is None and not entry.get("path")):
            raise ExperimentError(f"{name} is empty")
        return decode(
            entry["bytes"] if entry["bytes"] is not None else Path(entry["path"]).read_bytes(), name
        )

    def name(self, index: int) -> str:
        """Return the dataset and row."""
        return f"{self.title}, row {index}"


def _holds_files(kind: Any) -> bool:
    # Parquet written without the hub's metadata: a plain struct of bytes and path.
    return isinstance(kind, dict) and set(kind) == {"bytes", "path"}


def parquet_files(root: Path) -> dict[str, list[str]]:
    """Return the parquet files below ``root`` by split, according to how their names begin, as on the hub."""
    files: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.parquet")) if root.is_dir() else []:
        split = next(
            (s for s in ("train", "valid", "test", "extra") if path.name.lower().startswith(s)), "all"
        )
        files.setdefault(split, []).append(str(path))
    return files


def parquet_splits(root: Path) -> dict[str, ImageSource]:
    """Open the parquet files below ``root``, one source per split.

    Raises:
        ExperimentError: when a file cannot be read.
    """
    files = parquet_files(root)
    with _quiet() as datasets:
        try:
            tables = datasets.load_dataset("parquet", data_files=files)
        except (OSError, ValueError, RuntimeError) as error:
            raise ExperimentError(f"cannot read the parquet files in {root}: {_reason(error)}") from error
    return {split: HubImages(table, f"{root.name} ({split})") for split, table in tables.items()}


def hub_splits(name: str, configuration: str | None, title: str) -> dict[str, ImageSource]:
    """Load a dataset by its hub name, one source per split.

    Raises:
        ExperimentError: when the hub cannot be reached or does not have it.
    """
    with _quiet() as datasets:
        try:
            splits = datasets.load_dataset(name, configuration)
        except (OSError, ValueError, RuntimeError) as error:
            raise ExperimentError(
                f"cannot load {name} from the hub ({_reason(error)}): give local files with --data-dir"
            ) from error
    return {split: HubImages(table, f"{title} ({split})") for split, table in splits.items()}


def _reason(error: BaseException) -> str:
    # The library wraps what went wrong in a general "An error occurred while generating the dataset".
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[Any]:
    import datasets

    logger = logging.getLogger("datasets")
    level = logger.level
    bars = datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield datasets
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
