r"""The residual branch :math:`g(x) = W_L A(\Pi_\rho x)` of an attention block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invertible_attention._initialize import refuse_inside_transform
from invertible_attention.attention.constraints import Certified, Constraint, Relaxed
from invertible_attention.attention.functional import attend
from invertible_attention.attention.position import PositionPrior
from invertible_attention.attention.responses import Gaussian, Response, is_positive, make_response
from invertible_attention.lipschitz.certificate import (
    Normalization,
    attention_log_bound,
    combine_heads,
    log_rounding_allowance,
)
from invertible_attention.lipschitz.gram import exact_arithmetic
from invertible_attention.lipschitz.norms import spectral_norm_upper_bound
from invertible_attention.lipschitz.parametrize import SpectralNormBound

__all__ = ["AttentionBranch"]

Image = Float[Tensor, "batch channels *spatial"]

_JUST_ABOVE = 1.001


@dataclass(frozen=True)
class _Weights:
    """Everything that depends on the weights alone, computed once and used for many evaluations."""

    value: Float[Tensor, "channels channels"]
    value_bias: Float[Tensor, " channels"] | None
    out: Float[Tensor, "channels channels"]
    out_bias: Float[Tensor, " channels"] | None
    radius: Float[Tensor, ""] | None
    log_bound: Float[Tensor, ""]


class AttentionBranch(nn.Module):
    r"""Attention over all positions, :math:`g(x)_i = W_L \sum_j R_{ij} W_F \hat x_j`.

    Args:
        channels: Number of channels :math:`C`.
        response: Name of the response or a factory of one.
        constraint: What limits the Lipschitz constant.
        normalization: ``"column"``, ``"row"``, ``"all"``, or ``"count"`` (divide by the number of tokens;
            ordinary attention only).
        embedding_channels: Per head, for the embedded responses.
        heads: Number of heads, concatenated.
        bias: Whether the linear maps have biases.
        position_prior: Doubly stochastic prior the response is multiplied by.
        implementation: Passed to :func:`~invertible_attention.attention.functional.attend`.

    Raises:
        ValueError: If an argument is outside its range, or a certificate is asked of a signed response.
    """

    log_radius: Tensor | None
    initialized: Tensor

    def __init__(
        self,
        channels: int,
        *,
        response: str | Callable[..., Response],
        constraint: Constraint,
        normalization: str,
        embedding_channels: int | None = None,
        heads: int = 1,
        bias: bool = False,
        position_prior: PositionPrior | None = None,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must be positive and divide channels={channels}, got {heads}")
        if normalization not in ("column", "row", "all", "count"):
            raise ValueError(f"normalization must be 'column', 'row' or 'all', got {normalization!r}")
        self.channels, self.heads = channels, heads
        self.constraint = constraint
        self.normalization = normalization
        self.implementation = implementation
        self.position_prior = position_prior
        if response == "gaussian" and not isinstance(constraint, Certified):
            # The paper's Gaussian has no parameter of its own; under a certificate the temperature spends the budget.
            response = partial(Gaussian, learnable=False)
        self.response = make_response(response, channels, heads, embedding_channels, bias)
        self.value_weight = nn.Parameter(_uniform(channels, channels))
        self.out_weight = nn.Parameter(_uniform(channels, channels))
        self.value_bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.out_bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self._constrain(constraint)

    def _constrain(self, constraint: Constraint) -> None:
        self._initialized = True
        if isinstance(constraint, Relaxed):
            bound = SpectralNormBound(constraint.coefficient)
            for name in ("value_weight", "out_weight"):
                parametrize.register_parametrization(self, name, bound)
            if constraint.constrain_response:
                for name in self.response.transforms():
                    parametrize.register_parametrization(self.response, name, bound)
        if not isinstance(constraint, Certified):
            self.register_buffer("log_radius", None)
        else:
            if not is_positive(self.response.phi):
                raise ValueError(f"a certificate needs a positive response, got phi={self.response.phi!r}")
            if self.normalization == "count":
                raise ValueError("a certificate needs normalised weights, got normalization='count'")
            if constraint.radius is None:
                self.log_radius = nn.Parameter(torch.zeros(()))
                self._initialized = False
            else:
                self.register_buffer("log_radius", torch.tensor(math.log(constraint.radius)))
            self._rescale_response()
        self.register_buffer("initialized", torch.tensor(self._initialized))

    @torch.no_grad()
    def _rescale_response(self) -> None:
        assert self.log_radius is not None
        self.response.rescale(self.log_radius.exp(), cast(Normalization, self.normalization))

    @torch.no_grad()
    def initialize(self, x: Image) -> None:
        """Set the radius to just above the largest token norm of ``x``, and scale the response so that log M ≈ 1.

        Called by the first forward. Tokens that are not finite are left out; without a finite non-zero token
        the radius stays 1. Distributed processes agree on the largest norm over all of them.
        """
        refuse_inside_transform("the radius")
        norm = torch.linalg.vector_norm(x.detach().to(_working_dtype(x.dtype)), dim=1)
        norm = torch.where(norm.isfinite(), norm, 0.0).amax()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(norm, op=torch.distributed.ReduceOp.MAX)
        if self.log_radius is not None:
            # On the sphere itself the projection has a kink, and a log-determinant there depends on rounding.
            self.log_radius.copy_(torch.where(norm > 0, norm * _JUST_ABOVE, 1.0).log())
            self._rescale_response()
        self.initialized.fill_(True)
        self._initialized = True

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # pyright: ignore[reportArgumentType]
        if prefix + "initialized" in state_dict:
            self._initialized = bool(state_dict[prefix + "initialized"])

    @property
    def radius(self) -> Float[Tensor, ""] | None:
        """ρ, the radius of the ball tokens are projected on; ``None`` without a certificate."""
        return None if self.log_radius is None else self.log_radius.exp()

    def bind(self) -> Callable[..., Tensor]:
        """Compute the constrained weights once; return the branch as a function of ``x``."""
        weights = self._weights()

        def branch(x: Image) -> Image:
            with exact_arithmetic(x):
                return self._evaluate(weights, x)

        return branch

    def forward(self, x: Image) -> Image:
        """Return ``g(x)``, of the shape of ``x``, computed and returned in float32 or better, also under autocast."""
        if not self._initialized:
            self.initialize(x)
        return self.bind()(x)

    def lipschitz_bound(self) -> Float[Tensor, ""]:
        """Upper bound of the Lipschitz constant in the Euclidean norm; ``inf`` where nothing is promised."""
        with exact_arithmetic(self.initialized):
            return self.constraint.lipschitz_bound(self._log_bound())

    def _weights(self) -> _Weights:
        with exact_arithmetic(self.initialized):
            return _Weights(
                value=_working(self.value_weight),
                value_bias=None if self.value_bias is None else _working(self.value_bias),
                out=_working(self.out_weight),
                out_bias=None if self.out_bias is None else _working(self.out_bias),
                radius=None if self.log_radius is None else _working(self.log_radius).exp(),
                log_bound=self._log_bound(),
            )

    def _log_bound(self) -> Float[Tensor, ""]:
        """Logarithm of ‖W_L‖₂ L(A); for ``"all"`` with the factor 1/N still missing."""
        if self.log_radius is None:
            return torch.zeros((), device=self.out_weight.device)
        normalization = cast(Normalization, self.normalization)
        radius = _working(self.log_radius).exp()
        value = _working(self.value_weight).unflatten(0, (self.heads, -1))
        norm = spectral_norm_upper_bound(value)
        if self.value_bias is None:
            bias_norm = torch.zeros_like(norm)
        else:
            bias_norm = torch.linalg.vector_norm(
                _working(self.value_bias).unflatten(0, (self.heads, -1)), dim=-1
            )
        scores = self.response.score_bounds(radius, normalization)
        per_head = attention_log_bound(scores, norm, bias_norm, radius, normalization)
        out_norm = spectral_norm_upper_bound(_working(self.out_weight))
        log_out = torch.log(out_norm.clamp_min(torch.finfo(out_norm.dtype).tiny))
        return combine_heads(per_head) + log_out + log_rounding_allowance(per_head.dtype)

    def _evaluate(self, weights: _Weights, x: Image) -> Image:
        working = torch.promote_types(_working_dtype(x.dtype), weights.value.dtype)
        tokens = x.flatten(2).transpose(1, 2).to(working)
        seen = tokens if weights.radius is None else project_on_ball(tokens, weights.radius)
        query, key = self.response(seen, seen)
        value = _linear(seen, weights.value, weights.value_bias)
        value = value.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = attend(
            query,
            key,
            value,
            combine=self.response.combine,
            phi=self.response.phi,
            normalization=self.normalization,
            log_prior=None if self.position_prior is None else self.position_prior(x.shape[2:]).to(working),
            implementation=self.implementation,
        )
        log_bound = weights.log_bound
        if self.normalization == "all":
            log_bound = log_bound - math.log(tokens.shape[1])
        out = attended.transpose(1, 2).flatten(2)
        out = _linear(out, weights.out * self.constraint.gain(log_bound), weights.out_bias)
        return out.transpose(1, 2).reshape(x.shape)


def project_on_ball(tokens: Float[Tensor, "*batch channels"], radius: Float[Tensor, ""]) -> Tensor:
    r"""Project every token on the ball, :math:`\hat x_i = x_i \min(1, \rho / \|x_i\|)`; 1-Lipschitz."""
    scaled = tokens / radius
    # Squares of huge tokens would overflow. The result does not depend on the peak, so neither does its gradient.
    peak = scaled.detach().abs().amax(-1, keepdim=True).clamp_min(1.0)
    square = (scaled / peak).square().sum(-1, keepdim=True)
    return tokens * (square.clamp_min(1.0).rsqrt() / peak)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _working(x: Tensor) -> Tensor:
    return x.to(_working_dtype(x.dtype))


def _uniform(rows: int, columns: int) -> Tensor:
    limit = 1 / math.sqrt(columns)
    return torch.empty(rows, columns).uniform_(-limit, limit)
