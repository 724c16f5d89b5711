"""Use bijections in `FrEIA <https://github.com/vislearn/FrEIA>`_ networks, and its modules here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from invertible_attention.attention import InvertibleAttention
from invertible_attention.bijection import Bijection
from invertible_attention.interop._missing import missing
from invertible_attention.interop.wrappers import Foreign, flattened

try:
    from FrEIA.modules import InvertibleModule
except ImportError as error:
    raise missing("FrEIA", error) from error

__all__ = ["FreiaAttention", "FreiaModule", "from_freia", "to_freia"]

Shape = tuple[int, ...]


class FreiaModule(InvertibleModule):
    """A bijection as a FrEIA module with one input and one output, for ``SequenceINN`` and ``GraphINN``.

    Args:
        dims_in: Shape of the input, in a list, as FrEIA passes it.
        dims_c: Shape of the condition in a list, if there is one; it is the bijection's context.
        bijection: A bijection, or what makes one for the shape of the input.
        view: Shape ``(C, *spatial)`` vectors are viewed as; ``None`` if inputs have that shape.
        output_shape: Shape of the output, if it is another one.

    Raises:
        ValueError: If there is more than one input or condition.
    """

    def __init__(
        self,
        dims_in: Iterable[Shape],
        dims_c: Iterable[Shape] | None = None,
        *,
        bijection: Bijection | Callable[[Shape], Bijection],
        view: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(dims_in, dims_c)  # pyright: ignore[reportArgumentType]
        if len(self.dims_in) != 1 or len(self.dims_c) > 1:
            raise ValueError(
                f"expected one input and at most one condition, got {self.dims_in} and {self.dims_c}"
            )
        shape = tuple(self.dims_in[0])
        if not isinstance(bijection, Bijection):
            bijection = bijection(shape if view is None else tuple(view))
        self.bijection = flattened(bijection, view)
        self.output_shape = shape if output_shape is None else tuple(output_shape)

    def forward(
        self,
        x_or_z: Iterable[Tensor],
        c: Iterable[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> tuple[tuple[Tensor], Tensor]:
        """Return the output in a tuple, and the log-determinant of the direction (zeros without ``jac``)."""
        (x,) = x_or_z
        context = next(iter(c or ()), None)
        if not jac:
            y = self.bijection.inverse(x, context=context) if rev else self.bijection(x, context=context)
            return (y,), x.new_zeros(x.shape[0])
        call = self.bijection.inverse_and_logdet if rev else self.bijection.forward_and_logdet
        y, logdet = call(x, context=context)
        return (y,), logdet

    def output_dims(self, input_dims: list[Shape]) -> list[Shape]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the shape of the output, in a list."""
        return [self.output_shape]


class FreiaAttention(FreiaModule):
    """Invertible attention as a FrEIA module: ``inn.append(FreiaAttention, heads=2)``.

    Args:
        dims_in: Shape ``(C, *spatial)`` of the input, in a list, as FrEIA passes it.
        dims_c: Shape of the condition in a list; ``(K,)`` makes attention given a vector, ``(K, M)`` given tokens.
        view: Shape vectors are viewed as; ``None`` if inputs are not vectors.
        **arguments: See :class:`~invertible_attention.InvertibleAttention`.
    """

    def __init__(
        self,
        dims_in: Iterable[Shape],
        dims_c: Iterable[Shape] | None = None,
        *,
        view: Sequence[int] | None = None,
        **arguments: Any,
    ) -> None:
        conditions = list(dims_c or ())
        if conditions:
            arguments = {"context_channels": conditions[0][0]} | arguments
            arguments = {"context_kind": ("vector", "tokens")[len(conditions[0]) - 1]} | arguments

        def make(shape: Shape) -> Bijection:
            return InvertibleAttention(shape[0], **arguments)

        super().__init__(dims_in, conditions, bijection=make, view=view)


def to_freia(bijection: Bijection, shape: Sequence[int], **arguments: Any) -> FreiaModule:
    """Return a bijection as a FrEIA module for inputs of one shape.

    Inside ``SequenceINN.append`` and ``GraphINN`` nodes, which build their modules themselves, name the class
    instead: ``inn.append(FreiaModule, bijection=bijection)``.

    Args:
        bijection: Such as :class:`~invertible_attention.InvertibleAttention`.
        shape: Shape of the input without the batch axis.
        **arguments: See :class:`FreiaModule`.

    Example:
        >>> import torch, FrEIA.framework as Ff, invertible_attention as ia
        >>> from invertible_attention.interop.freia import FreiaAttention
        >>> inn = Ff.SequenceINN(3, 4, 4)
        >>> inn.append(FreiaAttention, heads=3)
        >>> z, logdet = inn(torch.randn(2, 3, 4, 4))
        >>> z.shape, logdet.shape
        (torch.Size([2, 3, 4, 4]), torch.Size([2]))
    """
    return FreiaModule([tuple(shape)], bijection=bijection, **arguments)


def from_freia(module: InvertibleModule, uses_context: bool | None = None) -> Foreign:
    """Return a FrEIA module, ``SequenceINN`` or ``GraphINN`` with one input and one output as a bijection.

    Args:
        module: The module. With a condition it receives the context.
        uses_context: Whether it has a condition; otherwise it is given none.
    """
    return Foreign(_call, bool(module.dims_c) if uses_context is None else uses_context, module=module)


def _call(module: InvertibleModule, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Any]:
    # Not every module of the library takes a condition.
    condition = {} if context is None else {"c": [context]}
    output, logdet = module([x], rev=inverse, jac=True, **condition)
    if not isinstance(output, Tensor):
        (output,) = output
    return output, logdet
