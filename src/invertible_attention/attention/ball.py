"""The projection of tokens on a ball, and its derivative."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invertible_attention._mapped import plain

__all__ = ["Projection", "project_on_ball"]


def project_on_ball(tokens: Float[Tensor, "*batch channels"], radius: Float[Tensor, ""]) -> Tensor:
    r"""Project every token on the ball, :math:`\hat x_i = x_i \min(1, \rho / \|x_i\|)`; 1-Lipschitz."""
    return tokens * _scale(tokens, radius, -1)


def _scale(tokens: Tensor, radius: Float[Tensor, ""], dim: int) -> Tensor:
    r"""Return :math:`\min(1, \rho / \|x_i\|)`, the factor that projects every token on the ball.

    Args:
        tokens: Vectors along ``dim``.
        radius: :math:`\rho`.
        dim: Which axis; it is kept, with one entry.
    """
    scaled = tokens / radius
    # Squares of huge tokens would overflow. The result does not depend on the peak, so neither does its gradient.
    peak = scaled.detach().abs().amax(dim, keepdim=True).clamp_min(1.0)
    # Not by vector_norm: along an axis that is not the last one it takes many times as long.
    square = (scaled / peak).square().sum(dim, keepdim=True)
    return square.clamp_min(1.0).rsqrt() / peak


@dataclass(frozen=True)
class Projection:
    r"""Tokens on a ball, and the derivative of their projection: :math:`\frac{\rho}{\|x\|} (I - n n^\top)` outside it.

    Args:
        value: The projected tokens themselves.
        scale: :math:`\min(1, \rho / \|x\|)`.
        normal: :math:`n = x / \|x\|` outside the ball, zero inside.
    """

    value: Float[Tensor, "batch channels tokens"]
    scale: Float[Tensor, "batch 1 tokens"]
    normal: Float[Tensor, "batch channels tokens"]

    @classmethod
    def at(cls, tokens: Float[Tensor, "batch channels tokens"], radius: Float[Tensor, ""]) -> Projection:
        """Project the given tokens, and return the derivative there."""
        scale = _scale(tokens, radius, 1)
        value = tokens * scale
        return cls(value, scale, torch.where(scale < 1.0, value / radius, 0.0))

    def apply(self, v: Float[Tensor, "batch channels tokens"]) -> Float[Tensor, "batch channels tokens"]:
        """Multiply a vector per token; the derivative is symmetric."""
        return self.scale * (v - self.normal * (self.normal * v).sum(1, keepdim=True))

    @property
    def moves_nothing(self) -> bool:
        """Whether every token is known to be inside.

        On an accelerator, while compiling and for tensors without values it is not asked: nothing waits for it.
        """
        scale = plain(self.scale)
        known = scale.device.type == "cpu" and type(scale) is Tensor and not torch.compiler.is_compiling()
        return known and bool((scale >= 1.0).all())

    @property
    def outside(self) -> Bool[Tensor, " batch"]:
        """Which samples have a token outside the ball."""
        return (self.normal != 0).flatten(1).any(1)

    def select(self, samples: Tensor) -> Projection:
        """Return the projection of some of the samples."""
        return Projection(self.value[samples], self.scale[samples], self.normal[samples])

    def average(
        self, mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch channels channels"]:
        """Return the mean derivative of the (valid) tokens, a symmetric matrix."""
        scale = self.scale if mask is None else self.scale.masked_fill(~mask[:, None], 0.0)
        count = scale.shape[2] if mask is None else mask.sum(1)[:, None, None].clamp_min(1)
        identity = torch.eye(self.normal.shape[1], dtype=scale.dtype, device=scale.device)
        return (scale.sum(2)[..., None] * identity - (scale * self.normal) @ self.normal.mT) / count
