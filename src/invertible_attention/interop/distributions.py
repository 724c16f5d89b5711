"""Use bijections as :mod:`torch.distributions` transforms, and such transforms here. Pyro and zuko build on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import IndependentTransform, Transform, constraints
from torch.distributions.transforms import _InverseTransform

from invertible_attention.bijection import Bijection, Event, refuse_unused
from invertible_attention.interop.views import Inverse, on_vectors, sum_over_event

__all__ = ["DistributionBijection", "DistributionTransform", "from_distribution", "to_distribution"]


@dataclass(frozen=True, eq=False)
class _Pair:
    """A point, its image, the log-determinant once it was computed, and the versions of all they depend on."""

    x: Tensor
    y: Tensor
    logdet: Tensor | None
    state: tuple[object, ...]


class DistributionTransform(Transform, nn.Module):
    r"""A bijection as a :class:`torch.distributions.Transform`, with parameters and a hash.

    The transform goes the bijection's way, from data to latent. A density of data is therefore
    ``TransformedDistribution(base, [transform.inv])``.

    The last pair ``(x, y)`` is remembered with its log-determinant, until a weight changes. So an estimated
    log-determinant is drawn once per pair and the inverse of the transform sees the same number, and a composition,
    which asks for every intermediate result again, does not solve for it again. The forward direction computes the
    log-determinant together with ``y``; the inverse computes it when it is asked for.

    Args:
        bijection: :math:`f`.
        event_dim: Number of axes of an event; those in front of them are batch axes, any number.
        output_shape: Shape of :math:`f`'s result, for a bijection that changes the shape of the event; then
            ``event_shape`` is needed too.
        event_shape: Shape of an event, where it is fixed.
        context: Passed to the bijection, batch axes first; they are broadcast with those of the events.
        context_dim: Number of axes of one context: 1 for a vector, 2 for tokens.
        cache_size: 0 or 1, as in PyTorch: with 1, ``inv(y)`` of the last ``y`` returns the ``x`` it came from, and
            with 0 only the log-determinant is remembered.

    Raises:
        ValueError: If the arguments contradict each other.
    """

    bijective = True

    def __init__(
        self,
        bijection: Bijection,
        event_dim: int = 1,
        *,
        event_shape: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        context: Tensor | None = None,
        context_dim: int = 1,
        cache_size: int = 1,
    ) -> None:
        super().__init__(cache_size=cache_size)
        if output_shape is not None and event_shape is None:
            raise ValueError(f"output_shape {tuple(output_shape)} needs event_shape, got None")
        if event_dim < 1:
            raise ValueError(f"event_dim must be at least 1, got {event_dim}")
        self.bijection = bijection
        self.input_shape = None if event_shape is None else tuple(event_shape)
        self.output_shape = self.input_shape if output_shape is None else tuple(output_shape)
        self.input_dim = event_dim if self.input_shape is None else len(self.input_shape)
        self.output_dim = event_dim if self.output_shape is None else len(self.output_shape)
        self.context = context
        self.context_dim = context_dim
        self.clear_cache()

    def __hash__(self) -> int:
        # Transform defines equality, which takes the hash away that modules are found by.
        return nn.Module.__hash__(self)

    def __getstate__(self) -> dict[str, Any]:
        # What is remembered belongs to a graph, which can be neither copied nor stored.
        return super().__getstate__() | {"_remembered": None}

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``f(x)``."""
        pair = self._pair(x, None) if self._cache_size else None
        return self._call(x) if pair is None else pair.y

    @property
    def domain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Real tensors of ``event_dim`` axes."""
        return constraints.independent(constraints.real, self.input_dim)

    @property
    def codomain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Real tensors."""
        return constraints.independent(constraints.real, self.output_dim)

    def with_cache(self, cache_size: int = 1) -> DistributionTransform:
        """Return a transform around the same bijection with another cache."""
        if cache_size == self._cache_size:
            return self
        return self._with(cache_size=cache_size)

    def condition(self, context: Tensor) -> DistributionTransform:
        """Return a transform around the same bijection, given a context."""
        return self._with(context=context)

    def clear_cache(self) -> None:
        """Forget the last pair and with it the graph it holds."""
        self._remembered: _Pair | None = None

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``f(x)`` and its log-determinant (what zuko calls)."""
        y = self(x)
        return y, self.log_abs_det_jacobian(x, y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant at ``x``; the same number again for the pair that was computed last."""
        pair = self._pair(x, y)
        if pair is None:
            logdet = self._on_batch(self.bijection.forward_and_logdet, x, self.input_dim)[1]
            pair = self._remember(x, y, logdet)
        elif pair.logdet is None:
            logdet = -self._on_batch(self.bijection.inverse_and_logdet, y, self.output_dim)[1]
            pair = self._remember(x, y, logdet)
        assert pair.logdet is not None
        return pair.logdet

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of the result."""
        return _replace_event(shape, self.input_shape, self.output_shape)

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of the inverse's result."""
        return _replace_event(shape, self.output_shape, self.input_shape)

    def _call(self, x: Tensor) -> Tensor:
        y, logdet = self._on_batch(self.bijection.forward_and_logdet, x, self.input_dim)
        return self._remember(x, y, logdet).y

    def _inv_call(self, y: Tensor) -> Tensor:
        pair = self._pair(None, y) if self._cache_size else None
        return self._inverse(y) if pair is None else pair.x

    def _inverse(self, y: Tensor) -> Tensor:
        (x,) = self._on_batch(lambda z, **given: (self.bijection.inverse(z, **given),), y, self.output_dim)
        return self._remember(x, y, None).x

    def _remember(self, x: Tensor, y: Tensor, logdet: Tensor | None) -> _Pair:
        self._remembered = _Pair(x, y, logdet, self._state(x, y))
        return self._remembered

    def _pair(self, x: Tensor | None, y: Tensor | None) -> _Pair | None:
        """Return the last pair if it is that of ``x`` and ``y`` and nothing has changed since."""
        pair = self._remembered
        if pair is None or (x is not None and x is not pair.x) or (y is not None and y is not pair.y):
            return None
        return pair if pair.state == self._state(pair.x, pair.y) else None

    def _state(self, *tensors: Tensor) -> tuple[object, ...]:
        weights = (*self.bijection.parameters(), *self.bijection.buffers())
        versions = (0 if t.is_inference() else t._version for t in (*tensors, *weights))
        return (self.bijection.training, torch.is_grad_enabled(), *versions)

    def _on_batch(self, function: Any, x: Tensor, event_dim: int) -> tuple[Tensor, ...]:
        """Call a function of ``(B, *event)`` and a context with any number of batch axes."""
        if x.ndim < event_dim:
            raise ValueError(f"expected events of {event_dim} axes, got shape {tuple(x.shape)}")
        leading, event = x.shape[: x.ndim - event_dim], x.shape[x.ndim - event_dim :]
        context = self.context
        if context is not None:
            own, rest = context.shape[: -self.context_dim], context.shape[-self.context_dim :]
            leading = torch.broadcast_shapes(leading, own)
            context = context.expand(*leading, *rest).reshape((math.prod(leading), *rest))
            x = x.expand(*leading, *event)
        results = function(x.reshape((math.prod(leading), *event)), context=context)
        return tuple(result.reshape((*leading, *result.shape[1:])) for result in results)

    def _with(self, **changed: Any) -> DistributionTransform:
        kept = {
            "event_dim": self.input_dim,
            "event_shape": self.input_shape,
            "output_shape": self.output_shape,
            "context": self.context,
            "context_dim": self.context_dim,
            "cache_size": self._cache_size,
        }
        return type(self)(self.bijection, **(kept | changed))


