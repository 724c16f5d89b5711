"""Lipschitz bound of a composition of layers: an upper bound, or infinity where a layer is unknown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invertible_attention._mapped import plain
from invertible_attention.bijection import Bijection
from invertible_attention.lipschitz.convolution import convolution_norm_upper_bound
from invertible_attention.lipschitz.geometry import CONVOLUTIONS, Geometry
from invertible_attention.lipschitz.known import class_of, doubt, examined, watch
from invertible_attention.lipschitz.norms import spectral_norm_upper_bound

__all__ = ["lipschitz_upper_bound", "number_or_tensor", "product", "register_lipschitz_bound"]

Layer = TypeVar("Layer", bound=nn.Module)
Bound = Callable[[Layer], float | Tensor]


def lipschitz_upper_bound(
    module: nn.Module, input_size: Sequence[int] | None = None, *, strict: bool = False
) -> Float[Tensor, ""]:
    r"""Bound the Euclidean Lipschitz constant of a module, as the product of its layers' bounds.

    Known are ``nn.Sequential``, ``nn.Linear``, ``nn.Conv1d/2d/3d``, the usual activations, reshaping layers,
    dropout in evaluation mode, what was registered with :func:`register_lipschitz_bound`, and every module with a
    method ``lipschitz_bound()``. For a :class:`~invertible_attention.Bijection` that method bounds
    :math:`f - \mathrm{id}`, so the module counts one more. Constrained layers
    (:func:`~invertible_attention.lipschitz.constrain`) are bounded by the weight they really use.

    Everything else may compute anything, and is bounded by ``inf``: subclasses of these layers; layers, or parts of
    them, with hooks, their own ``forward``, methods replaced in their class, weights that are pruned, or
    parametrized in a way not known to depend on parameters alone; and layers that change their input in place.

    Args:
        module: A layer or a composition.
        input_size: Spatial size of the input, which makes the bounds of convolutions tighter; ``None`` bounds
            every size.
        strict: Whether to raise, with the reason, where the bound would be ``inf``.

    Returns:
        A scalar, differentiable in the weights; ``inf`` where nothing is promised.

    Raises:
        ValueError: If ``input_size`` does not fit the layers; with ``strict``, naming the first layer whose constant
            is not known.

    Example:
        >>> branch = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Sigmoid())
        >>> _ = nn.init.eye_(branch[0].weight)
        >>> lipschitz_upper_bound(branch)
        tensor(0.2507, grad_fn=<NanToNumBackward0>)
    """
    bound = number_or_tensor(module, input_size, strict=strict)
    return (
        bound.nan_to_num(nan=torch.inf, posinf=torch.inf) if isinstance(bound, Tensor) else _rounded_up(bound)
    )


def number_or_tensor(
    module: nn.Module, input_size: Sequence[int] | None = None, *, strict: bool = False
) -> float | Tensor:
    """Return :func:`lipschitz_upper_bound` as a number where it depends on no tensor."""
    try:
        if reason := doubt(module):
            raise _UnknownError(f"the Lipschitz constant of {type(module).__name__} is not known: {reason}")
        with examined(module):
            return _bound(module, _Values(None if input_size is None else tuple(input_size)))[0]
    except _UnknownError as error:
        if strict:
            raise ValueError(str(error)) from None
        return math.inf


@overload
def register_lipschitz_bound(cls: type[Layer]) -> Callable[[Bound[Layer]], Bound[Layer]]: ...
@overload
def register_lipschitz_bound(cls: type[Layer], bound: Bound[Layer] | float) -> None: ...
def register_lipschitz_bound(
    cls: type[Layer], bound: Bound[Layer] | float | None = None
) -> Callable[[Bound[Layer]], Bound[Layer]] | None:
    """Register the Lipschitz bound of a custom layer for :func:`lipschitz_upper_bound`.

    Certificates, and the error bounds of inverses, will rest on it: **the caller is responsible for it.** It
    must hold in the Euclidean norm between any two inputs, for every state of the layer, in the mode it is in
    (``layer.training``), and the layer must treat samples independently, be deterministic, and leave its input as it
    is. The bound is computed again whenever it is needed. It is used for this very class, not for subclasses, and
    only while the layer computes what the class says, see :func:`lipschitz_upper_bound`.

    Args:
        cls: The class of the layer.
        bound: A number, or a function of the layer that returns one or a scalar tensor, differentiable if training is
            to see it. Without it a decorator for such a function is returned.

    Raises:
        TypeError: If ``cls`` is not a class of modules, or ``bound`` is neither number nor function.
        ValueError: If the number is negative or NaN.

    Example:
        >>> class Scale(nn.Module):
        ...     def __init__(self, factor):
        ...         super().__init__()
        ...         self.factor = factor
        ...
        ...     def forward(self, x):
        ...         return self.factor * x
        >>> @register_lipschitz_bound(Scale)
        ... def scale_bound(layer):
        ...     return abs(layer.factor)
        >>> print(f"{lipschitz_upper_bound(nn.Sequential(Scale(-0.5), nn.Tanh())).item():.4f}")
        0.5000
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"expected a class of modules, got {cls!r}")
    if bound is None:

        def decorate(function: Bound[Layer]) -> Bound[Layer]:
            register_lipschitz_bound(cls, function)
            return function

        return decorate
    if not callable(bound):
        if not isinstance(bound, float | int):
            raise TypeError(f"expected a number or a function of the layer, got {bound!r}")
        _check(bound, cls)
    watch(cls)
    _registered[cls] = bound if callable(bound) else _always(float(bound))
    return None


