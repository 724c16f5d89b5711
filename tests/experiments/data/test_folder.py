from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from invertible_attention.experiments.data import folder_splits, image_files
from invertible_attention.experiments.data.folder import describe_folder
from invertible_attention.experiments.errors import ExperimentError


def write_image(path: Path, color: int, size: tuple[int, int] = (40, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), color, np.uint8)).save(path)
    return path


def test_flat_folder_is_a_single_split(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / f"{number}.png", number)
    (tmp_path / "readme.txt").write_text("not an image")
    write_image(tmp_path / ".thumbnails" / "0.png", 9)
    splits = folder_splits(tmp_path)
    assert list(splits) == ["all"]
    assert [splits["all"][i].getpixel((0, 0)) for i in range(len(splits["all"]))] == [
        (0, 0, 0),
        (1, 1, 1),
        (2, 2, 2),
    ]


def test_train_and_test_folders_are_recognized_and_masks_skipped(tmp_path: Path) -> None:
    write_image(tmp_path / "TrainDataset" / "Imgs" / "a.jpg", 1)
    write_image(tmp_path / "TrainDataset" / "GT" / "a.png", 255)
    write_image(tmp_path / "TestDataset" / "CAMO" / "Imgs" / "b.jpg", 2)
    write_image(tmp_path / "TestDataset" / "CAMO" / "GT" / "b.png", 255)
    splits = folder_splits(tmp_path)
    assert {split: [Path(s.name(i)).name for i in range(len(s))] for split, s in splits.items()} == {
        "train": ["a.jpg"],
        "test": ["b.jpg"],
    }


def test_celeba_as_distributed(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / "img_align_celeba" / f"00000{number}.jpg", number, (218, 178))
    (tmp_path / "list_eval_partition.txt").write_text(
        "000000.jpg 0\n000001.jpg 2\n000002.jpg 0\n000003.jpg 1\n"
    )
    splits = folder_splits(tmp_path)
    assert {split: len(source) for split, source in splits.items()} == {"train": 2, "valid": 1, "test": 1}
    assert splits["test"].name(0).endswith("000001.jpg")
    assert splits["train"][0].size == (178, 218)


@pytest.mark.parametrize("line", ["000000.jpg 3", "../../etc/passwd 0", "000000.jpg"])
def test_damaged_partition_error_names_the_line(tmp_path: Path, line: str) -> None:
    write_image(tmp_path / "img_align_celeba" / "000000.jpg", 0)
    (tmp_path / "list_eval_partition.txt").write_text(f"000000.jpg 0\n{line}\n")
    with pytest.raises(ExperimentError, match=r"list_eval_partition\.txt, line 2"):
        folder_splits(tmp_path)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="there is no folder"):
        folder_splits(tmp_path / "absent")
    with pytest.raises(ExperimentError, match="holds no images"):
        folder_splits(tmp_path)
    assert image_files(tmp_path) == []


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_image_error_names_the_file(tmp_path: Path, damage: str) -> None:
    path = write_image(tmp_path / "broken.png", 7, (64, 64))
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[damage])
    source = folder_splits(tmp_path)["all"]
    with pytest.raises(ExperimentError, match=r"broken\.png cannot be read as an image"):
        source[0]


def test_deleted_image_error_names_the_file(tmp_path: Path) -> None:
    path = write_image(tmp_path / "gone.png", 7)
    source = folder_splits(tmp_path)["all"]
    path.unlink()
    with pytest.raises(ExperimentError, match=r"cannot read .*gone\.png"):
        source[0]


def test_oversized_image_is_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (12_000, 12_000)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(ExperimentError, match=r"bomb\.png is too large"):
        folder_splits(tmp_path)["all"][0]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (16, 16)).save(tmp_path / "x.png")
    assert folder_splits(tmp_path)["all"][0].mode == "RGB"


def test_folders_with_train_or_test_as_prefix_only_are_not_splits(tmp_path: Path) -> None:
    for name in ("trains", "testudo", "testimonials"):
        write_image(tmp_path / name / "a.png", 1)
    splits = folder_splits(tmp_path)
    assert {split: len(images) for split, images in splits.items()} == {"all": 3}


def test_links_are_followed_without_duplicates(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_image(tmp_path / "elsewhere" / "a.png", 1)
    write_image(root / "b.png", 2)
    (root / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "linked too").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "back").symlink_to(root, target_is_directory=True)
    (root / "c.png").symlink_to(root / "b.png")
    assert image_files(root) == [root / "b.png", root / "linked" / "a.png"]


def test_skipped_files_and_the_split_are_reported(tmp_path: Path) -> None:
    for name in (
        "a.png",
        "b.JPG",
        "masks/a.png",
        ".hidden.png",
        "read me.txt",
        *(f"{i}.pdf" for i in range(9)),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 12)).save(tmp_path / name, format="PNG")
    said = describe_folder(tmp_path, folder_splits(tmp_path))
    assert said.startswith("2 images, divided into training and test at random, by the seed; skipped")
    assert said.endswith("0.pdf, 1.pdf, 2.pdf, 3.pdf, 4.pdf and 6 more.")
    for part in ("train", "test"):
        (tmp_path / "own" / part).mkdir(parents=True)
        Image.new("RGB", (12, 12)).save(tmp_path / "own" / part / "x.png")
    own = tmp_path / "own"
    said = describe_folder(own, folder_splits(own))
    assert said == "2 images, divided into training and test as its folders say; no file is skipped."
