"""Scores against independently computed values and the field's reference toolbox."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("py_sod_metrics")

from invertible_attention.experiments.camouflage.data import read_mask
from invertible_attention.experiments.camouflage.metrics import THRESHOLDS, Scores, score_map

# Rows: MAE, S, mean E, mean F, adaptive F, to six decimals.
EXPECTED = {
    "A": (0.242060, 0.724005, 0.548557, 0.495172, 0.820962),
    "B": (0.301360, 0.523480, 0.449417, 0.413769, 0.719835),
    "C": (0.495455, 0.504545, 0.504750, 0, 0),
}
EXPECTED_MEAN = (0.346291, 0.584010, 0.500908, 0.302980, 0.513599)


def _case(name: str) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:48, :64]
    if name == "A":
        mask = ((y - 22) * 16) ** 2 + ((x - 30) * 12) ** 2 <= 192**2
        prediction = np.clip(230 - (7 * abs(y - 24) + 5 * abs(x - 34)), 0, 255)
    elif name == "B":
        mask = np.zeros((48, 64), dtype=bool)
        mask[8:20, 40:60] = mask[30:40, 6:18] = True
        prediction = (5 * y + 3 * x) % 97 + np.where(mask, 90, 20)
    else:
        mask = np.zeros((48, 64), dtype=bool)
        prediction = (y + x) // 2
    return prediction.astype(np.uint8), mask


def _row(scores: Scores) -> tuple[float, ...]:
    return scores.mae, scores.s_measure, scores.mean_e, scores.mean_f, scores.adaptive_f


@pytest.mark.parametrize("name", EXPECTED)
def test_scores_of_known_maps(name: str) -> None:
    assert _row(score_map(*_case(name))) == pytest.approx(EXPECTED[name], abs=1e-6)


def test_scores_of_a_dataset_are_means_over_its_maps() -> None:
    scores = Scores.mean([score_map(*_case(name)) for name in EXPECTED])
    assert _row(scores) == pytest.approx(EXPECTED_MEAN, abs=1e-6)


def test_scores_match_the_reference_toolbox(data_dir) -> None:
    root = data_dir / "metric_check"
    if not root.is_dir():
        pytest.skip("needs metric_check/ in the folder of real data")
    line = (root / "Results/Result-COD10K-test/COD10K_result.txt").read_text()
    expected = {name: float(value) for name, value in re.findall(r"(\w+):(\d\.\d+)", line)}
    maps = sorted((root / "CamMap/2020-CVPR-SINet/COD10K").glob("*.png"))
    scores = Scores.mean(
        [
            score_map(
                np.asarray(Image.open(path).convert("L")), read_mask(root / "CamDataset/COD10K" / path.name)
            )
            for path in maps
        ]
    )
    found = {
        "Smeasure": scores.s_measure,
        "wFmeasure": scores.weighted_f,
        "MAE": scores.mae,
        "adpEm": scores.adaptive_e,
        "meanEm": scores.mean_e,
        "maxEm": scores.max_e,
        "adpFm": scores.adaptive_f,
        "meanFm": scores.mean_f,
        "maxFm": scores.max_f,
    }
    assert len(maps) == 3
    assert set(expected) == set(found)
    assert {name: round(value, 3) for name, value in found.items()} == expected


def test_curve_matches_the_measure_at_each_threshold() -> None:
    prediction, mask = _case("A")
    scores = score_map(prediction, mask)
    low, high = prediction.min().astype(int), prediction.max().astype(int)
    stretched = ((prediction - low) / (high - low) * 255).astype(np.uint8)
    for threshold in (0, 1, 100, 255):
        assert THRESHOLDS[255 - threshold] == threshold
        found = stretched >= threshold
        hits = (found & mask).sum()
        precision, recall = hits / max(found.sum(), 1), hits / mask.sum()
        expected = 1.3 * precision * recall / (0.3 * precision + recall) if hits else 0.0
        assert scores.f_curve[255 - threshold] == pytest.approx(expected, abs=1e-12)


def test_max_f_measure_is_that_of_the_mean_curve() -> None:
    each = [score_map(*_case(name)) for name in EXPECTED]
    scores = Scores.mean(each)
    assert scores.max_f == pytest.approx(np.mean([s.f_curve for s in each], axis=0).max())
    assert scores.max_f < np.mean([s.max_f for s in each])


@pytest.mark.parametrize("level", [0, 77, 255])
@pytest.mark.parametrize("filled", [False, True])
def test_maps_and_masks_without_contrast_get_finite_scores(level: int, filled: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score_map(np.full((20, 30), level, dtype=np.uint8), np.full((20, 30), filled))
    assert np.isfinite(scores.f_curve).all()
    assert np.isfinite(scores.e_curve).all()
    assert np.isfinite([scores.mae, scores.s_measure, scores.weighted_f]).all()


def test_mismatched_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(5, 4\)"):
        score_map(np.zeros((4, 5), dtype=np.uint8), np.zeros((5, 4), dtype=bool))


def test_mean_of_no_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="no scores"):
        Scores.mean([])
