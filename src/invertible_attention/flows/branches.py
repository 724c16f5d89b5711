"""Residual branches that are contractions by construction: convolutional and fully connected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from invertible_attention._mask import valid_values
from invertible_attention.bijection import refuse_unused
from invertible_attention.flows.activations import make_activation
from invertible_attention.lipschitz.parametrize import constrain
from invertible_attention.lipschitz.together import constrained_weight

__all__ = ["LipschitzBranch", "LipschitzConvBranch", "LipschitzLinearBranch"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LipschitzBranch(nn.Module):
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
        """Upper bound of the Lipschitz constant, the product of the layers' bounds."""
        # Rounded down, the product would be below what layers of rank one attain.
        rounding = torch.finfo(torch.get_default_dtype()).eps
        return torch.tensor(self.coefficient ** len(self.layers) * (1 + rounding))

    def bind(self) -> BoundBranch:
        """Compute the constrained weights once; return the branch as a function of ``x``."""
        return BoundBranch(self)

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
        return self.bind()(x, context, mask)


class LipschitzConvBranch(LipschitzBranch):
    r"""The branch of i-ResNet: activation, 3×3, activation, 1×1, activation, 3×3, zero padded.

    With a mask the image ends where it is no longer valid: a smaller image inside a larger one has the result it
    has alone. Setting values to zero is 1-Lipschitz, so the bound stays.

    Args:
        channels: Number of channels of the input.
        hidden_channels: Number of channels in between.
        spatial: Spatial size of the input, 1 to 3 axes; the norms of the convolutions depend on it.
        coefficient: Upper bound of each convolution's norm. With three the branch's constant is its cube.
        activation: ``"elu"`` (i-ResNet) or ``"lipswish"`` (Residual Flow).
        kernel_sizes: Kernel size of each convolution, odd.
        preactivation: Whether an activation comes first. i-ResNet leaves it out in the first block, whose
            input is the image.

    Raises:
        ValueError: If a size does not make sense.

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

    def bind(self) -> BoundBranch:
        """Compute the constrained weights once; return the branch as a function of ``x``."""
        return _FlatBoundBranch(self)


class BoundBranch:
    """A branch whose constrained weights are computed.

    Args:
        branch: The branch.

    Attributes:
        constrained: Its weights.
    """

    def __init__(self, branch: LipschitzBranch) -> None:
        self.branch = branch
        self.constrained = tuple(_working(constrained_weight(layer)) for layer in branch.layers)
        self._affine = [
            _bind_affine(layer, weight) for layer, weight in zip(branch.layers, self.constrained, strict=True)
        ]

    def __call__(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``g(x)``; see :meth:`LipschitzBranch.forward`."""
        refuse_unused(self.branch, context=context, mask=mask)
        padding = None if mask is None else ~valid_values(mask, x)
        activations = iter(self.branch.activations)
        x = _working(x if padding is None else x.masked_fill(padding, 0.0))
        for i, layer in enumerate(self._affine):
            if i > 0 or self.branch.preactivation:
                x = next(activations)(x)
            x = layer(x)
            # As at the border of the image: what is beyond is zero at every layer.
            x = x if padding is None else x.masked_fill(padding, 0.0)
        return x


class _FlatBoundBranch(BoundBranch):
    """A branch of vectors, applied to whole samples."""

    branch: LipschitzLinearBranch

    def __call__(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if x[0].numel() != self.branch.dim:
            raise ValueError(f"expected samples of {self.branch.dim} values, got shape {tuple(x.shape)}")
        return super().__call__(x.flatten(1), context, mask).reshape(x.shape)


def _working(tensor: Tensor) -> Tensor:
    """Return the tensor in ``float32`` or better, which branches compute in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _widths(outer: int, hidden: int, layers: int) -> list[tuple[int, int]]:
    if outer < 1 or hidden < 1:
        raise ValueError(f"widths must be at least 1, got {outer} and {hidden}")
    sizes = [outer, *[hidden] * (layers - 1), outer]
    return list(pairwise(sizes))


def _bind_affine(layer: nn.Module, weight: Tensor) -> Callable[[Tensor], Tensor]:
    bias = _working(cast(Tensor, layer.bias))
    if isinstance(layer, nn.Linear):
        return lambda x: F.linear(x, weight, bias)
    assert isinstance(layer, _CONVOLUTIONS)
    return lambda x: layer._conv_forward(x, weight, bias)
