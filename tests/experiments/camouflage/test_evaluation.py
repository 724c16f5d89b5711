from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("py_sod_metrics")

from invertible_attention.experiments.camouflage.evaluation import (
    ScoredPair,
    match_folders,
    read_map,
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


def test_training_masks_are_left_aside_and_datasets_kept_apart(tmp_path) -> None:
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


def test_files_without_a_partner_are_named(tmp_path) -> None:
    _mask(tmp_path / "maps" / "a.png")
    _mask(tmp_path / "maps" / "extra.png")
    _mask(tmp_path / "masks" / "a.png")
    _mask(tmp_path / "masks" / "missing.png")
    _, problems, _ = match_folders(tmp_path / "maps", tmp_path / "masks")
    assert {str(problem) for problem in problems} == {
        f"{tmp_path / 'masks' / 'missing.png'} has no map",
        f"{tmp_path / 'maps' / 'extra.png'} has no mask",
    }


def test_datasets_without_a_partner_are_named(tmp_path) -> None:
    for name in ("CAMO", "CHAMELEON"):
        _mask(tmp_path / "masks" / name / "a.png")
    for name in ("CAMO", "CHAMELON"):
        _mask(tmp_path / "maps" / name / "a.png")
    pairs, problems, unmatched = match_folders(tmp_path / "maps", tmp_path / "masks")
    assert (list(pairs), problems) == (["CAMO"], [])
    assert unmatched == ["CHAMELEON has masks and no maps", "CHAMELON has maps and no masks"]


def test_names_that_do_not_agree_are_shown(tmp_path) -> None:
    for name in ("CAMO", "NC4K"):
        _mask(tmp_path / "maps" / name / "a.png")
    for name in ("one", "two"):
        _mask(tmp_path / "masks" / name / "a.png")
    with pytest.raises(ExperimentError, match="maps for CAMO, NC4K, .* masks for one, two: name"):
        match_folders(tmp_path / "maps", tmp_path / "masks")


def test_missing_and_empty_folders_are_named(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    _mask(tmp_path / "masks" / "a.png")
    with pytest.raises(ExperimentError, match="no folder .*nowhere"):
        match_folders(tmp_path / "nowhere", tmp_path / "masks")
    with pytest.raises(ExperimentError, match="empty holds no maps"):
        match_folders(tmp_path / "empty", tmp_path / "masks")


@pytest.mark.parametrize("top", [1, 255])
def test_perfect_maps_get_perfect_scores_whatever_the_masks_values(tmp_path, top) -> None:
    _mask(tmp_path / "map.png")
    _mask(tmp_path / "mask.png", top)
    scores, problems = score_pairs([ScoredPair(tmp_path / "map.png", tmp_path / "mask.png")])
    assert problems == []
    assert scores.mae == 0
    assert scores.s_measure == pytest.approx(1, abs=1e-3)
    assert scores.max_f == pytest.approx(1, abs=1e-6)


def test_maps_of_another_size_are_reported_or_scaled(tmp_path) -> None:
    big = np.kron(OBJECT, np.ones((2, 2))).astype(np.uint8) * 255
    _save(tmp_path / "map.png", big)
    _mask(tmp_path / "mask.png")
    _mask(tmp_path / "good.png")
    pairs = [ScoredPair(tmp_path / name, tmp_path / "mask.png") for name in ("map.png", "good.png")]
    _, problems = score_pairs(pairs)
    assert [str(problem) for problem in problems] == [
        f"{tmp_path / 'map.png'} is 80×60 and its mask mask.png is 40×30 (--resize scales maps)"
    ]
    scores, problems = score_pairs(pairs, resize=True)
    assert problems == []
    assert scores.mae < 0.02


def test_damaged_maps_are_named(tmp_path) -> None:
    _mask(tmp_path / "mask.png")
    (tmp_path / "map.png").write_bytes(b"?")
    with pytest.raises(ExperimentError, match=r"1 file cannot be used: .*map\.png cannot be read"):
        score_pairs([ScoredPair(tmp_path / "map.png", tmp_path / "mask.png")])
    with pytest.raises(ExperimentError, match="nothing to score"):
        score_pairs([])


def test_maps_of_every_depth_are_read_as_eight_bits(tmp_path) -> None:
    values = np.linspace(0, 255, 1200).reshape(30, 40).round().astype(np.uint8)
    _save(tmp_path / "8.png", values)
    _save(tmp_path / "16.png", values.astype(np.uint16) * 257)
    _save(tmp_path / "colour.png", np.dstack([values] * 3))
    _save(tmp_path / "1.png", OBJECT)
    assert np.array_equal(read_map(tmp_path / "8.png"), values)
    assert np.array_equal(read_map(tmp_path / "16.png"), values)
    assert np.array_equal(read_map(tmp_path / "colour.png"), values)
    assert np.array_equal(read_map(tmp_path / "1.png"), OBJECT * 255)