class DistributionBijection(Bijection):
    """A :class:`torch.distributions.Transform` as a bijection.

    Args:
        transform: A bijective transform. Log-determinants are summed over the event.

    Raises:
        ValueError: If the transform is not bijective.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        if not transform.bijective:
            raise ValueError(f"expected a bijective transform, got {transform}")
        self.transform = transform
        # Compositions keep their parts in a list, where parameters are not found.
        self.parts = nn.ModuleList(_modules(transform))

    def forward_and_logdet(
        self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return the transform's result and its log-determinant."""
        refuse_unused(self, context=context, mask=mask)
        return call_and_logdet(self.transform, x)

    def inverse_and_logdet(
        self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return the inverse transform's result and its log-determinant."""
        refuse_unused(self, context=context, mask=mask)
        return call_and_logdet(self.transform.inv, z)


def to_distribution(
    bijection: Bijection,
    event_dim: int = 1,
    *,
    view: Sequence[int] | None = None,
    **arguments: Any,
) -> DistributionTransform:
    """Return a bijection as a :class:`torch.distributions.Transform`.

    Args:
        bijection: Such as :class:`~invertible_attention.InvertibleAttention` or a chain of
            :mod:`invertible_attention.flows`.
        event_dim: Number of axes of an event: 1 for vectors, 3 for images.
        view: Shape ``(C, *spatial)`` vectors are viewed as; ``None`` if events have that shape.
        **arguments: See :class:`DistributionTransform`.

    Example:
        >>> import torch, invertible_attention as ia
        >>> from torch.distributions import Independent, Normal, TransformedDistribution
        >>> from invertible_attention.interop import to_distribution
        >>> attention = to_distribution(ia.InvertibleAttention(1), view=(1, 2))
        >>> base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
        >>> TransformedDistribution(base, [attention.inv]).log_prob(torch.randn(5, 2)).shape
        torch.Size([5])
    """
    return DistributionTransform(on_vectors(bijection, view), event_dim, **arguments)


def from_distribution(transform: Transform) -> Bijection:
    """Return a :class:`torch.distributions.Transform` (also Pyro's) as a bijection of the same direction."""
    if isinstance(transform, _InverseTransform):
        # A copy of PyTorch's inverse has lost the transform it inverts.
        return Inverse(DistributionBijection(transform.inv))
    return DistributionBijection(transform)


def call_and_logdet(transform: Transform, x: Tensor) -> tuple[Tensor, Float[Tensor, " batch"]]:
    """Evaluate a transform and its log-determinant per sample, whatever its event is."""
    y = cast(Tensor, transform(x))
    return y, sum_over_event(transform.log_abs_det_jacobian(x, y), x.shape[0])


def _replace_event(
    shape: Sequence[int], old: tuple[int, ...] | None, new: tuple[int, ...] | None
) -> torch.Size:
    if old is None or new is None:
        return torch.Size(shape)
    cut = len(shape) - len(old)
    if cut < 0 or tuple(shape[cut:]) != old:
        raise ValueError(f"expected a shape that ends in {old}, got {tuple(shape)}")
    return torch.Size((*shape[:cut], *new))


def _modules(transform: Transform) -> list[nn.Module]:
    """Return the modules inside a composition; a transform that is a module registers itself."""
    if isinstance(transform, nn.Module):
        return []
    inner = [*getattr(transform, "parts", ()), *getattr(transform, "transforms", ())]
    if isinstance(transform, _InverseTransform):
        inner.append(transform.inv)
    if isinstance(transform, IndependentTransform):
        inner.append(transform.base_transform)
    return [m for part in inner for m in ([part] if isinstance(part, nn.Module) else _modules(part))]
