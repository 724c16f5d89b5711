from __future__ import annotations

import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from invertible_attention.experiments.demo.computation import Outcome
from invertible_attention.experiments.demo.drawing import (
    draw_attention,
    draw_constants,
    draw_pictures,
    draw_residuals,
    magnification,
    preview,
)
from invertible_attention.experiments.demo.rendering import render_attention, render_error, render_results
from invertible_attention.experiments.report import Figure


class Images(HTMLParser):
    """The pictures of a page and their descriptions."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.found.append(dict(attrs))


def opened(figure: Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(figure.png)).convert("RGB"))


def test_results_are_complete_and_have_alt_text(outcome: Outcome) -> None:
    images = Images(render_results(outcome)).found
    assert len(images) == 1 + 2 * 3 + 3
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in images)
    assert all(image["alt"] for image in images)
    assert len({image["alt"] for image in images}) == len(images)


def test_pictures_are_lossless(outcome: Outcome) -> None:
    pictures = draw_pictures(outcome)
    original = outcome.pixels[0].permute(1, 2, 0).numpy()
    assert np.array_equal(opened(pictures["picture"][0]), original)
    reconstruction = opened(pictures["certified"][1]).astype(int)
    assert np.abs(reconstruction - original).max() <= 1
    latent = opened(pictures["certified"][0])
    assert (latent.min(), latent.max()) == (0, 255)


def test_nonfinite_values_can_be_drawn(outcome: Outcome) -> None:
    nothing = torch.full_like(outcome.other.reconstruction, torch.nan)
    broken = replace(
        outcome.other,
        reconstruction=nothing,
        error=torch.full_like(outcome.other.error, torch.inf),
        mse=float("inf"),
        local_lipschitz=float("inf"),
        curves={name: [0.5, None] for name in outcome.other.curves},
    )
    broken = replace(outcome, other=broken)
    pictures = draw_pictures(broken)
    assert opened(pictures["released"][1]).max() == 0
    assert "not finite" in pictures["released"][2].description
    for figure in (draw_residuals(broken), draw_constants(broken)):
        assert opened(figure).size
    assert "FAILED" in render_results(broken)


def test_the_clicked_block_is_marked(outcome: Outcome) -> None:
    marked, figure = draw_attention(outcome, 8, 20)
    changed = np.argwhere((np.asarray(marked) != np.asarray(preview(outcome.pixels))).any(-1))
    factor = magnification(32)
    assert marked.width >= 320
    assert np.abs(changed.min(0) - np.array([8, 20]) * factor).max() <= 3
    assert np.abs(changed.max(0) - np.array([10, 22]) * factor).max() <= 3
    assert "row 8, column 20" in figure.description
    assert figure.data_uri in render_attention(figure)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_small_pictures_are_magnified(size: int) -> None:
    assert size * magnification(size) >= 320
    assert size * (magnification(size) - 1) < 320


def test_messages_are_escaped() -> None:
    assert "<script>" not in render_error("<script>")
