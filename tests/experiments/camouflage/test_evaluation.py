from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("py_sod_metrics")

from invertible_attention.experiments.camouflage.evaluation import (
    ScoredPair,
    match_folders,
    read_map,
    resize_map,
    score_pairs,
)
from invertible_attention.experiments.errors import ExperimentError

OBJECT = np.zeros((30, 40), dtype=bool)
OBJECT[5:20, 5:25] = True


def _save(path, values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def _mask(path, top: int = 255) -> None:
    _save(path, OBJECT.astype(np.uint8) * np.uint8(top))


@pytest.mark.parametrize(
    ("maps", "masks"),
    [
        (".", "."),
        ("CAMO", "GT"),
        ("CAMO", "TestDataset/CAMO/GT"),
        ("CAMO-TE", "Test/CAMO-TE/Mask"),
        ("mine", "mine"),
    ],
)
def test_folders_are_matched_in_every_layout(maps, masks, tmp_path) -> None:
    for name in ("a", "b"):
        _mask(tmp_path / "maps" / maps / f"{name}.png")
        _mask(tmp_path / "masks" / masks / f"{name}.png")
    datasets, problems, unmatched = match_folders(tmp_path / "maps", tmp_path / "masks")
    assert problems == unmatched == []
    (pairs,) = datasets.values()
    assert [(pair.prediction.stem, pair.mask.stem) for pair in pairs] == [("a", "a"), ("b", "b")]


def test_training_masks_are_ignored_and_datasets_separated(tmp_path) -> None:
    for name in ("CAMO", "NC4K"):
        _mask(tmp_path / "data" / "TestDataset" / name / "GT" / f"{name}.png")
        _mask(tmp_path / "maps" / name / f"{name}.png")
    _mask(tmp_path / "data" / "TrainDataset" / "GT" / "x.png")
    datasets, problems, unmatched = match_folders(tmp_path / "maps", tmp_path / "data")
    assert problems == unmatched == []
    assert {name: [pair.mask.stem for pair in pairs] for name, pairs in datasets.items()} == {
        "CAMO": ["CAMO"],
        "NC4K": ["NC4K"],
    }


def test_unmatched_files_are_reported(tmp_path) -> None:
    _mask(tmp_path / "maps" / "a.png")
    _mask(tmp_path / "maps" / "extra.png")
    _mask(tmp_path / "masks" / "a.png")
    _mask(tmp_path / "masks" / "missing.png")
    _, problems, _ = match_folders(tmp_path / "maps", tmp_path / "masks")
    assert {str(problem) for problem in problems} == {
        f"{tmp_path / 'masks' / 'missing.png'} has no map",
        f"{tmp_path / 'maps' / 'extra.png'} has no mask",
    }


def test_unmatched_datasets_are_reported(tmp_path) -> None:
    for name in ("CAMO", "CHAMELEON"):
        _mask(tmp_path / "masks" / name / "a.png")
    for name in ("CAMO", "CHAMELON"):
        _mask(tmp_path / "maps" / name / "a.png")
    pairs, problems, unmatched = match_folders(tmp_path / "maps", tmp_path / "masks")
    assert (list(pairs), problems) == (["CAMO"], [])
    assert unmatched == ["CHAMELEON has masks and no maps", "CHAMELON has maps and no masks"]


def test_mismatched_names_are_reported(tmp_path) -> None:
    for name in ("CAMO", "NC4K"):
        _mask(tmp_path / "maps" / name / "a.png")
    for name in ("one", "two"):
        _mask(tmp_path / "masks" / name / "a.png")
    with pytest.raises(ExperimentError, match="maps for CAMO, NC4K, .* masks for one, two: name"):
        match_folders(tmp_path / "maps", tmp_path / "masks")


def test_missing_and_empty_folders_are_reported(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    _mask(tmp_path / "masks" / "a.png")
    with pytest.raises(ExperimentError, match="no folder .*nowhere"):
        match_folders(tmp_path / "nowhere", tmp_path / "masks")
    with pytest.raises(ExperimentError, match="empty holds no maps"):
        match_folders(tmp_path / "empty", tmp_path / "masks")


@pytest.mark.parametrize("top", [1, 255])
def test_perfect_maps_score_perfectly_for_any_mask_values(tmp_path, top) -> None:
    _mask(tmp_path / "map.png")
    _mask(tmp_path / "mask.png", top)
    scores, problems, resized = score_pairs([ScoredPair(tmp_path / "map.png", tmp_path / "mask.png")])
    assert problems == resized == []
    assert scores.mae == 0
    assert scores.s_measure == pytest.approx(1, abs=1e-3)
    assert scores.max_f == pytest.approx(1, abs=1e-6)


def test_maps_of_a_different_size_are_resized_and_reported(tmp_path) -> None:
    big = np.kron(OBJECT, np.ones((2, 2))).astype(np.uint8) * 255
    _save(tmp_path / "map.png", big)
    _mask(tmp_path / "mask.png")
    _mask(tmp_path / "good.png")
    pairs = [ScoredPair(tmp_path / name, tmp_path / "mask.png") for name in ("map.png", "good.png")]
    told = f"{tmp_path / 'map.png'} is 80×60 and its mask mask.png is 40×30"
    scores, problems, resized = score_pairs(pairs)
    assert (problems, [str(item) for item in resized]) == ([], [told])
    assert scores.mae < 0.02
    scores, problems, resized = score_pairs(pairs, resize=False)
    assert ([str(problem) for problem in problems], resized) == ([told], [])
    assert scores.mae == 0


def test_resizing_matches_opencv() -> None:
    """Values of cv2.resize(values, size) of OpenCV 4, up to its rounding to eleven bits."""
    ramp = np.array([[0, 100, 200, 250]], dtype=np.uint8)
    assert resize_map(ramp, (1, 8)).tolist() == [[0, 25, 75, 125, 175, 212, 238, 250]]
    assert resize_map(ramp, (1, 2)).tolist() == [[50, 225]]
    spike = np.zeros((1, 9), dtype=np.uint8)
    spike[0, 3] = 255
    assert resize_map(spike, (1, 3)).tolist() == [[0, 0, 0]]  # not smoothed


def test_damaged_maps_are_reported(tmp_path) -> None:
    _mask(tmp_path / "mask.png")
    (tmp_path / "map.png").write_bytes(b"?")
    with pytest.raises(ExperimentError, match=r"1 file cannot be used: .*map\.png cannot be read"):
        score_pairs([ScoredPair(tmp_path / "map.png", tmp_path / "mask.png")])
    with pytest.raises(ExperimentError, match="nothing to score"):
        score_pairs([])


def test_every_bit_depth_is_read_as_eight_bits(tmp_path) -> None:
    values = np.linspace(0, 255, 1200).reshape(30, 40).round().astype(np.uint8)
    _save(tmp_path / "8.png", values)
    _save(tmp_path / "16.png", values.astype(np.uint16) * 257)
    _save(tmp_path / "color.png", np.dstack([values] * 3))
    _save(tmp_path / "1.png", OBJECT)
    assert np.array_equal(read_map(tmp_path / "8.png"), values)
    assert np.array_equal(read_map(tmp_path / "16.png"), values)
    assert np.array_equal(read_map(tmp_path / "color.png"), values)
    assert np.array_equal(read_map(tmp_path / "1.png"), OBJECT * 255)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("RGBA", "transparent in part"), ("RGB", "is in color"), ("F", "no numbers")],
)
def test_color_maps_are_refused(kind, reason, tmp_path) -> None:
    if kind == "F":
        image = Image.fromarray(np.full((30, 40), np.nan, dtype=np.float32))
    else:
        image = Image.new(kind, (40, 30), (0, 0, 0, 9) if kind == "RGBA" else "red")
    image.save(tmp_path / "map.tif")
    with pytest.raises(ExperimentError, match=rf"map\.tif.*{reason}.*gray"):
        read_map(tmp_path / "map.tif")


