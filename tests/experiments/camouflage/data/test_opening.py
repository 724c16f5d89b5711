from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from invertible_attention.experiments.camouflage.data import open_data, open_images
from invertible_attention.experiments.errors import ExperimentError


def test_training_and_test_pairs_are_found(dataset) -> None:
    data = open_data([dataset])
    assert data.describe() == "training on dataset 6; testing on CAMO 3"
    assert len(data.train_pairs) == 6


def test_checks_report_their_progress(dataset) -> None:
    seen: list[tuple[int, int]] = []
    open_data([dataset], report=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)] + [(i, 3) for i in range(1, 4)]


def test_all_unusable_files_are_reported_in_one_message(dataset) -> None:
    train = dataset / "TrainDataset"
    image, mask = train / "Imgs", train / "GT"
    (image / "train_0.jpg").write_bytes((image / "train_0.jpg").read_bytes()[:300])
    (image / "train_1.jpg").write_bytes(b"")
    Image.fromarray(np.zeros((10, 20), dtype=np.uint8)).save(mask / "train_2.png")
    (mask / "train_3.png").write_bytes((mask / "train_3.png").read_bytes()[:60])
    (mask / "train_4.png").unlink()
    with pytest.raises(ExperimentError) as caught:
        open_data([dataset])
    message = str(caught.value)
    assert message.startswith("5 files cannot be used: ")
    assert message.count("\n") == 0
    for name in ("Imgs/train_0.jpg", "Imgs/train_1.jpg", "GT/train_3.png"):
        assert f"{train / name} cannot be read as an image" in message
    assert f"{mask / 'train_2.png'} is 20×10 and its image train_2.jpg is 40×30" in message
    assert f"{image / 'train_4.jpg'} has no mask" in message
    assert "train_5" not in message
    assert "--leave-out-bad" in message


def test_unusable_files_can_be_skipped(dataset) -> None:
    train = dataset / "TrainDataset"
    (train / "Imgs" / "train_1.jpg").write_bytes(b"")
    (train / "GT" / "train_4.png").unlink()
    data = open_data([dataset], leave_out_bad=True)
    assert [pair.name for pair in data.train_pairs] == ["train_0", "train_2", "train_3", "train_5"]


def test_long_lists_are_written_to_a_file(tmp_path, write_pairs) -> None:
    root = tmp_path / "TrainDataset"
    write_pairs(root / "Imgs", root / "GT", [f"{i:02}" for i in range(15)])
    for path in (root / "GT").iterdir():
        path.write_bytes(b"?")
    listing = tmp_path / "listing.txt"
    with pytest.raises(ExperimentError, match=r"; and 5 more, all listed in .*listing\.txt"):
        open_data([root], listing=listing)
    assert len(listing.read_text().splitlines()) == 15


def test_empty_training_set_is_refused(tmp_path, write_pairs) -> None:
    root = tmp_path / "TestDataset"
    write_pairs(root / "Imgs", root / "GT", ["a"])
    with pytest.raises(ExperimentError, match=r"nothing to train on in .*TestDataset"):
        open_data([root])
    assert open_data([root], need_train=False).describe() == "training on nothing; testing on TestDataset 1"


def test_ambiguous_split_must_be_given(tmp_path, write_pairs) -> None:
    root = tmp_path / "mine"
    write_pairs(root / "Imgs", root / "GT", ["a"])
    with pytest.raises(ExperimentError, match="--train-data or --test-data"):
        open_data([root])
    assert open_data([], train_roots=[root]).describe() == "training on mine 1; testing on nothing"


def test_overlap_of_training_and_test_images_is_refused(tmp_path, write_pairs) -> None:
    root = tmp_path / "mine"
    write_pairs(root / "Imgs", root / "GT", ["a"])
    with pytest.raises(ExperimentError, match=r"a\.jpg would be both trained and tested on"):
        open_data([], train_roots=[root], test_roots=[root])


