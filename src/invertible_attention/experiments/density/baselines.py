"""The other rows of Table 3, through the libraries that have them: zuko and normflows."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...bijection import Bijection, refuse_unused
from ...flows import ActNorm, Dequantize, DiagonalGaussian, Flatten, Flow, Logit, Sequential, Split, Squeeze
from ...flows.base import Base
from ..packages import require
from .configuration import Configuration

__all__ = ["NormflowsStep", "ZukoBase", "build_baseline", "check_library"]

ALPHA = 0.05
"""Margin of the logit before every baseline, as MAF and Residual Flow use it for CIFAR-10."""


LIBRARIES = {
    "made": "zuko",
    "maf": "zuko",
    "cnf": "zuko",
    "realnvp": "normflows",
    "glow": "normflows",
}


def check_library(configuration: Configuration) -> None:
    """Raise when the library that has a model is not installed.

    Raises:
        ExperimentError: naming it, and the command that installs it.
    """
    if library := LIBRARIES.get(configuration.model):
        require("interop", library)


def build_baseline(configuration: Configuration, shape: tuple[int, ...], levels: int) -> Flow:
    """Return a density of another library behind the same dequantization and a logit.

    ``made`` is one autoregressive transform, ``maf`` as many as there are numbers in ``blocks`` times 2,
    ``cnf`` one continuous flow with a stochastic trace (FFJORD), all of zuko. ``realnvp`` and ``glow`` are
    multi-scale with normflows' couplings, ``blocks`` of them per scale.

    Raises:
        ValueError: when the shape does not fit the model.
    """
    dim, width = math.prod(shape), configuration.hidden_channels
    prepare = [Dequantize(levels), Logit(ALPHA)]
    if configuration.model in ("realnvp", "glow"):
        step = _realnvp if configuration.model == "realnvp" else _glow
        net = _multiscale(shape, configuration.blocks, lambda shape, index: step(shape, index, width))
        return Flow(Sequential(*prepare, *net), DiagonalGaussian(dim))
    import zuko

    if configuration.model == "cnf":
        flow = zuko.flows.CNF(dim, hidden_features=(width, width), activation=nn.Softplus, exact=False)
    else:
        transforms = 1 if configuration.model == "made" else 2 * len(configuration.blocks)
        flow = zuko.flows.MAF(dim, transforms=transforms, hidden_features=(width, width))
    return Flow(Sequential(*prepare, Flatten(shape), ActNorm(dim)), ZukoBase(dim, flow))


class ZukoBase(Base):
    """A zuko flow as the distribution of a vector.

    Args:
        dim: dimension of the vector.
        flow: an unconditional ``zuko.flows.Flow``.
    """

    def __init__(self, dim: int, flow: Any):
        super().__init__(dim)
        self.flow = flow

    def log_prob(
        self, z: Float[Tensor, "batch dim"], *, mask: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        """Return the log-density in nats.

        Raises:
            ValueError: for a mask: flows of other libraries do not support missing values.
        """
        if mask is not None:
            raise ValueError(f"zuko flows take no mask, got one of shape {tuple(mask.shape)}")
        self._check(z)
        return self.flow().log_prob(z)

    def sample(self, n: int, *, temperature: float = 1.0) -> Float[Tensor, "n dim"]:
        """Draw ``n`` samples; a flow of another library has no temperature.

        Raises:
            ValueError: for a temperature other than 1.
        """
        if temperature != 1.0:
            raise ValueError(f"zuko flows are sampled at temperature 1, got {temperature}")
        return self.flow().sample((n,))


class NormflowsStep(Bijection):
    """One step of normflows, whose ``inverse`` is the direction from data to latent.

    Args:
        step: a ``normflows.flows.Flow``.
    """

    def __init__(self, step: nn.Module):
        super().__init__()
        self.step: Any = step

    def forward_and_logdet(
        self, x: Tensor, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return the step from data to latent and its log-determinant."""
        refuse_unused(self, context=context, mask=mask)
        z, logdet = self.step.inverse(x)
        return z, _per_sample(logdet, x)

    def inverse_and_logdet(
        self, z: Tensor, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return the step from latent to data and its log-determinant."""
        refuse_unused(self, context=context, mask=mask)
        x, logdet = self.step.forward(z)
        return x, _per_sample(logdet, z)


def _per_sample(logdet: Any, x: Tensor) -> Tensor:
    # normflows returns a number or a tensor of one value where it is the same for all samples.
    return torch.as_tensor(logdet, dtype=x.dtype, device=x.device).expand(x.shape[0])


def _multiscale(shape: tuple[int, ...], blocks: tuple[int, ...], make_step: Any) -> list[Bijection]:
    """Return scales of steps; each squeezes, and half of the channels leave after all but the last."""
    channels, height, width = shape
    if height % 2 or width % 2:
        raise ValueError(f"cannot halve the size {height}×{width}; use fewer scales or another size")
    squeezed = (4 * channels, height // 2, width // 2)
    parts: list[Bijection] = [Squeeze(2)]
    for index in range(blocks[0]):
        parts += [ActNorm(squeezed[0]), NormflowsStep(make_step(squeezed, index))]
    if len(blocks) == 1:
        return [*parts, Flatten(squeezed)]
    rest = _multiscale((squeezed[0] // 2, *squeezed[1:]), blocks[1:], make_step)
    return [*parts, Split(squeezed, Sequential(*rest))]


def _realnvp(shape: tuple[int, ...], index: int, width: int) -> nn.Module:
    """Return an affine coupling; masks are checkerboards and halves of the channels in turn."""
    import normflows

    channels, height, rows = shape
    if index % 4 < 2:
        mask = (torch.arange(height)[:, None] + torch.arange(rows)) % 2
        mask = mask.expand(shape)
    else:
        mask = (torch.arange(channels) < channels // 2).long()[:, None, None].expand(shape)
    if index % 2:
        mask = 1 - mask

    def network() -> nn.Module:
        return normflows.nets.ConvNet2d(
            [channels, width, width, channels], [3, 1, 3], leaky=0.0, init_zeros=True
        )

    scale = nn.Sequential(network(), nn.Tanh())
    return normflows.flows.MaskedAffineFlow(mask.float().contiguous(), network(), scale)


def _glow(shape: tuple[int, ...], index: int, width: int) -> nn.Module:
    """Return a Glow block: coupling, invertible 1×1 convolution, actnorm."""
    import normflows

    return normflows.flows.GlowBlock(shape[0], width, split_mode="channel", scale=True)
