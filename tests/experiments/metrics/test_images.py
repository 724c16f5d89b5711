from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import mean_squared_error as reference_mse
from skimage.metrics import structural_similarity as reference_ssim

from invertible_attention.experiments.data import bundled_photograph, to_tensor
from invertible_attention.experiments.metrics import (
    ReconstructionScores,
    mean_squared_error,
    structural_similarity,
    v_score,
)


@pytest.fixture
def photographs() -> torch.Tensor:
    """Four 48×64 pieces of real photographs, 0–255, float64."""
    pieces = [
        to_tensor(bundled_photograph(path))[:, 100:148, 100:164]
        for path in (
            "skimage/data/astronaut.png",
            "skimage/data/chelsea.png",
            "skimage/data/coffee.png",
            "sklearn/datasets/images/flower.jpg",
        )
    ]
    return torch.stack(pieces).double()


def distort(images: torch.Tensor, scale: float) -> torch.Tensor:
    return images + scale * torch.randn(images.shape, dtype=images.dtype)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0, 200.0])
def test_metrics_match_scikit_image(photographs: torch.Tensor, scale: float) -> None:
    images = distort(photographs, scale)
    similarity = structural_similarity(images, photographs)
    error = mean_squared_error(images, photographs)
    for index, (image, reference) in enumerate(zip(images, photographs, strict=True)):
        expected = reference_ssim(
            reference.numpy(),
            image.numpy(),
            channel_axis=0,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert similarity[index].item() == pytest.approx(expected, abs=1e-6)
        assert error[index].item() == pytest.approx(
            reference_mse(reference.numpy(), image.numpy()), rel=1e-12
        )


def test_mse_of_known_images() -> None:
    reference = torch.zeros(2, 3, 4, 4)
    image = reference.clone()
    image[0, 0, 0, 0] = 12.0
    image[1] = 2.0
    assert mean_squared_error(image, reference).tolist() == [144 / 48, 4.0]


def test_identical_images_are_perfect(photographs: torch.Tensor) -> None:
    scores = ReconstructionScores.compare(photographs, photographs)
    assert scores.summary() == {
        "images": 4,
        "mse": 0.0,
        "mse_median": 0.0,
        "mse_max": 0.0,
        "mse_clamped": 0.0,
        "ssim": 1.0,
        "ssim_clamped": 1.0,
        "v_score": 100.0,
        "v_score_clamped": 100.0,
        "non_finite": 0,
    }


def test_out_of_range_errors_count_unless_clamped() -> None:
    reference = torch.full((1, 3, 16, 16), 255.0)
    scores = ReconstructionScores.compare(reference + 100, reference)
    assert scores.mse.tolist() == [10_000.0]
    assert scores.mse_clamped.tolist() == [0.0]
    assert scores.ssim_clamped.item() == pytest.approx(1.0)
    assert scores.ssim.item() < 1
    assert scores.summary()["v_score"] == 0.0
    assert scores.summary()["v_score_clamped"] == 100.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_images_fail_and_are_counted(photographs: torch.Tensor, value: float) -> None:
    images = photographs.clone()
    images[2, 1, 5, 5] = value
    summary = ReconstructionScores.compare(images, photographs).summary()
    assert summary["non_finite"] == 1
    assert summary["v_score"] == 75.0
    assert summary["mse"] is None
    assert summary["mse_median"] == 0.0
    assert summary["ssim"] == pytest.approx(0.75)
    assert np.isfinite(summary["mse_clamped"])


def test_v_score_threshold_is_strict() -> None:
    assert v_score(torch.tensor([9.999, 10.0, 10.001, 0.0])) == 50.0


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.floats(0.1, 100.0))
def test_batch_scores_concatenate(batch: int, scale: float) -> None:
    images = 255 * torch.rand(2 * batch, 3, 16, 16)
    other = distort(images, scale)
    whole = ReconstructionScores.compare(other, images)
    parts = [ReconstructionScores.compare(a, b) for a, b in zip(other.chunk(2), images.chunk(2), strict=True)]
    joined = ReconstructionScores.concatenate(parts)
    assert torch.equal(joined.mse, whole.mse)
    torch.testing.assert_close(joined.ssim, whole.ssim)


def test_mismatched_shapes_and_small_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) and \(1, 3, 16, 18\)"):
        mean_squared_error(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 18))
    with pytest.raises(ValueError, match="at least 11×11"):
        structural_similarity(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