def test_images_without_a_dataset_layout_can_be_predicted(tmp_path, write_pairs) -> None:
    write_pairs(tmp_path / "photos", None, ["a", "b"])
    (collection,) = open_images(tmp_path / "photos")
    assert (collection.name, [pair.name for pair in collection.pairs]) == ("photos", ["a", "b"])


def test_real_camo_is_complete(data_dir) -> None:
    root = data_dir / "camo"
    if not root.is_dir():
        pytest.skip("needs camo/ in the folder of real data")
    assert open_data([root]).describe() == "training on CAMO 996; testing on CAMO 248"


def test_ambiguous_masks_are_reported_with_a_remedy(dataset) -> None:
    mask = dataset / "TrainDataset" / "GT" / "train_2.png"
    values = np.zeros((30, 40), dtype=np.uint8)
    values[5:20, 5:15], values[5:20, 20:30] = 1, 2
    Image.fromarray(values).save(mask)
    with pytest.raises(ExperimentError, match=r"train_2\.png has the values 0, 1, 2.*255 in the object"):
        open_data([dataset])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_before_pairing_with_masks(orientation, dataset, write_pairs) -> None:
    image = dataset / "TrainDataset" / "Imgs" / "train_0.jpg"
    turned = orientation > 4
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (30, 40) if turned else (40, 30)).save(image, exif=exif)
    assert len(open_data([dataset]).train_pairs) == 6


def test_datasets_are_distinguished_by_their_full_names(tmp_path, write_pairs) -> None:
    for name in ("CAMO", "PlantCAMO"):
        folder = tmp_path / "TestDataset" / name
        write_pairs(folder / "Imgs", folder / "GT", ["a", "b", "c", "d"])
    data = open_data([tmp_path / "TestDataset"], need_train=False)
    assert data.describe() == "training on nothing; testing on CAMO 4, PlantCAMO 4"


def test_duplicate_test_set_names_are_refused(tmp_path, write_pairs) -> None:
    for place in ("one", "two"):
        folder = tmp_path / place / "Test" / "CAMO"
        write_pairs(folder / "Imgs", folder / "GT", [place])
    with pytest.raises(
        ExperimentError, match=r"two/Test/CAMO/Imgs is called CAMO as .*one/Test/CAMO/Imgs is"
    ):
        open_data([tmp_path / "one", tmp_path / "two"], need_train=False)


def test_test_masks_of_a_different_size_are_accepted_and_reported(tmp_path, write_pairs) -> None:
    folder = tmp_path / "TestDataset" / "NC4K"
    write_pairs(folder / "Imgs", folder / "GT", ["a", "b"])
    Image.new("L", (20, 15), 255).save(folder / "GT" / "b.png")
    described = open_data([tmp_path / "TestDataset"], need_train=False).describe()
    assert described.startswith(
        "training on nothing; testing on NC4K 2 (1 masks of another size than their image"
    )


def test_all_problems_of_a_folder_are_reported_together(tmp_path, write_pairs) -> None:
    root = tmp_path / "data"
    write_pairs(root / "mine" / "Imgs", root / "mine" / "GT", ["a"])
    write_pairs(root / "Train" / "Imgs", root / "Train" / "GT", ["a", "b"])
    write_pairs(root / "Test" / "Imgs", root / "Test" / "GT", ["c"])
    (root / "Train" / "GT" / "b.png").write_bytes(b"?")
    (root / "Test" / "Imgs" / "c.jpg").unlink()
    (root / "Test" / "Imgs" / "c.jpg").symlink_to(root / "Train" / "Imgs" / "a.jpg")
    with pytest.raises(ExperimentError) as caught:
        open_data([root])
    for told in ("mine/Imgs does not say", "b.png cannot be read", "c.jpg would be both"):
        assert told in str(caught.value)


def test_duplicate_image_names_are_reported(tmp_path, write_pairs) -> None:
    write_pairs(tmp_path, None, ["x"])
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(ExperimentError, match=r"x\.png has the same name as x\.jpg"):
        open_images(tmp_path)
