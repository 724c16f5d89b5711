"""Branches with known properties, as functions of a seed; a fixture because test files cannot import each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

Branch = Callable[..., Tensor]


def _orthogonal(size: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def _spectrum(size: int, generator: torch.Generator) -> Tensor:
    spectrum = torch.rand(size, generator=generator, dtype=torch.float64)
    spectrum[0] = 1
    return spectrum


def linear(c: float, size: int, seed: int) -> Branch:
    """A matrix with singular values in [0, c], the largest exactly c, and a bias."""
    generator = torch.Generator().manual_seed(seed)
    left, right = _orthogonal(size, generator), _orthogonal(size, generator)
    weight = c * left @ torch.diag(_spectrum(size, generator)) @ right
    bias = torch.randn(size, generator=generator, dtype=torch.float64)
    return lambda x: x @ weight.to(x.dtype).T + bias.to(x.dtype)


def rotation(c: float, size: int, seed: int) -> Branch:
    """An orthogonal matrix times c: every direction shrinks as slowly as the constant allows."""
    weight = c * _orthogonal(size, torch.Generator().manual_seed(seed))
    return lambda x: x @ weight.to(x.dtype).T


def stretching(c: float, size: int, seed: int) -> Branch:
    """-c x, whose solution is 1 / (1 - c) times as large as its right-hand side."""
    return lambda x: -c * x


def badly_scaled(c: float, size: int, seed: int) -> Branch:
    """A diagonal of entries between 1e-8 and c, signs mixed, and a bias a thousand times its input."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.sign(torch.randn(size, generator=generator, dtype=torch.float64))
    weight = c * sign * torch.logspace(0, -8, size, dtype=torch.float64)
    bias = 1e3 * torch.randn(size, generator=generator, dtype=torch.float64)
    return lambda x: x * weight.to(x.dtype) + bias.to(x.dtype)


def network(c: float, size: int, seed: int) -> Branch:
    """Two layers with orthogonal weights and a tanh between: Lipschitz constant at most c."""
    generator = torch.Generator().manual_seed(seed)
    first, second = _orthogonal(size, generator), c * _orthogonal(size, generator)
    bias = torch.randn(size, generator=generator, dtype=torch.float64)
    return lambda x: torch.tanh(x @ first.to(x.dtype).T + bias.to(x.dtype)) @ second.to(x.dtype).T


def attention(c: float, size: int, seed: int) -> Branch:
    """Row-normalized Gaussian attention over ``size`` tokens of one channel each, at its certified limit.

    Tokens are projected on the unit ball; there the constant is at most √M + (1 + √M) with M = e².
    """
    root = math.e
    scale = c / (root + 1 + root) * (-1) ** seed

    def branch(x: Tensor) -> Tensor:
        tokens = x / x.abs().clamp(min=1)
        weights = torch.softmax(tokens[:, :, None] * tokens[:, None, :], dim=2)
        return scale * (weights @ tokens[:, :, None])[:, :, 0]

    return branch


@pytest.fixture(scope="session")
def contractions() -> dict[str, Callable[[float, int, int], Branch]]:
    """Factories ``(c, size, seed) -> g`` of branches on ``(B, size)`` with Lipschitz constant at most ``c``."""
    makers = (linear, rotation, stretching, badly_scaled, network, attention)
    return {make.__name__: make for make in makers}


@pytest.fixture(scope="session")
def wild() -> dict[str, Callable[[float, int, int], Branch]]:
    """Factories ``(gain, size, seed) -> g`` of non-contractive branches, some with non-injective x + g(x)."""
    return {
        "linear": linear,
        "rotation": rotation,
        "network": network,
        "stretching": stretching,
        "canceling": lambda gain, size, seed: lambda x: gain * x.sin() - x,
        "quadratic": lambda gain, size, seed: lambda x: gain * x * x - x.roll(1, 1),
        "cubic": lambda gain, size, seed: lambda x: gain * (x**3 - x),
        "step": lambda gain, size, seed: lambda x: gain * torch.sign(x),
    }


@pytest.fixture(scope="session")
def counting() -> Callable[[Branch], SimpleNamespace]:
    """Wrap a branch so that it counts calls and notes their shapes."""

    def wrap(branch: Branch) -> SimpleNamespace:
        calls: list[tuple[int, ...]] = []

        def counted(x: Tensor, *args: Tensor | None) -> Tensor:
            calls.append(tuple(x.shape))
            return branch(x, *args)

        return SimpleNamespace(branch=counted, calls=calls)

    return wrap


@pytest.fixture
def untyped(pytestconfig: pytest.Config) -> None:
    """Disables run-time type checks for tests of the library's own errors."""
    if pytestconfig.getoption("--typecheck"):
        pytest.skip("the run-time type checker refuses this before the library can")
