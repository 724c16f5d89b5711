r"""The residual branch :math:`g(x) = W_L A(\Pi_\rho x)` of an attention block."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invertible_attention._initialize import SetFromData
from invertible_attention._mask import flat_mask
from invertible_attention._precision import raised
from invertible_attention.attention.constraints import Certified, Constraint, Relaxed
from invertible_attention.attention.context import ContextTokens, make_context
from invertible_attention.attention.evaluation import Evaluation, Norms, Scale
from invertible_attention.attention.position import PositionPrior
from invertible_attention.attention.responses import Gaussian, Response, is_positive, make_response
from invertible_attention.lipschitz.bind import is_bound
from invertible_attention.lipschitz.certificate import Normalization
from invertible_attention.lipschitz.gram import exact_arithmetic
from invertible_attention.lipschitz.norms import spectral_norm_upper_bounds
from invertible_attention.lipschitz.parametrize import SpectralNormConstraint

__all__ = ["AttentionBranch", "check_counts"]

Image = Float[Tensor, "batch channels *spatial"]

_JUST_ABOVE = 1.001


class AttentionBranch(SetFromData, Evaluation):
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
        context_channels: Number of features of the context the branch is given; ``None`` for no context.
        context_kind: ``"vector"`` for one vector per sample, ``"tokens"`` for tokens to attend to.
        causal: Whether a token attends to itself and those before it only.
        implementation: Passed to :func:`~invertible_attention.attention.functional.attend`.

    Raises:
        TypeError: If channels or heads are not integers.
        ValueError: If an argument is outside its range, or a certificate is asked of a signed response.
    """

    log_radius: Tensor | None

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
        context_channels: int | None = None,
        context_kind: str = "vector",
        causal: bool = False,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        check_counts(channels=channels, heads=heads, context_channels=context_channels or 0)
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must be positive and divide channels={channels}, got {heads}")
        if normalization not in ("column", "row", "all", "count"):
            raise ValueError(f"normalization must be 'column', 'row' or 'all', got {normalization!r}")
        if position_prior is not None and position_prior.heads not in (None, 1, heads):
            raise ValueError(
                f"position_prior has {position_prior.heads} heads, the attention has {heads}: use as many, or 1"
            )
        self.channels, self.heads = channels, heads
        self.constraint = constraint
        self.normalization = normalization
        self.implementation = implementation
        self.position_prior = position_prior
        self.causal = causal
        if response == "gaussian" and not isinstance(constraint, Certified):
            # The paper's Gaussian has no parameters; under a certificate the temperature spends the budget.
            response = partial(Gaussian, learnable=False)
        self.response = make_response(response, channels, heads, embedding_channels, bias)
        self.value_weight = nn.Parameter(_uniform(channels, channels))
        self.out_weight = nn.Parameter(_uniform(channels, channels))
        self.value_bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.out_bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.context = make_context(context_kind, context_channels, channels)
        self._constrain(constraint)

    def _constrain(self, constraint: Constraint) -> None:
        learned = isinstance(constraint, Certified) and constraint.radius is None
        self.from_data = ("log_radius",) if learned else ()
        self.register_buffer("initialized", torch.tensor(0.0 if learned else 1.0))
        if isinstance(constraint, Relaxed):
            bound = SpectralNormConstraint(constraint.coefficient)
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
                raise ValueError("a certificate needs normalized weights, got normalization='count'")
            if self.causal and self.normalization == "column":
                raise ValueError(
                    "no certificate exists for normalization='column' and causal=True: the last token weighs in "
                    "every column, and the Lipschitz constant grows with the logarithm of their number; "
                    "use normalization='row' or 'all'"
                )
            if constraint.radius is None:
                self.log_radius = nn.Parameter(torch.zeros(()))
            else:
                self.register_buffer("log_radius", torch.tensor(math.log(constraint.radius)))
            self._rescale_response()

    @torch.no_grad()
    def _rescale_response(self) -> None:
        assert self.log_radius is not None
        self.response.rescale(self.log_radius.exp(), cast(Normalization, self.normalization))

    def initialize(self, x: Image, *, mask: Tensor | None = None) -> None:
        """Set the radius to just above the largest token norm of ``x``, and scale the response so that log M ≈ 1.

        The first forward in training mode does so, with the largest norm over all processes of a group; this
        method sets the radius of this process alone. Tokens that are not finite are skipped; without a finite
        non-zero token the radius is 1. A radius that is part of the constraint stays.
        """
        super().initialize(x, mask=mask)

    def _set(self, x: Image, mask: Tensor | None, reduce: Callable[[Tensor, str], Tensor]) -> None:
        norm = torch.linalg.vector_norm(raised(x.detach()), dim=1)
        seen = norm.isfinite() if mask is None else norm.isfinite() & flat_mask(mask, x).view_as(norm)
        norm = reduce(torch.where(seen, norm, 0.0).amax(), "MAX")
        assert self.log_radius is not None
        # On the sphere itself the projection has a kink, and a log-determinant there depends on rounding.
        self.log_radius.copy_(torch.where(norm > 0, norm * _JUST_ABOVE, 1.0).log())
        self._rescale_response()

    @property
    def radius(self) -> Float[Tensor, ""] | None:
        """ρ, the radius of the ball tokens are projected on; ``None`` without a certificate."""
        return None if self.log_radius is None else self.log_radius.exp()

    def forward(self, x: Image, context: Tensor | None = None, mask: Tensor | None = None) -> Image:
        """Return ``g(x)``, of the shape of ``x``, computed and returned in float32 or better, also under autocast.

        Args:
            x: Tokens.
            context: ``(B, K)`` or ``(B, K, M)``, for a branch that was built for one.
            mask: True where a token is valid, ``(B, *spatial)``; others are not seen and ``g`` is zero there.

        Raises:
            ValueError: If context or mask do not fit.
        """
        self._ready(x, mask)
        return self.bind().evaluate(x, context, mask)

    def _ready(self, x: Image, mask: Tensor | None) -> None:
        if not is_bound(self):
            self.require_initialized(x, mask)

    def _promise(self, log_bound: Float[Tensor, ""]) -> Float[Tensor, ""]:
        tokens = isinstance(self.context, ContextTokens)
        if self.normalization == "column" and tokens and self.position_prior is None:
            # There may be any number of context tokens for each token: only the constraint's own limit holds.
            log_bound = torch.full_like(log_bound, torch.inf)
        return self.constraint.lipschitz_bound(log_bound)

    def compute_scale(self) -> Scale:
        """Return the certificate, from the norms of the weights as they are now."""
        with exact_arithmetic(self.initialized):
            norms = self._norms()
            # For "all" the factor 1/N is still missing.
            log_bound = torch.zeros((), device=self.out_weight.device) if norms is None else norms.log_bound()
            return Scale(
                radius=None if norms is None else norms.radius,
                norms=norms,
                log_bound=log_bound,
                lipschitz_bound=self._promise(log_bound),
            )

    def _norms(self) -> Norms | None:
        if self.log_radius is None:
            return None
        normalization = cast(Normalization, self.normalization)
        radius = raised(self.log_radius).exp()
        norm, out_norm, *norms = spectral_norm_upper_bounds(
            [self.value_weight.unflatten(0, (self.heads, -1)), self.out_weight, *self.response.matrices()]
        )
        bias = torch.zeros_like(norm)
        if self.value_bias is not None:
            bias = torch.linalg.vector_norm(raised(self.value_bias).unflatten(0, (self.heads, -1)), dim=-1)
        return Norms(
            scores=self.response.score_bounds(radius, normalization, *norms),
            value=norm,
            value_bias=bias,
            radius=radius,
            log_out=torch.log(out_norm.clamp_min(torch.finfo(out_norm.dtype).tiny)),
            normalization=normalization,
            # With a prior what is seen of it is measured, in causal order too.
            causal=self.causal and self.position_prior is None,
            prior_rounding=0.0 if self.position_prior is None else self.position_prior.log_rounding(),
        )


def check_counts(**counts: object) -> None:
    """Raise :class:`TypeError` for values that are not integers."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}")


def _uniform(rows: int, columns: int) -> Tensor:
    limit = 1 / math.sqrt(columns)
    return torch.empty(rows, columns).uniform_(-limit, limit)
