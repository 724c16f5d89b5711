"""How close reconstructed images are to the originals: the measures of the paper's Tables 2 and 5."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "SSIM_WINDOW",
    "V_SCORE_LIMIT",
    "ReconstructionScores",
    "mean_squared_error",
    "structural_similarity",
    "v_score",
]

V_SCORE_LIMIT = 10.0
SSIM_WINDOW = 11
"""Fewest rows and columns of an image that has a structural similarity."""


def mean_squared_error(
    image: Float[Tensor, "batch ..."], reference: Float[Tensor, "batch ..."]
) -> Float[Tensor, " batch"]:
    """Return the mean squared error of every image, in float64 and the square of the images' unit."""
    _check_shapes(image, reference)
    return (image.double() - reference.double()).square().flatten(1).mean(1)


def structural_similarity(
    image: Float[Tensor, "batch channels height width"],
    reference: Float[Tensor, "batch channels height width"],
    *,
    data_range: float = 255.0,
) -> Float[Tensor, " batch"]:
    """Return the structural similarity (Wang et al., 2004) of every image, in float64.

    Gaussian window of 11×11 and σ = 1.5, averaged over the windows that lie inside the image, as in the
    original and in scikit-image. An image that is not finite has similarity 0.

    Raises:
        ValueError: for images smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_shapes(image, reference)
    if min(image.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"structural similarity needs at least 11×11 pixels, got {tuple(image.shape)}")
    finite = image.flatten(1).isfinite().all(1)
    similarity = torch.zeros(image.shape[0], dtype=torch.float64, device=image.device)
    if finite.any():
        _, windows = structural_similarity_index_measure(
            image[finite].double(),
            reference[finite].double(),
            data_range=data_range,
            reduction="none",
            return_full_image=True,
        )
        # torchmetrics' own mean counts windows over a mirrored border too.
        border = SSIM_WINDOW // 2
        similarity[finite] = windows[..., border:-border, border:-border].flatten(1).mean(1)
    return similarity


def v_score(mse: Float[Tensor, " images"]) -> float:
    """Return the share of images, in percent, whose own mean squared error is below 10.

    An error that is not finite counts as a failure.

    Example:
        >>> v_score(torch.tensor([0.5, 9.9, 10.0, float("nan")]))
        50.0
    """
    return 100.0 * (mse < V_SCORE_LIMIT).double().mean().item()


@dataclass(frozen=True)
class ReconstructionScores:
    """Errors of every test image, on the scale 0–255.

    Args:
        mse: mean squared error per image, of the reconstruction as it is.
        mse_clamped: the same after clamping the reconstruction to 0–255, as saving it as an image does;
            infinity is clamped too, NaN becomes 0.
        ssim_clamped: structural similarity after the same clamping.
        ssim: structural similarity per image, of the reconstruction as it is.
    """

    mse: Float[Tensor, " images"]
    mse_clamped: Float[Tensor, " images"]
    ssim_clamped: Float[Tensor, " images"]
    ssim: Float[Tensor, " images"]

    @classmethod
    def compare(
        cls,
        reconstruction: Float[Tensor, "batch channels height width"],
        original: Float[Tensor, "batch channels height width"],
    ) -> ReconstructionScores:
        """Compare images on the scale 0–255, neither rounded nor compressed."""
        clamped = reconstruction.nan_to_num(0.0).clamp(0.0, 255.0)
        return cls(
            mean_squared_error(reconstruction, original).cpu(),
            mean_squared_error(clamped, original).cpu(),
            structural_similarity(clamped, original).cpu(),
            structural_similarity(reconstruction, original).cpu(),
        )

    @classmethod
    def concatenate(cls, parts: list[ReconstructionScores]) -> ReconstructionScores:
        """Join the scores of several batches."""
        return cls(
            torch.cat([part.mse for part in parts]),
            torch.cat([part.mse_clamped for part in parts]),
            torch.cat([part.ssim_clamped for part in parts]),
            torch.cat([part.ssim for part in parts]),
        )

    @property
    def finite(self) -> Bool[Tensor, " images"]:
        """Which reconstructions are finite throughout."""
        return self.mse.isfinite()

    def summary(self) -> dict[str, float | int | None]:
        """Return the means as JSON values; a mean that is not finite is ``None``, with the images counted."""
        mean = self.mse.mean().item()
        return {
            "images": len(self.mse),
            "mse": mean if self.finite.all() else None,
            "mse_median": self.mse.nan_to_num(nan=torch.inf).median().item() if self._mostly_finite else None,
            "mse_max": self.mse.max().item() if self.finite.all() else None,
            "mse_clamped": self.mse_clamped.mean().item(),
            "ssim": self.ssim.mean().item(),
            "ssim_clamped": self.ssim_clamped.mean().item(),
            "v_score": v_score(self.mse),
            "v_score_clamped": v_score(self.mse_clamped),
            "non_finite": int((~self.finite).sum()),
        }

    @property
    def _mostly_finite(self) -> bool:
        return bool(self.mse.nan_to_num(nan=torch.inf).median().isfinite())


def _check_shapes(image: Tensor, reference: Tensor) -> None:
    if image.shape != reference.shape:
        raise ValueError(
            f"images of shapes {tuple(image.shape)} and {tuple(reference.shape)} cannot be compared"
        )
