r"""What an attention branch computes once its weights are known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invertible_attention._mask import flat_mask
from invertible_attention._precision import raised, working_dtype
from invertible_attention.attention.ball import project_on_ball
from invertible_attention.attention.constraints import Constraint
from invertible_attention.attention.context import Context, ContextTerms
from invertible_attention.attention.functional import attend
from invertible_attention.attention.mask import AttentionMask, Spread
from invertible_attention.attention.mean_field import LinearPart
from invertible_attention.attention.position import Factors, PositionPrior
from invertible_attention.attention.responses import Response
from invertible_attention.attention.uniform import Uniform
from invertible_attention.lipschitz.bind import Bindable
from invertible_attention.lipschitz.certificate import (
    Normalization,
    ScoreBounds,
    attention_log_bound,
    combine_heads,
    log_rounding_allowance,
)
from invertible_attention.lipschitz.gram import exact_arithmetic
from invertible_attention.lipschitz.known import doubt

__all__ = ["Evaluation", "Norms", "Scale", "linear"]

Image = Float[Tensor, "batch channels *spatial"]


@dataclass(frozen=True)
class Norms:
    """What the certificate is computed from; see :func:`attention_log_bound`."""

    scores: ScoreBounds
    value: Float[Tensor, " heads"]
    value_bias: Float[Tensor, " heads"]
    radius: Float[Tensor, ""]
    log_out: Float[Tensor, ""]
    normalization: Normalization
    causal: bool
    prior_rounding: Float[Tensor, " heads"] | float = 0.0

    def log_bound(self, spread: Spread | None = None) -> Float[Tensor, "*batch"]:
        """Logarithm of ‖W_L‖₂ L(A), per sample if the spread is; without one the factor 1/N of ``"all"`` is missing."""
        spread = Spread() if spread is None else spread
        per_head = attention_log_bound(
            self.scores,
            self.value,
            self.value_bias,
            self.radius,
            self.normalization,
            row_mass=spread.row_mass,
            spread=spread.spread,
            causal=self.causal,
        )
        return (
            combine_heads(per_head - spread.log_count + self.prior_rounding)
            + self.log_out
            + log_rounding_allowance(per_head.dtype)
        )


@dataclass(frozen=True)
class Scale:
    """Radius, norms and bound of a branch: they depend on the weights alone, and are computed once per binding."""

    radius: Float[Tensor, ""] | None
    norms: Norms | None
    log_bound: Float[Tensor, ""]
    lipschitz_bound: Float[Tensor, ""]


class Evaluation(Bindable, ABC):
    """What an attention branch computes, wherever its weights and its scale come from.

    Attributes:
        value_weight: :math:`W_F` of all heads.
        value_bias: :math:`b_F`, or ``None``.
        out_weight: :math:`W_L`.
        out_bias: :math:`b_L`, or ``None``.
        response: Scores pairs of tokens.
        constraint: Says by what factor the branch is scaled.
        normalization: As in :class:`.branch.AttentionBranch`, like the following.
        heads: Number of heads.
        position_prior: Prior over pairs of positions.
        context: How a context enters.
        causal: Whether a token attends to itself and those before it only.
        implementation: How attention is computed.
    """

    value_weight: Tensor
    value_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None
    response: Response
    constraint: Constraint
    normalization: str
    heads: int
    position_prior: PositionPrior | None
    context: Context | None
    causal: bool
    implementation: str
    uses_mask = True
    _scale: Scale | None = None

    @property
    def uses_context(self) -> bool:
        """Whether the branch is called with a context."""
        return self.context is not None

    @abstractmethod
    def compute_scale(self) -> Scale:
        """Compute the scale from the current weights."""

    @property
    def scale(self) -> Scale:
        """The scale of the branch; a bound branch keeps that of its binding."""
        return self.compute_scale() if self._scale is None else self._scale

    def lipschitz_bound(self) -> Float[Tensor, ""]:
        """Upper bound of the Lipschitz constant in the Euclidean norm; ``inf`` where nothing is promised."""
        return torch.tensor(torch.inf) if doubt(self) else self.scale.lipschitz_bound

    def _ready(self, x: Image, mask: Tensor | None) -> None:
        """Set what is set from the first data; a bound branch has it."""

    def prepare(self) -> None:
        """Compute the scale."""
        self._scale = self.compute_scale()

    def evaluate(self, x: Image, context: Tensor | None, mask: Tensor | None) -> Image:
        """Return ``g(x)``; see :meth:`.branch.AttentionBranch.forward`."""
        with exact_arithmetic(x):
            return self._evaluate(x, context, mask)

    def linear_part(
        self, x: Image, context: Tensor | None = None, mask: Tensor | None = None
    ) -> LinearPart | None:
        r"""Return an approximation of the derivative of :math:`g`.

        It is that for uniform attention weights, with how they follow their queries to first order.

        With a prior over relative position that is a circular convolution, whose weights stay as they are. Of another
        prior, or one of which a mask hides a part, it is the average, which they share. In causal order there is none.

        Args:
            x: What :math:`g` is evaluated at.
            context: As in the forward pass.
            mask: Likewise.

        Raises:
            RuntimeError: In evaluation, of a branch that is not initialized; in training this sets its radius.
        """
        self._ready(x, mask)
        with exact_arithmetic(x):
            uniform = self._uniform(x, context, mask)
            return None if uniform is None else uniform.linear_part()

    def first_guess(
        self, z: Image, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Image | None:
        r"""Return an approximation of the solution of :math:`x + g(x) = z`, without an evaluation of :math:`g`.

        It is exact for uniform attention weights inside the ball, and follows the weights to first order. ``None``
        where nothing is certified: weights may then be anything.

        Args:
            z: The right-hand side.
            context: As in the forward pass.
            mask: Likewise.
        """
        with exact_arithmetic(z):
            follows = None if self.scale.radius is None else self._uniform(z, context, mask)
            if follows is None:
                return None
            stays = replace(follows, response=None)
            x = z
            # Newton steps: the first is exact for equal weights where no token leaves the ball.
            for uniform in (stays, follows) if self.position_prior is None else (stays,):
                there = replace(uniform, tokens=self._tokens(x, uniform.seen.mask, uniform.tokens.dtype))
                x = x - there.linear_part().precondition(x - z + there.value())
            return x

    def _uniform(self, x: Image, context: Tensor | None, mask: Tensor | None) -> Uniform | None:
        if self.causal or self.normalization == "count":
            return None
        scale = self.scale
        dtype = torch.promote_types(working_dtype(x.dtype), self.value_weight.dtype)
        mask = None if mask is None else flat_mask(mask, x)
        terms = self._context_terms(context, x.shape[0], dtype)
        attention_mask = self._attention_mask(x, mask, terms)
        log_prior = None if attention_mask.complete else self._log_prior(x, attention_mask, dtype)
        gain = torch.as_tensor(self._gain(scale, attention_mask, log_prior), dtype=dtype, device=x.device)
        # Context tokens take part of what a row, or the whole, sums to.
        if self.normalization != "column" and attention_mask.sources:
            gain = gain / torch.as_tensor(attention_mask.row_mass(), dtype=dtype, device=x.device)
        if self.normalization == "all":
            gain = gain / (attention_mask.tokens if mask is None else mask.sum(1).clamp_min(1))
        prior = self.position_prior
        return Uniform(
            out_weight=self.out_weight.to(dtype),
            out_bias=self.out_bias,
            value_weight=self.value_weight.to(dtype),
            value_bias=self.value_bias,
            heads=self.heads,
            gain=gain,
            radius=scale.radius,
            kernel=None if prior is None or mask is not None else prior.kernel(x.shape[2:]),
            tokens=self._tokens(x, mask, dtype),
            spatial=x.shape[2:],
            seen=attention_mask,
            terms=terms,
            # Without a certificate nothing would bound what follows queries.
            response=self.response if prior is None and scale.radius is not None else None,
            normalization=self.normalization,
        )

    def _tokens(
        self, x: Image, mask: Tensor | None, dtype: torch.dtype
    ) -> Float[Tensor, "batch tokens channels"]:
        tokens = x.flatten(2).transpose(1, 2).to(dtype)
        return tokens if mask is None else tokens.masked_fill(~mask[..., None], 0.0)

    def _context_terms(self, context: Tensor | None, batch: int, dtype: torch.dtype) -> ContextTerms:
        if self.context is None and context is not None:
            raise ValueError(f"this layer takes no context, got one of shape {tuple(context.shape)}")
        if self.context is None:
            return ContextTerms()
        self.context.check(context, batch)
        return self.context(context, dtype)

    def _attention_mask(self, x: Image, mask: Tensor | None, terms: ContextTerms) -> AttentionMask:
        sources = 0 if terms.sources is None else terms.sources.shape[1]
        return AttentionMask(x.shape[2:].numel(), sources, self.causal, mask, terms.source_mask)

    def _factors(self, x: Image, attention_mask: AttentionMask) -> Factors | None:
        """Return the factors of the prior, where all of it is seen."""
        prior = self.position_prior
        return prior.factors(x.shape[2:]) if prior is not None and attention_mask.complete else None

    def _log_prior(self, x: Image, attention_mask: AttentionMask, dtype: torch.dtype) -> Tensor | None:
        prior = None
        if self.position_prior is not None:
            prior = self.position_prior(x.shape[2:]).expand(self.heads, -1, -1)
        return attention_mask.log_prior(dtype, x.device, prior)

    def _evaluate(self, x: Image, context: Tensor | None, mask: Tensor | None) -> Image:
        scale = self.scale
        dtype = torch.promote_types(working_dtype(x.dtype), self.value_weight.dtype)
        mask = None if mask is None else flat_mask(mask, x)
        tokens = self._tokens(x, mask, dtype)
        terms = self._context_terms(context, x.shape[0], dtype)
        attention_mask = self._attention_mask(x, mask, terms)
        factors = self._factors(x, attention_mask)
        log_prior = None if factors is not None else self._log_prior(x, attention_mask, dtype)
        attended = self._attend(scale, tokens, terms, attention_mask, log_prior, factors)
        out = attended.transpose(1, 2).flatten(2)
        gain = self._gain(scale, attention_mask, log_prior)
        if isinstance(gain, Tensor) and gain.ndim:
            out, gain = out * gain.to(dtype)[:, None, None], 1.0
        out = linear(out, raised(self.out_weight) * gain, self.out_bias)
        out = out if terms.out is None else out + terms.out
        if mask is not None:
            out = out.masked_fill(~mask[..., None], 0.0)
        return out.transpose(1, 2).reshape(x.shape)

    def _attend(
        self,
        scale: Scale,
        tokens: Tensor,
        terms: ContextTerms,
        attention_mask: AttentionMask,
        log_prior: Tensor | None,
        factors: Factors | None,
    ) -> Float[Tensor, "batch heads tokens features"]:
        def see(shift: Tensor | None) -> Tensor:
            moved = tokens if shift is None else tokens + shift
            if terms.sources is not None:
                moved = torch.cat([moved, terms.sources], 1)
            return moved if scale.radius is None else project_on_ball(moved, scale.radius)

        as_query = see(terms.query)
        as_key = as_query if terms.key is None else see(terms.key)
        as_value = as_query if terms.value is None else see(terms.value)
        if attention_mask.sources and not attention_mask.square:
            as_query = as_query[:, : attention_mask.tokens]
        query, key = self.response(as_query, as_key)
        value = linear(as_value, self.value_weight, self.value_bias)
        attended = attend(
            query,
            key,
            value.unflatten(-1, (self.heads, -1)).transpose(1, 2),
            combine=self.response.combine,
            phi=self.response.phi,
            normalization=self.normalization,
            log_prior=log_prior,
            prior=factors,
            mask=attention_mask.key_mask(),
            implementation=self.implementation,
        )
        return attended[:, :, : attention_mask.tokens] if attention_mask.square else attended

    def _gain(self, scale: Scale, attention_mask: AttentionMask, log_prior: Tensor | None) -> Tensor | float:
        norms, log_bound = scale.norms, scale.log_bound
        if norms is not None and self.position_prior is not None and not attention_mask.complete:
            assert log_prior is not None
            seen = norms.log_bound(attention_mask.spread(log_prior, self.normalization))
            if self.normalization == "all":
                return self.constraint.gain(seen)
            # What was promised without knowing what is seen is kept, also where it is less than the limit.
            return self.constraint.gain(log_bound) * (log_bound - seen).clamp_max(0.0).exp()
        if norms is not None and attention_mask.sources and self.normalization == "column":
            row_mass = attention_mask.row_mass()
            row_mass = row_mass[:, None] if isinstance(row_mass, Tensor) else row_mass
            log_bound = norms.log_bound(Spread(row_mass))
        if self.normalization == "all":
            log_bound = log_bound - attention_mask.log_count()
        return self.constraint.gain(log_bound)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a linear map in the dtype of ``x``."""
    return nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