class _UnknownError(ValueError):
    """The Lipschitz constant of a layer is not known, and why."""


@dataclass(frozen=True)
class _Values:
    """What is known of the values on their way through the layers.

    Attributes:
        size: Their spatial size; ``None`` where it is not known.
        shared: Whether they may lie in the memory of the input.
    """

    size: tuple[int, ...] | None
    shared: bool = True


_registered: dict[type[nn.Module], Callable[..., float | Tensor]] = {}


def _bound(module: nn.Module, values: _Values) -> tuple[float | Tensor, _Values]:
    """Return the bound of a module, and what is known of its output."""
    cls = class_of(module)
    if cls in _registered:
        return _check(_registered[cls](module), cls), _Values(None)
    # Not what a wrapper passes on from the module inside.
    own = getattr(module, "lipschitz_bound", None) if _has_own_bound(module) else None
    if callable(own):
        bound = _check(cast(Any, own()), cls)
        return (1 + bound if isinstance(module, Bijection) else bound), _Values(None)
    if cls is nn.Sequential:
        return _composition(module, values)
    if cls in (nn.Linear, *CONVOLUTIONS):
        return _affine(module, values)
    if cls not in _CONSTANTS:
        raise _UnknownError(f"the Lipschitz constant of {cls.__name__} is not known: {module}")
    constant = _CONSTANTS[cls](module)
    if getattr(module, "inplace", False) and values.shared:
        raise _UnknownError(f"{module} changes the input in place")
    if cls in _RESHAPING:
        return constant, replace(values, size=None)
    if cls in _PASSING or getattr(module, "inplace", False):
        return constant, values
    return constant, replace(values, shared=False)


def _has_own_bound(module: nn.Module) -> bool:
    return "lipschitz_bound" in vars(module) or hasattr(type(module), "lipschitz_bound")


def _composition(layers: Any, values: _Values) -> tuple[float | Tensor, _Values]:
    bound: float | Tensor = 1.0
    for layer in layers:
        factor, values = _bound(layer, values)
        bound = product(bound, factor)
    return bound, values


