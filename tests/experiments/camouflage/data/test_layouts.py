from __future__ import annotations

import pytest

from invertible_attention.experiments.camouflage.data.layouts import collect, find_parts
from invertible_attention.experiments.errors import ExperimentError

CAM = ["COD10K-CAM-1-Aquatic-1-BatFish-1", "COD10K-CAM-1-Aquatic-1-BatFish-2"]
NON_CAM = ["COD10K-NonCAM-1-Aquatic-1-BatFish-3"]

# Folders of images and of masks below the root, their split, and the dataset's name.
LAYOUTS = {
    "most common": [
        ("TrainDataset/Imgs", "TrainDataset/GT", "train", "anything"),
        ("TestDataset/CAMO/Imgs", "TestDataset/CAMO/GT", "test", "CAMO"),
        ("TestDataset/CHAMELEON/Imgs", "TestDataset/CHAMELEON/GT", "test", "CHAMELEON"),
        ("TestDataset/NC4K/Imgs", "TestDataset/NC4K/GT", "test", "NC4K"),
    ],
    "its variant": [
        ("TrainValDataset/Image", "TrainValDataset/GT", "train", "anything"),
        ("TestDataset/COD10K/Imgs", "TestDataset/COD10K/GT", "test", "COD10K"),
    ],
    "one folder per part": [
        ("Train/COD10K-TR/Image", "Train/COD10K-TR/Mask", "train", "COD10K"),
        ("Train/CAMO-TR/Image", "Train/CAMO-TR/Mask", "train", "CAMO"),
        ("Test/COD10K-TE/Image", "Test/COD10K-TE/Mask", "test", "COD10K"),
        ("Test/CAMO-TE/Image", "Test/CAMO-TE/Mask", "test", "CAMO"),
    ],
    "names within names": [
        ("train/CAMO/images/image", "train/CAMO/objects/GT_Object", "train", "CAMO"),
        ("test/mine/images/image", "test/mine/objects/GT_Object", "test", "mine"),
    ],
    "names of other things": [
        ("Train/CAMO/testudo/Imgs", "Train/CAMO/testudo/GT", "train", "testudo"),
        ("Test/PlantCAMO/im", "Test/PlantCAMO/gt", "test", "PlantCAMO"),
    ],
    "short names": [
        ("train/im", "train/gt", "train", "anything"),
        ("test/mine/im", "test/mine/gt", "test", "mine"),
    ],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_recognized(layout, tmp_path, write_pairs) -> None:
    root = tmp_path / "anything"
    for images, masks, _, name in LAYOUTS[layout]:
        write_pairs(root / images, root / masks, [f"{name}{i}" for i in range(2)])
    found = {(part.split, part.name, part.images, part.masks) for part in find_parts(root)}
    expected = {(split, name, root / images, root / masks) for images, masks, split, name in LAYOUTS[layout]}
    assert found == expected
    collections, problems = collect(find_parts(root))
    assert problems == []
    assert [len(collection) for _, collection in collections] == [2] * len(expected)


def test_cod10k_as_distributed_keeps_only_camouflaged_images(tmp_path, write_pairs) -> None:
    root = tmp_path / "COD10K-v3"
    for split in ("Train", "Test"):
        write_pairs(root / split / "Image", root / split / "GT_Object", CAM)
        write_pairs(root / split / "Image", None, NON_CAM)
        (root / split / "GT_Edge").mkdir()
    collections, problems = collect(find_parts(root))
    assert problems == []
    assert [(split, c.name, len(c), c.left_out) for split, c in collections] == [
        ("test", "COD10K", 2, 1),
        ("train", "COD10K", 2, 1),
    ]


def test_camo_as_distributed_shares_one_folder_of_masks(tmp_path, write_pairs) -> None:
    root = tmp_path / "CAMO-V.1.0-CVIU2019"
    write_pairs(root / "Images" / "Train", root / "GT", ["a", "b"])
    write_pairs(root / "Images" / "Test", root / "GT", ["c"])
    collections, problems = collect(find_parts(root))
    assert problems == []
    assert {(split, c.name): [pair.name for pair in c.pairs] for split, c in collections} == {
        ("train", "CAMO"): ["a", "b"],
        ("test", "CAMO"): ["c"],
    }


def test_mask_outside_both_splits_is_reported(tmp_path, write_pairs) -> None:
    root = tmp_path / "CAMO-V.1.0-CVIU2019"
    write_pairs(root / "Images" / "Train", root / "GT", ["a"])
    write_pairs(root / "Images" / "Test", root / "GT", ["c"])
    (root / "GT" / "stray.png").write_bytes((root / "GT" / "a.png").read_bytes())
    _, problems = collect(find_parts(root))
    assert {str(problem) for problem in problems} == {f"{root / 'GT' / 'stray.png'} has no image"}


def test_pairs_are_matched_by_stem(tmp_path, write_pairs) -> None:
    root = tmp_path / "TrainDataset"
    names = ["1", "10", "2", "a.b"]
    write_pairs(root / "Imgs", root / "GT", names)
    collections, _ = collect(find_parts(root))
    pairs = collections[0][1].pairs
    assert all(pair.image.stem == pair.mask.stem == pair.name for pair in pairs)
    assert {pair.name for pair in pairs} == set(names)


def test_unpaired_and_duplicate_files_are_reported(tmp_path, write_pairs) -> None:
    root = tmp_path / "TrainDataset"
    write_pairs(root / "Imgs", root / "GT", ["a", "b", "c"])
    (root / "GT" / "b.png").unlink()
    (root / "Imgs" / "c.jpg").unlink()
    (root / "Imgs" / "a.png").write_bytes((root / "Imgs" / "a.jpg").read_bytes())
    _, problems = collect(find_parts(root))
    assert {str(problem) for problem in problems} == {
        f"{root / 'Imgs' / 'a.png'} has the same name as a.jpg",
        f"{root / 'Imgs' / 'b.jpg'} has no mask",
        f"{root / 'GT' / 'c.png'} has no image",
    }


def test_wrong_layout_error_lists_found_and_expected_folders(tmp_path) -> None:
    (tmp_path / "photographs").mkdir()
    with pytest.raises(ExperimentError, match=r"it holds photographs.*expected TrainDataset/\{Imgs,GT\}"):
        find_parts(tmp_path)


def test_missing_and_empty_folders_are_reported(tmp_path) -> None:
    with pytest.raises(ExperimentError, match=r"there is no folder .*nowhere"):
        find_parts(tmp_path / "nowhere")
    with pytest.raises(ExperimentError, match="it holds nothing"):
        find_parts(tmp_path)


def test_folder_without_masks_is_reported(tmp_path, write_pairs) -> None:
    write_pairs(tmp_path / "Train" / "Imgs", None, ["a"])
    (tmp_path / "Test" / "Imgs").mkdir(parents=True)
    write_pairs(tmp_path / "Train" / "CAMO" / "Imgs", None, ["a"])
    (tmp_path / "Train" / "CAMO" / "GT").mkdir()
    _, problems = collect(find_parts(tmp_path))
    assert {str(problem) for problem in problems} == {
        f"{tmp_path / 'Train' / 'Imgs'} has no folder of masks next to it (GT, Mask …)",
        f"{tmp_path / 'Test' / 'Imgs'} holds no images",
        f"{tmp_path / 'Train' / 'CAMO' / 'GT'} holds no masks",
    }


def test_masks_are_optional_for_predictions(tmp_path, write_pairs) -> None:
    write_pairs(tmp_path / "Test" / "Imgs", tmp_path / "Test" / "GT", ["a", "b"])
    (tmp_path / "Test" / "GT" / "b.png").unlink()
    collections, problems = collect(find_parts(tmp_path), masks=False)
    assert problems == []
    assert {pair.name: pair.mask is None for pair in collections[0][1].pairs} == {"a": False, "b": True}


def test_cyclic_links_terminate(tmp_path, write_pairs) -> None:
    write_pairs(tmp_path / "Train" / "Imgs", tmp_path / "Train" / "GT", ["a"])
    (tmp_path / "Train" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert len(find_parts(tmp_path)) == 1


def test_two_mask_folders_are_refused(tmp_path, write_pairs) -> None:
    write_pairs(tmp_path / "Train" / "Imgs", tmp_path / "Train" / "GT", ["a"])
    write_pairs(tmp_path / "Train" / "Imgs", tmp_path / "Train" / "Mask", ["a"])
    with pytest.raises(ExperimentError, match="Train holds GT and Mask: which of them is meant"):
        find_parts(tmp_path)


def test_duplicate_images_are_reported_for_prediction(tmp_path, write_pairs) -> None:
    write_pairs(tmp_path / "Test" / "Imgs", tmp_path / "Test" / "GT", ["a"])
    (tmp_path / "Test" / "Imgs" / "a.png").write_bytes((tmp_path / "Test" / "Imgs" / "a.jpg").read_bytes())
    _, problems = collect(find_parts(tmp_path), masks=False)
    assert [str(problem) for problem in problems] == [
        f"{tmp_path / 'Test' / 'Imgs' / 'a.png'} has the same name as a.jpg"
    ]


def test_images_in_subfolders_are_not_dropped_silently(tmp_path, write_pairs) -> None:
    root = tmp_path / "Train"
    write_pairs(root / "Imgs", root / "GT", ["a"])
    write_pairs(root / "Imgs" / "more", root / "GT" / "more", ["b"])
    (root / "Imgs" / "empty").mkdir()
    for masks in (True, False):
        _, problems = collect(find_parts(tmp_path), masks=masks)
        assert [problem.path for problem in problems] == [root / "Imgs" / "more"]
