from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from invertible_attention.experiments.data import PHOTOGRAPHS, draw_images, fit_counts, open_splits
from invertible_attention.experiments.data import images as images_module
from invertible_attention.experiments.errors import ExperimentError


@pytest.fixture
def twelve(tmp_path: Path) -> Path:
    """A folder of twelve images, number ``n`` filled with color ``n``."""
    for number in range(12):
        Image.fromarray(np.full((64, 48, 3), number, np.uint8)).save(tmp_path / f"{number:02}.png")
    return tmp_path


def colors(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_photographs_need_no_network_and_splits_are_disjoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import socket

    monkeypatch.setattr(socket, "socket", None)
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["test"])
    images = draw_images("photos", train=20, test=10)
    assert images.train.shape == (20, 3, 32, 32)
    assert images.test.shape == (10, 3, 32, 32)
    # Real content: crops differ from each other and are not constant.
    assert len({tuple(image.flatten().tolist()) for image in images.train}) == 20
    assert images.train.double().std((1, 2, 3)).mean() > 10


def test_bundled_photographs_are_complete() -> None:
    for source in open_splits("photos").values():
        for index in range(len(source)):
            assert min(source[index].size) >= 300


@pytest.mark.parametrize("name", ["photos", "folder"])
def test_split_depends_only_on_the_seed(twelve: Path, name: str) -> None:
    def draw(seed: int) -> str:
        return draw_images(name, train=5, test=4, seed=seed, data_dir=twelve).fingerprint()

    torch.manual_seed(1)
    first = draw(0)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(2)
    assert draw(0) == first
    assert draw(1) != first


def test_unsplit_folder_is_split_without_overlap(twelve: Path) -> None:
    images = draw_images("folder", train=7, test=5, data_dir=twelve)
    assert sorted(colors(images.train) + colors(images.test)) == list(range(12))
    assert colors(images.train) != sorted(colors(images.train))


def test_named_splits_are_kept(tmp_path: Path) -> None:
    for part, color in (("train", 10), ("test", 200)):
        (tmp_path / part).mkdir()
        for number in range(3):
            array = np.full((32, 32, 3), color + number, np.uint8)
            Image.fromarray(array).save(tmp_path / part / f"{number}.png")
    images = draw_images("folder", train=3, test=2, data_dir=tmp_path)
    assert sorted(colors(images.train)) == [10, 11, 12]
    assert set(colors(images.test)) < {200, 201, 202}


@pytest.mark.parametrize(("train", "test"), [(7, 6), (13, 1), (1, 12), (1000, 1000), (1, 1000), (1000, 1)])
def test_too_few_images_error_suggests_sizes_that_work(twelve: Path, train: int, test: int) -> None:
    with pytest.raises(ExperimentError) as caught:
        draw_images("folder", train=train, test=test, data_dir=twelve)
    message = str(caught.value)
    assert f"{train} training and {test} test images were asked for and there are 12" in message
    advised = re.search(r"pass --train-images (\d+) --test-images (\d+)", message)
    assert advised is not None
    images = draw_images("folder", train=int(advised[1]), test=int(advised[2]), data_dir=twelve)
    assert len(images.train) + len(images.test) == 12