def _layout(folder, *names: str, stems=("a", "b")) -> None:
    for name in names:
        for stem in stems:
            _mask(folder / name / f"{stem}.png")


def test_names_are_matched_in_full(tmp_path) -> None:
    sets = ("CAMO", "PlantCAMO", "CAMO++", "COD10K", "COD10K-plus", "NC4Kids")
    _layout(tmp_path / "maps", *sets)
    _layout(tmp_path / "data", *(f"TestDataset/{name}/GT" for name in sets))
    datasets, problems, unmatched = match_folders(tmp_path / "maps", tmp_path / "data")
    assert problems == unmatched == []
    assert {name: pairs[0].prediction.parent.name for name, pairs in datasets.items()} == {n: n for n in sets}
    assert all(pair.mask.parent.parent.name == name for name, pairs in datasets.items() for pair in pairs)


def test_distributors_names_map_to_the_dataset(tmp_path) -> None:
    _layout(tmp_path / "maps", "camo", "COD10K-TE")
    _layout(tmp_path / "data", "CAMO-V.1.0-CVIU2019/GT", "COD10K-v3/Test/GT_Object")
    datasets, problems, unmatched = match_folders(tmp_path / "maps", tmp_path / "data")
    assert (set(datasets), problems, unmatched) == ({"CAMO", "COD10K"}, [], [])


