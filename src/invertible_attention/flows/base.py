"""Base distributions: densities of a vector in closed form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from invertible_attention._mask import count_valid, valid_values
from invertible_attention._precision import raised, require_real

__all__ = ["Base", "DiagonalGaussian", "Uniform"]

Mask = Bool[Tensor, "batch dim"] | None


class Base(nn.Module, ABC):
    """A distribution over vectors ``(B, D)`` with a density and samples.

    Args:
        dim: Dimension ``D``.

    Raises:
        ValueError: If ``dim`` is below 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.dim = dim

    def extra_repr(self) -> str:
        """Return the dimension."""
        return str(self.dim)

    @abstractmethod
    def log_prob(self, z: Float[Tensor, "batch dim"], *, mask: Mask = None) -> Float[Tensor, " batch"]:
        """Return the log-density in nats, with a mask that of the values at which it is true."""

    @abstractmethod
    def sample(self, n: int, *, temperature: float = 1.0) -> Float[Tensor, "n dim"]:
        """Draw ``n`` samples, shrunk towards the mean by ``temperature``."""

    def _check(self, z: Tensor) -> None:
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise ValueError(f"expected shape (B, {self.dim}), got {tuple(z.shape)}")
        require_real(z)


class DiagonalGaussian(Base):
    r"""Independent Gaussians, :math:`\mathcal{N}(\mu, \operatorname{diag}(\sigma^2))`.

    Args:
        dim: Dimension ``D``.
        learned: Whether mean and standard deviation are parameters (i-ResNet), beginning at 0 and 1, or
            stay there.

    Examples:
        >>> import torch
        >>> DiagonalGaussian(2, learned=False).log_prob(torch.zeros(1, 2))  # -log 2π
        tensor([-1.8379])
    """

    mean: Tensor
    log_std: Tensor

    def __init__(self, dim: int, *, learned: bool = True) -> None:
        super().__init__(dim)
        for name in ("mean", "log_std"):
            if learned:
                self.register_parameter(name, nn.Parameter(torch.zeros(dim)))
            else:
                self.register_buffer(name, torch.zeros(dim))

    def log_prob(self, z: Float[Tensor, "batch dim"], *, mask: Mask = None) -> Float[Tensor, " batch"]:
        """Return the log-density in nats, with a mask that of the values at which it is true."""
        self._check(z)
        z, mean, log_std = raised(z), raised(self.mean), raised(self.log_std)
        if mask is None:
            squares = ((z - mean) * (-log_std).exp()).square()
            return -0.5 * squares.sum(1) - log_std.sum() - 0.5 * self.dim * math.log(2 * math.pi)
        valid = valid_values(mask, z)
        squares = ((z.masked_fill(~valid, 0.0) - mean) * (-log_std).exp()).square()
        densities = -0.5 * squares - log_std - 0.5 * math.log(2 * math.pi)
        return torch.where(valid, densities, 0.0).sum(1)

    def sample(self, n: int, *, temperature: float = 1.0) -> Float[Tensor, "n dim"]:
        """Draw ``n`` samples, the standard deviation multiplied by ``temperature``."""
        noise = torch.randn(n, self.dim, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + temperature * self.log_std.exp() * noise


class Uniform(Base):
    """The uniform distribution on a cube, the same interval in every dimension.

    Args:
        dim: Dimension ``D``.
        low: Lower end.
        high: Upper end.

    Raises:
        ValueError: If the interval is empty.
    """

    low: Tensor
    high: Tensor

    def __init__(self, dim: int, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__(dim)
        if not low < high:
            raise ValueError(f"low must be below high, got [{low}, {high}]")
        self.register_buffer("low", torch.tensor(float(low)))
        self.register_buffer("high", torch.tensor(float(high)))

    def log_prob(self, z: Float[Tensor, "batch dim"], *, mask: Mask = None) -> Float[Tensor, " batch"]:
        """Return the log-density in nats, ``-inf`` outside of the cube; with a mask that of the valid values."""
        self._check(z)
        inside = (z >= self.low) & (z <= self.high)
        dim = self.dim if mask is None else count_valid(mask, z)
        inside = inside if mask is None else inside | ~valid_values(mask, z)
        return torch.where(inside.all(1), -dim * (raised(self.high) - raised(self.low)).log(), -torch.inf)

    def sample(self, n: int, *, temperature: float = 1.0) -> Float[Tensor, "n dim"]:
        """Draw ``n`` samples from the cube, shrunk around its center by ``temperature``."""
        unit = torch.rand(n, self.dim, dtype=self.low.dtype, device=self.low.device) - 0.5
        return (self.low + self.high) / 2 + temperature * (self.high - self.low) * unit
