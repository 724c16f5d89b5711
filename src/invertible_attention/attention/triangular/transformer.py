"""A causal transformer: the shift and scale of a token from the tokens before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from invertible_attention._precision import working_dtype
from invertible_attention.attention.context import ContextTokens, make_context
from invertible_attention.attention.evaluation import linear
from invertible_attention.attention.responses import Gaussian, Response, make_response
from invertible_attention.attention.triangular.attend import attend_causally
from invertible_attention.attention.triangular.order import Layout, check_order
from invertible_attention.attention.triangular.position import AXES, make_position, widen
from invertible_attention.lipschitz.gram import exact_arithmetic
from invertible_attention.solvers.base import check_count, check_number

__all__ = ["CausalTransformer", "KeyValueCache"]

# Small enough that a new layer is nearly the identity.
_INITIAL_OUTPUT = 0.1

Hidden = Float[Tensor, "batch tokens width"]
Places = Int[Tensor, "*batch tokens 4"]


@dataclass
class KeyValueCache:
    """Keys and values of the tokens that came before, and room for those to come.

    Attributes:
        keys: One tensor per block, ``(batch, heads, room, dim)``.
        values: Likewise.
        places: Where the tokens are.
        kept: How many of them are known.
        seen: How many are with those evaluated last, which :meth:`CausalTransformer.keep` makes known.
    """

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    places: Places | None = None
    kept: int = 0
    seen: int = 0

    def add(self, block: int, key: Tensor, value: Tensor, room: int) -> tuple[Tensor, Tensor]:
        """Note the keys and values of the newest tokens, and return those of all."""
        if block == len(self.keys):
            self.keys.append(key.new_empty(*key.shape[:2], room, key.shape[-1]))
            self.values.append(value.new_empty(*value.shape[:2], room, value.shape[-1]))
        newest = slice(self.kept, self.seen)
        self.keys[block][:, :, newest], self.values[block][:, :, newest] = key, value
        return self.keys[block][:, :, : self.seen], self.values[block][:, :, : self.seen]


class CausalTransformer(nn.Module):
    r"""Maps images ``(B, C, *spatial)`` to ``(B, K, *spatial)``; a token's output depends on those before it only.

    Tokens are embedded and shifted by one, so that a token's place holds the token before it and the first place a
    learned start. Blocks of causal attention and, optionally, a feed-forward part follow, each around a layer
    normalization.

    Args:
        channels: Channels :math:`C` of a token.
        out_channels: Outputs :math:`K` for each token.
        response: Name of the response or a factory of one, applied to the embedded tokens.
        order: See :class:`Triangular`, like the following.
        width: Features of the embedded tokens.
        depth: Number of blocks.
        feed_forward: Width of the feed-forward part relative to ``width``.
        position: How tokens know where they are.
        heads: Number of heads; must divide ``width``.
        embedding_channels: Features of a query; default ``width // heads``.
        bias: Whether queries, keys and values have biases.
        context_channels: Number of features of a context; ``None`` for none.
        context_kind: ``"vector"`` (added to every embedded token) or ``"tokens"``, ``"masked_tokens"`` (attended to).
        implementation: How attention is computed.

    Raises:
        ValueError: If an argument is outside its range.
    """

    uses_mask = True

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        response: str | Callable[..., Response] = "embedded_gaussian",
        order: str | Sequence[int] = "raster",
        width: int | None = None,
        depth: int = 1,
        feed_forward: float = 2.0,
        position: str | None = None,
        heads: int = 1,
        embedding_channels: int | None = None,
        bias: bool = False,
        context_channels: int | None = None,
        context_kind: str = "vector",
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        check_count("depth", depth)
        check_number("feed_forward", feed_forward)
        width = 4 * channels if width is None else width
        if heads < 1 or width % heads:
            raise ValueError(f"heads must be positive and divide width={width}, got {heads}")
        self.channels, self.width, self.order = channels, width, check_order(order)
        self.embed = nn.Linear(channels, width)
        self.start = nn.Parameter(torch.randn(width))
        kind = None if context_kind == "vector" else context_channels
        self.context = make_context(context_kind, kind, width)
        self.shift = None
        if context_kind == "vector" and context_channels is not None:
            if context_channels < 1:
                raise ValueError(f"context_channels must be at least 1, got {context_channels}")
            self.shift = nn.Parameter(torch.zeros(width, context_channels))
        self.blocks = nn.ModuleList(
            CausalBlock(
                width, response, feed_forward, position, heads, embedding_channels, bias, implementation
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, out_channels)
        with torch.no_grad():
            self.out.weight.normal_(0.0, _INITIAL_OUTPUT / math.sqrt(width))
            self.out.bias.zero_()

    @property
    def uses_context(self) -> bool:
        """Whether it is called with a context."""
        return self.context is not None or self.shift is not None

    @property
    def can_keep(self) -> bool:
        """Whether what is known of some tokens can be kept for those after them; see :meth:`extend`."""
        return not (isinstance(self.context, ContextTokens) and self.context.masked)

    def forward(
        self,
        x: Float[Tensor, "batch channels *spatial"],
        context: Tensor | None = None,
        mask: Bool[Tensor, "batch *spatial"] | None = None,
    ) -> Float[Tensor, "batch out_channels *spatial"]:
        """Return the outputs, in float32 or better, also under autocast; zero where the mask is false."""
        with exact_arithmetic(x):
            layout = Layout.of(self.order, x, mask)
            tokens = layout.arrange(x.to(self._dtype(x)))
            return layout.restore(self._evaluate(tokens, layout, context))

    def begin(self, layout: Layout, context: Tensor | None, like: Tensor) -> KeyValueCache:
        """Return the cache before the first token, which holds the context's tokens; see :meth:`extend`.

        Raises:
            ValueError: If some tokens of the context are padding: they are no common beginning.
        """
        cache = KeyValueCache()
        if self.context is not None:
            self.context.check(context, like.shape[0])
            assert context is not None
            given = self.context(context, like.dtype)
            if given.source_mask is not None:
                raise ValueError(
                    "keys and values of padded context tokens cannot be cached: solve for all tokens at once"
                )
            assert given.sources is not None
            places = like.new_zeros(given.sources.shape[1], AXES + 1, dtype=torch.int64)
            self._remember(given.sources, places, places, cache, like.shape[1])
            self.keep(cache)
        return cache

    def extend(
        self,
        cache: KeyValueCache,
        before: Float[Tensor, "batch block channels"],
        layout: Layout,
        first: int,
        context: Tensor | None,
    ) -> Float[Tensor, "batch block out_channels"]:
        """Return the outputs of some consecutive tokens; :meth:`keep` then makes them part of the cache.

        Args:
            cache: Of the tokens before them.
            before: For each of them the token before; what stands before the first of all does not matter.
            layout: Where tokens are.
            first: Rank of the first of them.
            context: As in :meth:`forward`.
        """
        count = before.shape[1]
        query_at, key_at = self._places(layout)
        hidden = self._hidden(before, first, context)
        part = slice(first, first + count)
        more = query_at.shape[-2] - first
        return self._head(self._remember(hidden, query_at[..., part, :], key_at[..., part, :], cache, more))

    @staticmethod
    def keep(cache: KeyValueCache) -> None:
        """Make what :meth:`extend` was called on last part of the cache."""
        cache.kept = cache.seen

    def _evaluate(self, tokens: Tensor, layout: Layout, context: Tensor | None) -> Tensor:
        before = F.pad(tokens[:, :-1], (0, 0, 1, 0))
        hidden = self._hidden(before, 0, context)
        query_at, key_at = self._places(layout)
        if self.context is None:
            return self._head(self._run(hidden, query_at, key_at))
        self.context.check(context, tokens.shape[0])
        assert context is not None
        given = self.context(context, tokens.dtype)
        assert given.sources is not None
        sources, count = given.sources, given.sources.shape[1]
        hidden = torch.cat([sources, hidden], 1)
        nowhere = query_at.new_zeros(*query_at.shape[:-2], count, AXES + 1)
        query_at, key_at = torch.cat([nowhere, query_at], -2), torch.cat([nowhere, key_at], -2)
        if given.source_mask is None:
            return self._head(self._run(hidden, query_at, key_at)[:, count:])
        # What is padding goes behind everything, where nothing sees it.
        valid = F.pad(given.source_mask, (0, tokens.shape[1]), value=True)
        index = torch.sort((~valid).to(torch.uint8), dim=1, stable=True).indices
        hidden = hidden.gather(1, index[..., None].expand(hidden.shape))
        query_at, key_at = (
            at.expand(*index.shape, -1).gather(1, index[..., None].expand(-1, -1, AXES + 1))
            for at in (query_at, key_at)
        )
        hidden = self._run(hidden, query_at, key_at)
        back = torch.argsort(index, dim=1)[:, count:]
        return self._head(hidden.gather(1, back[..., None].expand(-1, -1, hidden.shape[-1])))

    def _hidden(self, before: Tensor, first: int, context: Tensor | None) -> Hidden:
        hidden = linear(before, self.embed.weight, self.embed.bias)
        if first == 0:
            start = self.start.to(hidden.dtype).expand(len(hidden), 1, -1)
            hidden = torch.cat([start, hidden[:, 1:]], 1)
        if self.shift is None:
            if self.context is None and context is not None:
                raise ValueError(f"this layer takes no context, got one of shape {tuple(context.shape)}")
            return hidden
        _check_vector(context, hidden.shape[0], self.shift.shape[1])
        assert context is not None
        return hidden + linear(context.to(hidden.dtype), self.shift, None)[:, None]

    @staticmethod
    def _places(layout: Layout) -> tuple[Places, Places]:
        """Return where the tokens are, as queries, and where those before them are, which are the keys."""
        at = widen(layout.coordinates())
        return at, torch.cat([at[..., :1, :], at[..., :-1, :]], -2)

    def _run(self, hidden: Hidden, query_at: Places, key_at: Places) -> Hidden:
        for block in self.blocks:
            hidden = block(hidden, query_at, key_at)
        return hidden

    def _remember(
        self, hidden: Hidden, query_at: Places, key_at: Places, cache: KeyValueCache, more: int
    ) -> Hidden:
        """Run the blocks on some tokens that see those in the cache too, which has room for ``more`` after them."""
        cache.seen = cache.kept + hidden.shape[1]
        if cache.places is None:
            cache.places = key_at
        else:
            cache.places = _join(cache.places[..., : cache.kept, :], key_at)
        for index, block in enumerate(self.blocks):
            add = partial(cache.add, index, room=cache.seen + more)
            hidden = block(hidden, query_at, cache.places, add)
        return hidden

    def _head(self, hidden: Hidden) -> Tensor:
        return linear(_normalize(hidden, self.norm), self.out.weight, self.out.bias)

    def _dtype(self, x: Tensor) -> torch.dtype:
        return torch.promote_types(working_dtype(x.dtype), working_dtype(self.start.dtype))


class CausalBlock(nn.Module):
    """Causal attention and a feed-forward part, each added to the tokens it sees normalized.

    Args:
        width: Features of a token.
        response: Of the attention.
        feed_forward: Width of the feed-forward part relative to ``width``.
        position: How tokens know where they are.
        heads: Number of heads.
        embedding_channels: Features of a query.
        bias: Whether the maps of the attention have biases.
        implementation: How attention is computed.
    """

    def __init__(
        self,
        width: int,
        response: str | Callable[..., Response],
        feed_forward: float,
        position: str | None,
        heads: int,
        embedding_channels: int | None,
        bias: bool,
        implementation: str,
    ) -> None:
        super().__init__()
        self.heads, self.implementation = heads, implementation
        features = width // heads if embedding_channels is None else embedding_channels
        self.response = make_response(response, width, heads, features, bias)
        if isinstance(self.response, Gaussian):
            features = width // heads
            with torch.no_grad():
                self.response.temperature.div_(math.sqrt(features))
        self.position = make_position(position, self.response.combine, heads, features)
        self.attention_norm = nn.LayerNorm(width)
        self.value = nn.Linear(width, width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        hidden = round(feed_forward * width)
        self.feed_forward_norm = nn.LayerNorm(width) if hidden else None
        self.expand = nn.Linear(width, hidden) if hidden else None
        self.reduce = nn.Linear(hidden, width) if hidden else None

    def forward(
        self,
        hidden: Hidden,
        query_at: Places,
        key_at: Places,
        remember: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Hidden:
        """Return the tokens after the block.

        Args:
            hidden: The tokens.
            query_at: Where they are as queries.
            key_at: Where the keys are that they see.
            remember: Takes the keys and values of the tokens and returns those of all that they see.
        """
        seen = _normalize(hidden, self.attention_norm)
        query, key = self.response(seen, seen)
        own = key_at[..., key_at.shape[-2] - hidden.shape[1] :, :]
        query, key = self.position.rotate(query, query_at), self.position.rotate(key, own)
        value = linear(seen, self.value.weight, self.value.bias)
        value = value.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if remember is not None:
            key, value = remember(key, value)
        bias = self.position.bias(query_at, key_at)
        attended = attend_causally(
            query, key, value, self.response, bias=bias, implementation=self.implementation
        )
        attended = attended.transpose(1, 2).flatten(2)
        hidden = hidden + linear(attended, self.out.weight, self.out.bias)
        if self.expand is not None:
            assert self.feed_forward_norm is not None
            assert self.reduce is not None
            inner = linear(_normalize(hidden, self.feed_forward_norm), self.expand.weight, self.expand.bias)
            hidden = hidden + linear(F.gelu(inner), self.reduce.weight, self.reduce.bias)
        return hidden


def _normalize(hidden: Tensor, norm: nn.LayerNorm) -> Tensor:
    weight, bias = norm.weight.to(hidden.dtype), norm.bias.to(hidden.dtype)
    return F.layer_norm(hidden, norm.normalized_shape, weight, bias, norm.eps)


def _join(first: Tensor, second: Tensor) -> Tensor:
    batch = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    return torch.cat([first.expand(*batch, *first.shape[-2:]), second.expand(*batch, *second.shape[-2:])], -2)


def _check_vector(context: Tensor | None, batch: int, features: int) -> None:
    if context is None:
        raise ValueError(f"this layer needs a context (B, {features}), got None")
    if context.shape != (batch, features):
        raise ValueError(f"expected a context ({batch}, {features}), got shape {tuple(context.shape)}")
    if not context.is_floating_point():
        raise ValueError(f"expected a floating-point context, got {context.dtype}: embed classes first")
