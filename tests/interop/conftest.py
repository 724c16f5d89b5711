"""Shared by the adapter tests: a dataset, and attention on two-dimensional vectors."""

from __future__ import annotations

import math

import pytest
import torch

import invertible_attention as ia


def two_moons(n: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Two interleaving half circles with noise, roughly standardized."""
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    noise = 0.1 * torch.randn(n, 2, generator=generator)
    return (torch.stack([x - 0.5, y - 0.25], 1) + noise) / torch.tensor([0.87, 0.5])


# The best log-likelihood of a Gaussian on two moons, whose axes have a standard deviation of about one.
GAUSSIAN_NATS = 1 + math.log(2 * math.pi)


def attention(**arguments) -> ia.InvertibleAttention:
    """Attention over the two coordinates as tokens of one channel, with an exact log-determinant."""
    arguments = {"response": "embedded_gaussian", "bias": True, "logdet": ia.Exact()} | arguments
    layer = ia.InvertibleAttention(1, **arguments)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    layer.initialize(torch.randn(8, 1, 2))
    return layer


@pytest.fixture
def moons():
    """A function that draws two moons reproducibly."""
    generator = torch.Generator().manual_seed(1)
    return lambda n: two_moons(n, generator)


def check_bijection(bijection: ia.Bijection, x: torch.Tensor, context: torch.Tensor | None = None) -> None:
    """Inverse, log-determinant against the Jacobian, and its sign in the other direction; float64."""
    z, logdet = bijection.forward_and_logdet(x, context=context)
    assert logdet.shape == x.shape[:1]
    torch.testing.assert_close(bijection(x, context=context), z)
    torch.testing.assert_close(bijection.inverse(z, context=context), x, atol=1e-8, rtol=0)
    back, inverse_logdet = bijection.inverse_and_logdet(z, context=context)
    torch.testing.assert_close(back, x, atol=1e-8, rtol=0)
    torch.testing.assert_close(inverse_logdet, -logdet, atol=1e-7, rtol=0)
    for i in range(len(x)):
        given = None if context is None else context[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda flat, like=x[i : i + 1], c=given: bijection(flat.view(like.shape), context=c).flatten(),
            x[i].flatten(),
        )
        torch.testing.assert_close(logdet[i].double(), torch.linalg.slogdet(jacobian).logabsdet)
