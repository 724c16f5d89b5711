"""Branches with a cheap exact Jacobian, and the shared statistical assertion."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


class SoftmaxAttention(nn.Module):
    """Attention over tokens with a small gain: a contraction whose log-determinant is far from zero."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Parameter(torch.randn(channels, channels)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.tanh(x)
        scores = (tokens @ self.query) @ (tokens @ self.key).mT
        return 0.35 * scores.softmax(-2) @ tokens @ self.value / torch.linalg.matrix_norm(self.value, ord=2)


class Convolution(nn.Module):
    """Two convolutions with an ELU between; the gain makes the log-determinant differ visibly from zero."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 6, 3, padding=1)
        self.second = nn.Conv2d(6, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return 2.5 * self.second(nn.functional.elu(self.first(x)))


@pytest.fixture(params=["attention", "convolution"])
def block(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A branch and one sample, in float64."""
    if request.param == "attention":
        torch.manual_seed(7)
        return SoftmaxAttention().double(), torch.randn(1, 6, 2, dtype=torch.float64)
    torch.manual_seed(0)
    return Convolution().double(), torch.randn(1, 2, 3, 3, dtype=torch.float64)


@pytest.fixture
def jacobian() -> Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]:
    """The Jacobian of one sample by another route than the library's, PyTorch's own function."""

    def compute(branch: Callable[[Tensor], Tensor], sample: Tensor) -> Tensor:
        full = torch.autograd.functional.jacobian(
            lambda flat: branch(flat.view(sample.shape)).flatten(), sample.flatten(), create_graph=True
        )
        assert isinstance(full, Tensor)
        return full

    return compute


@pytest.fixture
def assert_mean() -> Callable[..., None]:
    """Assert that a mean is within 4 standard errors, which must be small enough to notice an error.

    Draws of vectors are compared along the true vector and along five random ones.
    """

    def check(draws: Tensor, truth: Tensor, *, precision: float) -> None:
        draws, truth = (
            draws.detach().flatten(1) if draws.ndim > 1 else draws[:, None],
            truth.detach().flatten(),
        )
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(5, len(truth), dtype=truth.dtype, generator=generator)
        directions = torch.cat([truth[None], directions]) if len(truth) > 1 else truth[None]
        directions = directions / torch.linalg.vector_norm(directions, dim=1, keepdim=True)
        draws, truth = draws @ directions.mT, directions @ truth
        error = draws.std(0) / draws.shape[0] ** 0.5
        relative = (error.max() / truth[0]).item()
        assert relative < precision, f"too few draws to tell anything: relative standard error {relative:.2g}"
        distance = ((draws.mean(0) - truth).abs() / error).max().item()
        assert distance < 4, f"the mean is {distance:.1f} standard errors off"

    return check
