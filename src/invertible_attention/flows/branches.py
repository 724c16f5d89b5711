"""Residual branches that are contractions by construction: convolutional and fully connected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from invertible_attention._mask import valid_values
from invertible_attention._precision import raised
from invertible_attention.bijection import refuse_unused
from invertible_attention.flows.activations import is_pushed, make_activation, push
from invertible_attention.lipschitz.bind import Bindable, original
from invertible_attention.lipschitz.known import class_of, doubt, examined
from invertible_attention.lipschitz.module_bound import lipschitz_upper_bound, number_or_tensor
from invertible_attention.lipschitz.parametrize import constrain, is_constrained

__all__ = ["LipschitzBranch", "LipschitzConvBranch", "LipschitzLinearBranch"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LipschitzBranch(Bindable):
    r"""Affine layers with a norm of at most ``coefficient`` each, and 1-Lipschitz activations between.

    Its Lipschitz constant is at most :math:`\text{coefficient}^n` with :math:`n` affine layers.

    Args:
        layers: The affine layers, unconstrained.
        coefficient: Upper bound of each layer's norm, below 1.
        activation: ``"elu"`` or ``"lipswish"``.
        input_size: Spatial size of the input, for convolutions.
        preactivation: Whether an activation comes first.

    Raises:
        ValueError: If ``coefficient`` does not lie between 0 and 1.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        *,
        coefficient: float,
        activation: str,
        input_size: Sequence[int] | None,
        preactivation: bool,
    ) -> None:
        super().__init__()
        if not 0 < coefficient < 1:
            raise ValueError(f"coefficient must lie between 0 and 1, got {coefficient}")
        self.coefficient = coefficient
        self.preactivation = preactivation
        # A layer whose norm is below the coefficient is left as it is, so it keeps torch's initialization.
        self.layers = nn.ModuleList(constrain(layer, coefficient, input_size=input_size) for layer in layers)
        count = len(layers) if preactivation else len(layers) - 1
        self.activations = nn.ModuleList(make_activation(activation) for _ in range(count))

    def extra_repr(self) -> str:
        """Return the arguments that are not modules."""
        return f"coefficient={self.coefficient}, preactivation={self.preactivation}"

    def lipschitz_bound(self) -> Float[Tensor, ""]:
        """Upper bound of the Lipschitz constant, the product of the layers' bounds.

        ``inf`` where something is computed that is not known, see
        :func:`~invertible_attention.lipschitz.lipschitz_upper_bound`.
        """
        if doubt(self):
            return torch.tensor(torch.inf)
        if not all(is_constrained(original(layer), self.coefficient) for layer in self.layers):
            # Layers that were put in the place of those that were made here.
            return lipschitz_upper_bound(nn.Sequential(*self.layers, *self.activations))
        with examined(self):
            bound = math.prod(number_or_tensor(activation) for activation in self.activations)
        # Rounded down, the product would be below what layers of rank one attain.
        rounding = 1 + (1 + len(self.activations)) * torch.finfo(torch.get_default_dtype()).eps
        bound = self.coefficient ** len(self.layers) * rounding * bound
        return bound.nan_to_num(nan=torch.inf) if isinstance(bound, Tensor) else torch.tensor(bound)

    def check_input(self, x: Tensor) -> None:
        """Raise :class:`ValueError` for an input that the bound does not hold for."""

    def forward(
        self, x: Float[Tensor, "batch *event"], context: Tensor | None = None, mask: Tensor | None = None
    ) -> Float[Tensor, "batch *event"]:
        """Return ``g(x)``.

        Args:
            x: Where to evaluate.
            context: None: such a branch uses none.
            mask: True where ``x`` is valid, for branches that take one.

        Raises:
            ValueError: For a context, and for a mask that the branch does not take.
        """
        refuse_unused(self, context=context, mask=mask)
        self.check_input(x)
        padding = None if mask is None else ~valid_values(mask, x)
        return self.bind().evaluate(x, padding)

    def evaluate(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Return ``g(x)``, computed in ``float32`` or better, with zeros where ``padding`` is true."""
        return self._push(x, (), padding)[0]

    def pushforward(
        self,
        x: Float[Tensor, "batch *event"],
        tangents: Sequence[Float[Tensor, "batch *event"]],
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Float[Tensor, "batch *event"], list[Float[Tensor, "batch *event"]]] | None:
        """Return ``g(x)`` and the products of its Jacobian with the tangents, both differentiable.

        That takes no graph of a graph: an affine layer maps a tangent as it does a point, without its bias.

        Args:
            x: Where to evaluate; it requires a gradient.
            tangents: What to multiply.
            context: As in :meth:`forward`.
            mask: Likewise.

        Returns:
            ``None`` where a layer, an activation or a method was put in the place of those that were made here.
        """
        known = all(class_of(layer) in (nn.Linear, *_CONVOLUTIONS) for layer in self.layers)
        if not known or not all(map(is_pushed, self.activations)) or doubt(self, promises=("pushforward",)):
            return None
        refuse_unused(self, context=context, mask=mask)
        return self.bind()._push(x, tangents, None if mask is None else ~valid_values(mask, x))

    def _push(
        self, x: Tensor, tangents: Sequence[Tensor], padding: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        def visible(x: Tensor) -> Tensor:
            # As at the border of the image: what is beyond is zero at every layer.
            return x if padding is None else x.masked_fill(padding, 0.0)

        activations = iter(self.activations)
        x, pushed = raised(visible(x)), [visible(tangent) for tangent in tangents]
        for i, layer in enumerate(self.layers):
            if i > 0 or self.preactivation:
                x, pushed = push(next(activations), x, pushed)
            x = visible(_affine(layer, x))
            pushed = [visible(_linear(layer, v, None)) for v in pushed]
        return x, pushed


class LipschitzConvBranch(LipschitzBranch):
    r"""The branch of i-ResNet: activation, 3×3, activation, 1×1, activation, 3×3, zero padded.

    With a mask the image ends where it is no longer valid: a smaller image inside a larger one has the result it
    has alone. Setting values to zero is 1-Lipschitz, so the bound stays.

    Args:
        channels: Number of channels of the input.
        hidden_channels: Number of channels in between.
        spatial: Largest spatial size of the input, 1 to 3 axes; the norms of the convolutions depend on it.
        coefficient: Upper bound of each convolution's norm. With three the branch's constant is its cube.
        activation: ``"elu"`` (i-ResNet) or ``"lipswish"`` (Residual Flow).
        kernel_sizes: Kernel size of each convolution, odd.
        preactivation: Whether an activation comes first. i-ResNet leaves it out in the first block, whose
            input is the image.

    Raises:
        ValueError: If a size does not make sense; in a call, if the image is larger than ``spatial``.

    References:
        Behrmann et al. 2019, Invertible Residual Networks, Appendix; Chen et al. 2019, Appendix E.

    Examples:
        >>> import torch
        >>> branch = LipschitzConvBranch(12, 32, (16, 16), coefficient=0.9)
        >>> branch(torch.randn(2, 12, 16, 16)).shape
        torch.Size([2, 12, 16, 16])
        >>> round(branch.lipschitz_bound().item(), 3)
        0.729
    """

    uses_mask = True

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        spatial: Sequence[int],
        *,
        coefficient: float = 0.9,
        activation: str = "elu",
        kernel_sizes: Sequence[int] = (3, 1, 3),
        preactivation: bool = True,
    ) -> None:
        if not 1 <= len(spatial) <= 3:
            raise ValueError(f"spatial must have 1 to 3 axes, got {tuple(spatial)}")
        if any(size % 2 == 0 for size in kernel_sizes) or not kernel_sizes:
            raise ValueError(f"kernel_sizes must be odd, got {tuple(kernel_sizes)}")
        convolution = _CONVOLUTIONS[len(spatial) - 1]
        layers = [
            convolution(n_in, n_out, size, padding=size // 2)
            for size, (n_in, n_out) in zip(
                kernel_sizes, _widths(channels, hidden_channels, len(kernel_sizes)), strict=True
            )
        ]
        super().__init__(
            layers,
            coefficient=coefficient,
            activation=activation,
            input_size=spatial,
            preactivation=preactivation,
        )
        self.spatial = tuple(spatial)

    def check_input(self, x: Tensor) -> None:
        """Raise :class:`ValueError` for an image larger than the norms of the convolutions were bounded for."""
        size = tuple(x.shape[2:])
        if len(size) != len(self.spatial) or any(
            n > most for n, most in zip(size, self.spatial, strict=True)
        ):
            raise ValueError(f"expected images of at most {self.spatial}, got shape {tuple(x.shape)}")


class LipschitzLinearBranch(LipschitzBranch):
    """A fully connected branch for vectors or, over the flattened event, for small images.

    Args:
        dim: Dimension of a sample, the product of its axes.
        hidden: Width of the layers in between.
        depth: Number of affine layers.
        coefficient: Upper bound of each layer's norm.
        activation: ``"elu"`` or ``"lipswish"``.
        preactivation: Whether an activation comes first.

    Raises:
        ValueError: If a size does not make sense; in a call, if a sample has another dimension.

    Examples:
        >>> import torch
        >>> LipschitzLinearBranch(2, 64)(torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 128,
        *,
        depth: int = 3,
        coefficient: float = 0.97,
        activation: str = "lipswish",
        preactivation: bool = False,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        super().__init__(
            [nn.Linear(n_in, n_out) for n_in, n_out in _widths(dim, hidden, depth)],
            coefficient=coefficient,
            activation=activation,
            input_size=None,
            preactivation=preactivation,
        )
        self.dim = dim

    def _push(
        self, x: Tensor, tangents: Sequence[Tensor], padding: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        if x[0].numel() != self.dim:
            raise ValueError(f"expected samples of {self.dim} values, got shape {tuple(x.shape)}")
        value, pushed = super()._push(x.flatten(1), [v.flatten(1) for v in tangents], padding)
        return value.reshape(x.shape), [v.reshape(x.shape) for v in pushed]


def _widths(outer: int, hidden: int, layers: int) -> list[tuple[int, int]]:
    if outer < 1 or hidden < 1:
        raise ValueError(f"widths must be at least 1, got {outer} and {hidden}")
    sizes = [outer, *[hidden] * (layers - 1), outer]
    return list(pairwise(sizes))


def _affine(layer: nn.Module, x: Tensor) -> Tensor:
    weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
    # Under compilation a branch is not bound to weights of the precision it computes in.
    return layer(x) if raised(weight) is weight else _linear(layer, x, raised(bias))


def _linear(layer: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return what the layer makes of ``x`` with another bias."""
    weight = raised(cast(Tensor, layer.weight))
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    assert isinstance(layer, _CONVOLUTIONS)
    return layer._conv_forward(x, weight, bias)
