"""Use bijections as :mod:`torch.distributions` transforms, and such transforms here. Pyro and zuko build on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.distributions.transforms import _InverseTransform

from invertible_attention.bijection import Bijection
from invertible_attention.interop.wrappers import Foreign, flattened

__all__ = ["DistributionBijection", "DistributionTransform", "from_distribution", "to_distribution"]


class _Inverse(_InverseTransform):
    """PyTorch's inverse of a transform, which still knows what it inverts when it was copied or stored."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()


class DistributionTransform(Transform, nn.Module):
    r"""A bijection as a :class:`torch.distributions.Transform`, with parameters and a hash.

    The transform goes the bijection's way, from data to latent. A density of data is therefore
    ``TransformedDistribution(base, [transform.inv])``.

    Nothing is remembered between calls, so every value is that of the present weights and input, and an estimated
    log-determinant is drawn again whenever it is asked for. :meth:`call_and_ladj` evaluates the bijection once for both
    the value and the log-determinant; :class:`torch.distributions.TransformedDistribution` asks for them one after
    the other, which costs one more evaluation without a log-determinant.

    Args:
        bijection: :math:`f`.
        event_dim: Number of axes of an event; those in front of them are batch axes, any number.
        output_shape: Shape of :math:`f`'s result, for a bijection that changes the shape of the event; then
            ``event_shape`` is needed too.
        event_shape: Shape of an event, where it is fixed.
        context: Passed to the bijection, batch axes first; they are broadcast with those of the events.
        context_dim: Number of axes of one context: 1 for a vector, 2 for tokens.
        cache_size: 0. PyTorch's cache of one pair, which does not see a change of the weights, is refused.

    Raises:
        ValueError: If the arguments contradict each other, or a cache is asked for.
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
        cache_size: int = 0,
    ) -> None:
        super().__init__()
        self.with_cache(cache_size)
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

    def __hash__(self) -> int:
        # Transform defines equality, which takes the hash away that modules are found by.
        return nn.Module.__hash__(self)

    @property
    def inv(self) -> Transform:
        """The inverse transform."""
        return _Inverse(self)

    @property
    def domain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Real tensors of ``event_dim`` axes."""
        return constraints.independent(constraints.real, self.input_dim)

    @property
    def codomain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Real tensors."""
        return constraints.independent(constraints.real, self.output_dim)

    def with_cache(self, cache_size: int = 1) -> DistributionTransform:
        """Return the transform itself, which keeps no cache.

        Raises:
            ValueError: If ``cache_size`` is not 0.
        """
        if cache_size != 0:
            raise ValueError(
                f"cache_size must be 0, got {cache_size!r}: PyTorch's cache returns the last pair by the identity of "
                "its tensors, also when the weights or the values have changed since; call_and_ladj(x) returns f(x) "
                "with its log-determinant at the cost of one evaluation"
            )
        return self

    def condition(self, context: Tensor) -> DistributionTransform:
        """Return a transform around the same bijection, given a context."""
        return type(self)(
            self.bijection,
            self.input_dim,
            event_shape=self.input_shape,
            output_shape=self.output_shape,
            context=context,
            context_dim=self.context_dim,
        )

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``f(x)`` and its log-determinant, from one evaluation (what zuko calls)."""
        y, logdet = self._on_batch(self.bijection.forward_and_logdet, x, self.input_dim)
        return y, logdet

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant at ``x``, evaluated (an estimate: drawn) again; ``y`` makes no difference."""
        return self.call_and_ladj(x)[1]

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of the result."""
        return _replace_event(shape, self.input_shape, self.output_shape)

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of the inverse's result."""
        return _replace_event(shape, self.output_shape, self.input_shape)

    def _call(self, x: Tensor) -> Tensor:
        (y,) = self._on_batch(lambda *args, **given: (self.bijection(*args, **given),), x, self.input_dim)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        (x,) = self._on_batch(
            lambda *args, **given: (self.bijection.inverse(*args, **given),), y, self.output_dim
        )
        return x

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


class DistributionBijection(Foreign):
    """A :class:`torch.distributions.Transform` as a bijection.

    Args:
        transform: A bijective transform. Log-determinants are summed over the event.

    Raises:
        ValueError: If the transform is not bijective.
    """

    transform: Transform  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, transform: Transform) -> None:
        if not transform.bijective:
            raise ValueError(f"expected a bijective transform, got {transform}")
        super().__init__(_call, transform=transform)
        # Compositions keep their parts in a list, where parameters are not found.
        self.parts = nn.ModuleList(_modules(transform))

    def __getstate__(self) -> dict[str, Any]:
        # A copy of PyTorch's inverse has lost the transform it inverts.
        return self.__dict__ | (
            {} if isinstance(self.transform, nn.Module) else {"transform": _fresh(self.transform)}
        )


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
    return DistributionTransform(flattened(bijection, view), event_dim, **arguments)


def from_distribution(transform: Transform) -> Bijection:
    """Return a :class:`torch.distributions.Transform` (also Pyro's) as a bijection of the same direction."""
    return DistributionBijection(transform)


def call_and_logdet(transform: Transform, x: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a transform and its log-determinant, without what it remembers."""
    transform = _fresh(transform)
    if isinstance(transform, DistributionTransform):
        return transform.call_and_ladj(x)
    y = cast(Tensor, transform(x))
    return y, transform.log_abs_det_jacobian(x, y)


def _call(transform: Transform, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    return call_and_logdet(transform.inv if inverse else transform, x)


def _replace_event(
    shape: Sequence[int], old: tuple[int, ...] | None, new: tuple[int, ...] | None
) -> torch.Size:
    if old is None or new is None:
        return torch.Size(shape)
    cut = len(shape) - len(old)
    if cut < 0 or tuple(shape[cut:]) != old:
        raise ValueError(f"expected a shape that ends in {old}, got {tuple(shape)}")
    return torch.Size((*shape[:cut], *new))


def _fresh(transform: Transform) -> Transform:
    """Return a transform that shares all but what it remembers: a pair, by identity, whatever has changed since."""
    if isinstance(transform, _InverseTransform):
        return _Inverse(_fresh(transform.inv))
    fresh = copy(transform)
    if hasattr(fresh, "_cached_x_y"):
        fresh._cached_x_y = None, None
    for name, value in vars(transform).items():
        if name != "_inv" and _inner(value):
            setattr(
                fresh,
                name,
                _fresh(value) if isinstance(value, Transform) else [_fresh(part) for part in value],
            )
    return fresh


def _modules(transform: Transform) -> list[nn.Module]:
    """Return the modules inside a composition; a transform that is a module registers itself."""
    if isinstance(transform, nn.Module):
        return []
    inner = [transform.inv] if isinstance(transform, _InverseTransform) else []
    inner += [part for name, value in vars(transform).items() if name != "_inv" for part in _inner(value)]
    return [m for part in inner for m in ([part] if isinstance(part, nn.Module) else _modules(part))]


def _inner(value: Any) -> list[Transform]:
    """Return the transforms that an attribute of a transform holds."""
    return [p for p in (value if isinstance(value, list | tuple) else [value]) if isinstance(p, Transform)]