@pytest.mark.parametrize("methods", [("good", "bad"), ("CAMO-Net", "SINet-V2"), ("group/a", "group/b")])
def test_methods_are_kept_separate(methods, tmp_path) -> None:
    _layout(tmp_path / "masks", "CAMO/GT", "NC4K/GT")
    _layout(tmp_path / "maps", *(f"{method}/{name}" for method in methods for name in ("CAMO", "NC4K")))
    datasets, problems, unmatched = match_folders(tmp_path / "maps", tmp_path / "masks")
    assert problems == unmatched == []
    assert set(datasets) == {f"{method}/{name}" for method in methods for name in ("CAMO", "NC4K")}
    for label, pairs in datasets.items():
        assert [pair.prediction for pair in pairs] == [tmp_path / "maps" / label / f"{n}.png" for n in "ab"]


def test_perfect_method_scores_perfectly_next_to_its_negative(tmp_path) -> None:
    _layout(tmp_path / "masks", ".")
    _layout(tmp_path / "maps", "good", "bad")
    for stem in ("a", "b"):
        _save(tmp_path / "maps" / "bad" / f"{stem}.png", (~OBJECT * 255).astype(np.uint8))
    datasets, *_ = match_folders(tmp_path / "maps", tmp_path / "masks")
    found = {label: score_pairs(pairs).scores.mae for label, pairs in datasets.items()}
    assert found == {"bad/masks": 1, "good/masks": 0}


def test_missing_maps_of_a_method_are_reported(tmp_path) -> None:
    _layout(tmp_path / "masks", "CAMO", "NC4K")
    _layout(tmp_path / "maps", "one/CAMO", "one/NC4K", "two/CAMO", "two/NC4KX")
    (tmp_path / "maps" / "two" / "CAMO" / "b.png").unlink()
    _, problems, unmatched = match_folders(tmp_path / "maps", tmp_path / "masks")
    assert [str(p) for p in problems] == [f"{tmp_path / 'masks' / 'CAMO' / 'b.png'} has no map of two"]
    assert unmatched == ["two/NC4KX has maps and no masks", "two has no maps for NC4K"]


def test_duplicate_file_names_are_reported(tmp_path) -> None:
    _layout(tmp_path / "masks", ".", stems=("x",))
    _layout(tmp_path / "maps", ".", stems=("x",))
    Image.fromarray(OBJECT).convert("L").save(tmp_path / "maps" / "x.jpg")
    _, problems, _ = match_folders(tmp_path / "maps", tmp_path / "masks")
    assert [str(problem) for problem in problems] == [
        f"{tmp_path / 'maps' / 'x.png'} has the same name as x.jpg"
    ]


def test_duplicate_folder_names_are_refused(tmp_path) -> None:
    _layout(tmp_path / "masks", "CAMO")
    _layout(tmp_path / "maps", "CAMO", "Test/camo-te")
    with pytest.raises(ExperimentError, match=r"maps/CAMO and .*camo-te are both called CAMO: rename one"):
        match_folders(tmp_path / "maps", tmp_path / "masks")
    with pytest.raises(ExperimentError, match="both called CAMO"):
        match_folders(tmp_path / "masks", tmp_path / "maps")


def test_links_to_folders_are_followed(tmp_path) -> None:
    _layout(tmp_path / "elsewhere", ".")
    _layout(tmp_path / "masks", "CAMO", "NC4K")
    (tmp_path / "maps").mkdir()
    for name in ("CAMO", "NC4K"):
        (tmp_path / "maps" / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "masks" / "again").symlink_to(tmp_path / "masks", target_is_directory=True)
    datasets, problems, unmatched = match_folders(tmp_path / "maps", tmp_path / "masks")
    assert (list(datasets), problems, unmatched) == (["CAMO", "NC4K"], [], [])