def test_too_few_images_in_a_split_folder(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        for number in range(count):
            (tmp_path / part).mkdir(exist_ok=True)
            Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(tmp_path / part / f"{number}.png")
    with pytest.raises(ExperimentError, match="there are 3 and 2: pass --train-images 3 --test-images 1,"):
        draw_images("folder", train=9, test=1, data_dir=tmp_path)
    assert fit_counts("folder", train=9, test=9, data_dir=tmp_path) == (3, 2)


@given(
    available=st.integers(2, 3000),
    train=st.integers(1, 2000),
    test=st.integers(1, 2000),
    fixed=st.sampled_from([(False, False), (True, False), (False, True)]),
)
@settings(deadline=None)
def test_suggested_split_works_and_respects_the_request(available, train, test, fixed) -> None:
    first, second = images_module._divide(available, (train, test), fixed)
    assert 1 <= first <= train or fixed[1]
    assert 1 <= second <= test or fixed[0]
    if fixed[0]:
        assert first == train
    if fixed[1]:
        assert second == test
    if not any(fixed) or (train if fixed[0] else test) < available:
        assert first + second == min(available, train + test)


def test_single_image_cannot_be_split(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    for crops in (False, True):
        with pytest.raises(
            ExperimentError, match="there are 1: each part needs at least one image of its own"
        ):
            draw_images("folder", train=1, test=1, data_dir=tmp_path, random_crops=crops)


def test_two_photographs_give_crops_for_both_splits(tmp_path: Path) -> None:
    for number in range(2):
        Image.fromarray(np.full((64, 64, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    images = draw_images("folder", train=9, test=1, data_dir=tmp_path, random_crops=True)
    assert len(set(colors(images.train)) | set(colors(images.test))) == 2


def test_random_crops_use_photographs_evenly(twelve: Path) -> None:
    images = draw_images("folder", train=40, test=20, data_dir=twelve, random_crops=True)
    assert not set(colors(images.train)) & set(colors(images.test))
    counts = np.bincount(colors(images.train), minlength=12)
    assert counts.max() - counts[counts > 0].min() <= 1  # every photograph is used equally often


def test_only_celeba_images_are_labeled_celeba(twelve: Path) -> None:
    with pytest.raises(ExperimentError, match=r"not CelebA's images, 178×218 .*48×64.*--title"):
        draw_images("celeba", train=2, test=2, data_dir=twelve)
    stand_in = draw_images(
        "celeba", train=2, test=2, data_dir=twelve, title="Plain colors in CelebA's format"
    )
    assert stand_in.title == "Plain colors in CelebA's format"
    assert stand_in.train.shape == (2, 3, 32, 32)


def test_celeba_layout_at_both_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((218, 178, 3), number, np.uint8)).save(folder / f"{number:06}.png")
    lines = "\n".join(f"{number:06}.png {2 * (number // 2)}" for number in range(4))
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text(lines)
    for size in ((32, 32), (218, 178)):
        images = draw_images("celeba", train=2, test=2, size=size, data_dir=tmp_path)
        assert images.title == "CelebA"
        assert images.train.shape == (2, 3, *size)
        assert sorted(colors(images.train)) == [0, 1]
        assert sorted(colors(images.test)) == [2, 3]


def test_folder_dataset_needs_a_path() -> None:
    with pytest.raises(ExperimentError, match="needs --data-dir"):
        draw_images("folder", train=1, test=1)


def test_unknown_dataset() -> None:
    with pytest.raises(ValueError, match="got 'imagenet'"):
        open_splits("imagenet")


def test_full_size_crops_of_local_photographs(data_dir: Path) -> None:
    title = "CAMO photographs in CelebA's format"
    images = draw_images("celeba", train=4, test=3, size=(218, 178), data_dir=data_dir / "camo", title=title)
    assert images.train.shape == (4, 3, 218, 178)
    assert images.title == title


@pytest.mark.parametrize("random_crops", [False, True])
def test_every_file_that_cannot_be_read_is_named_once(twelve: Path, random_crops: bool) -> None:
    (twelve / "02.png").write_text("hello")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(twelve / "07.tif")
    with pytest.raises(ExperimentError) as error:
        draw_images(
            "folder",
            train=20 if random_crops else 9,
            test=20 if random_crops else 4,
            data_dir=twelve,
            random_crops=random_crops,
        )
    message = str(error.value)
    assert message.startswith("2 files cannot be used: ")
    assert message.count("02.png") == message.count("07.tif") == 1
    assert message.endswith(": repair or remove them")


def test_the_first_picture_of_an_animation_is_an_image_of_a_folder(tmp_path: Path) -> None:
    shades = [Image.new("L", (8, 8), shade) for shade in (50, 200)]
    for name in ("a.gif", "b.gif"):
        shades[0].save(tmp_path / name, save_all=True, append_images=shades[1:])
    images = draw_images("folder", train=1, test=1, size=(8, 8), data_dir=tmp_path)
    assert colors(images.train) == colors(images.test) == [50]
