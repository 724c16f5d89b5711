"""How large is the Lipschitz constant of a composition of layers: an upper bound, never a guess."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invertible_attention.bijection import Bijection
from invertible_attention.lipschitz.convolution import convolution_norm_upper_bound
from invertible_attention.lipschitz.geometry import CONVOLUTIONS, Geometry
from invertible_attention.lipschitz.norms import spectral_norm_upper_bound

__all__ = ["lipschitz_upper_bound"]

Size = tuple[int, ...] | None


def lipschitz_upper_bound(module: nn.Module, input_size: Sequence[int] | None = None) -> Float[Tensor, ""]:
    r"""Bound the Euclidean Lipschitz constant of a module, as the product of its layers' bounds.

    Known are ``nn.Sequential``, ``nn.Linear``, ``nn.Conv1d/2d/3d``, the usual activations, reshaping layers,
    dropout in evaluation mode, and every module with a method ``lipschitz_bound()``. For a
    :class:`~invertible_attention.Bijection` that method bounds :math:`f - \mathrm{id}`, so the module counts
    one more. Constrained layers (:func:`~invertible_attention.lipschitz.constrain`) are bounded by the weight
    they really use.

    Args:
        module: A layer or a composition.
        input_size: Spatial size of the input, which makes the bounds of convolutions tighter; ``None`` bounds
            every size.

    Returns:
        A scalar, differentiable in the weights; ``inf`` where a layer promises nothing.

    Raises:
        ValueError: Naming the first layer whose constant is not known.

    Example:
        >>> branch = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Sigmoid())
        >>> _ = nn.init.eye_(branch[0].weight)
        >>> lipschitz_upper_bound(branch)
        tensor(0.2507, grad_fn=<MulBackward0>)
    """
    return _bound(module, None if input_size is None else tuple(input_size))[0]


def _bound(module: nn.Module, size: Size) -> tuple[Tensor, Size]:
    """Return the bound and the spatial size of the output, ``None`` once it is not known."""
    own = getattr(module, "lipschitz_bound", None)
    if callable(own):
        bound = torch.as_tensor(own())
        return (1 + bound if isinstance(module, Bijection) else bound), None
    if isinstance(module, nn.Sequential):
        return _composition(module, size)
    if isinstance(module, nn.Linear):
        return spectral_norm_upper_bound(module.weight), None
    if isinstance(module, CONVOLUTIONS):
        return _convolution(module, size)
    for kinds, constant in _CONSTANTS:
        if isinstance(module, kinds):
            value = constant(module)
            value = value if isinstance(value, Tensor) else _rounded_up(value)
            return value, None if isinstance(module, _RESHAPING) else size
    raise ValueError(f"the Lipschitz constant of {type(module).__name__} is not known: {module}")


def _composition(layers: nn.Sequential, size: Size) -> tuple[Tensor, Size]:
    bound = torch.ones(())
    for layer in layers:
        factor, size = _bound(layer, size)
        bound = bound * factor
        bound = bound * (1 + torch.finfo(bound.dtype).eps)  # the product may have been rounded down
    return bound, size


def _convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, size: Size) -> tuple[Tensor, Size]:
    geometry = Geometry.of(module)
    bound = convolution_norm_upper_bound(
        module.weight,
        size,
        padding=geometry.padding,
        dilation=geometry.dilation,
        groups=geometry.groups,
    )
    return bound, None if size is None else geometry.output_size(size)


def _rounded_up(value: float) -> Tensor:
    tensor = torch.tensor(value)
    return tensor if tensor.item() >= value else torch.nextafter(tensor, torch.tensor(torch.inf))


def _softplus(module: nn.Module) -> float:
    assert isinstance(module, nn.Softplus)
    # PyTorch switches to the identity at the threshold, with a jump of log(1 + exp(-threshold)) / beta
    if module.threshold < 20:
        raise ValueError(f"Softplus with threshold {module.threshold} < 20 jumps where it becomes linear")
    return 1.0


def _dropout(module: nn.Module) -> float:
    if module.training:
        raise ValueError(f"{type(module).__name__} is random in training mode: call eval() first")
    return 1.0


def _slope(name: str) -> Callable[[nn.Module], float]:
    """Return the constant of an activation with slope 1 on one side and at most ``name`` on the other."""
    return lambda module: max(1.0, abs(getattr(module, name)))


def _always(constant: float) -> Callable[[nn.Module], float]:
    return lambda module: constant


def _prelu(module: nn.Module) -> Tensor:
    assert isinstance(module, nn.PReLU)
    return module.weight.abs().amax().clamp_min(1.0)


def _gelu(module: nn.Module) -> float:
    assert isinstance(module, nn.GELU)
    return 1.1289042 if module.approximate == "none" else 1.1289931


_Kinds = tuple[type[nn.Module], ...]
_RESHAPING: _Kinds = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle)
# Suprema of |derivative|, rounded up.
_CONSTANTS: tuple[tuple[_Kinds, Callable[[nn.Module], float | Tensor]], ...] = (
    ((nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Softsign, nn.Tanhshrink), _always(1.0)),
    ((nn.LogSigmoid, nn.CELU, nn.Softshrink), _always(1.0)),
    ((nn.ELU,), _slope("alpha")),
    ((nn.LeakyReLU,), _slope("negative_slope")),
    ((nn.PReLU,), _prelu),
    ((nn.Softplus,), _softplus),
    ((nn.Sigmoid,), _always(0.25)),
    ((nn.Hardsigmoid,), _always(0.1666667)),
    ((nn.SiLU,), _always(1.0998394)),
    ((nn.GELU,), _gelu),
    ((nn.Mish,), _always(1.0884982)),
    ((nn.Hardswish,), _always(1.5)),
    ((nn.SELU,), _always(1.7580994)),
    ((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _dropout),
    (_RESHAPING, _always(1.0)),
)