def product(a: float | Tensor, b: float | Tensor) -> float | Tensor:
    """Return the product of two bounds, rounded up."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        a, b = (factor if isinstance(factor, Tensor) else _rounded_up(factor) for factor in (a, b))
    bound = a * b
    eps = torch.finfo(bound.dtype if isinstance(bound, Tensor) else torch.float64).eps
    return bound * (1 + eps)


def _affine(module: Any, values: _Values) -> tuple[float | Tensor, _Values]:
    weight = module.weight
    # Other kinds of tensors, such as quantized ones, have their own products.
    if type(weight) not in (Tensor, nn.Parameter) or weight.layout is not torch.strided:
        raise _UnknownError(f"the weight of {module} has an unknown tensor type: {type(weight).__name__}")
    if not weight.is_floating_point():
        raise _UnknownError(f"the weight of {module} is not real: {weight.dtype}")
    if isinstance(module, nn.Linear):
        if weight.ndim != 2:
            raise _UnknownError(f"the weight of {module} must be a matrix, got shape {tuple(weight.shape)}")
        return spectral_norm_upper_bound(weight), _Values(None, shared=False)
    try:
        geometry = Geometry.of(module)
    except ValueError as error:
        raise _UnknownError(str(error)) from None
    bound = convolution_norm_upper_bound(weight, values.size, geometry=geometry)
    size = None if values.size is None else geometry.output_size(values.size, module.kernel_size)
    return bound, _Values(size, shared=False)


def _check(bound: float | Tensor, cls: type[nn.Module]) -> float | Tensor:
    """Return a bound that a class gives.

    Raises:
        ValueError: If it is negative, no scalar, or NaN as a number.
    """
    if bound.ndim or _least(bound) < 0 if isinstance(bound, Tensor) else not bound >= 0:
        raise ValueError(f"the Lipschitz bound of {cls.__name__} must be a scalar of at least 0, got {bound}")
    return bound


def _least(bound: Tensor) -> float:
    values = plain(bound)
    return (values.amin() if values.ndim else values).item()


def _rounded_up(value: float) -> Tensor:
    tensor = torch.tensor(value)
    return tensor if tensor.item() >= value else torch.nextafter(tensor, torch.tensor(torch.inf))


def _number(module: nn.Module, name: str) -> float:
    """Return an attribute of a module that a bound depends on."""
    value = getattr(module, name)
    if not isinstance(value, float | int) or not math.isfinite(value):
        raise _UnknownError(f"{name} of {module} must be a finite number, got {value!r}")
    return float(value)


def _slope(name: str) -> Callable[[nn.Module], float]:
    """Return the constant of an activation with slope 1 on one side and at most ``name`` on the other."""
    return lambda module: max(1.0, abs(_number(module, name)))


def _always(constant: float) -> Callable[[nn.Module], float]:
    return lambda module: constant


def _celu(module: nn.Module) -> float:
    if _number(module, "alpha") <= 0:
        raise _UnknownError(f"CELU grows exponentially where alpha is not positive: {module}")
    return 1.0


def _softplus(module: nn.Module) -> float:
    # PyTorch switches to the identity at the threshold, with a jump of log(1 + exp(-threshold)) / beta
    if _number(module, "threshold") < 20 or _number(module, "beta") == 0:
        raise _UnknownError(f"Softplus with threshold {module.threshold} < 20 jumps where it becomes linear")
    return 1.0


def _prelu(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.abs().amax().clamp_min(1.0)


def _gelu(module: nn.Module) -> float:
    return 1.1289042 if module.approximate == "none" else 1.1289931


def _dropout(module: nn.Module) -> float:
    if module.training:
        raise _UnknownError(f"{type(module).__name__} is random in training mode: call eval() first")
    return 1.0


def _flatten(module: nn.Module) -> float:
    return _apart(module, _number(module, "start_dim"))


def _unflatten(module: nn.Module) -> float:
    return 1.0 if module.dim == -1 else _apart(module, _number(module, "dim"))


def _apart(module: nn.Module, axis: float) -> float:
    if axis < 1:
        raise _UnknownError(f"{module} may mix samples")
    return 1.0


_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_RESHAPING = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle)
_PASSING = (nn.Identity, *_DROPOUT)
# Suprema of |derivative|, rounded up.
_CONSTANTS: dict[type[nn.Module], Callable[[Any], float | Tensor]] = {
    **dict.fromkeys((nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Softsign), _always(1.0)),
    **dict.fromkeys((nn.Tanhshrink, nn.LogSigmoid, nn.Softshrink), _always(1.0)),
    **dict.fromkeys((nn.PixelShuffle, nn.PixelUnshuffle), _always(1.0)),
    **dict.fromkeys(_DROPOUT, _dropout),
    nn.CELU: _celu,
    nn.ELU: _slope("alpha"),
    nn.Flatten: _flatten,
    nn.GELU: _gelu,
    nn.Hardsigmoid: _always(0.1666667),
    nn.Hardswish: _always(1.5),
    nn.LeakyReLU: _slope("negative_slope"),
    nn.Mish: _always(1.0884982),
    nn.PReLU: _prelu,
    nn.SELU: _always(1.7580994),
    nn.SiLU: _always(1.0998394),
    nn.Sigmoid: _always(0.25),
    nn.Softplus: _softplus,
    nn.Unflatten: _unflatten,
}

for _cls in (nn.Sequential, nn.Linear, *CONVOLUTIONS, *_CONSTANTS):
    watch(_cls)
