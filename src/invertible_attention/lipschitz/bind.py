"""Binding: compute constrained weights once, and use them for many evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invertible_attention._precision import raised
from invertible_attention.lipschitz.convolution import PLAIN, convolution_norm_upper_bound, norm_upper_bounds
from invertible_attention.lipschitz.gram import working_dtype
from invertible_attention.lipschitz.norms import spectral_norm_upper_bound
from invertible_attention.lipschitz.parametrize import SpectralNormConstraint, limit_norm
from invertible_attention.lipschitz.symbols import Symbols

__all__ = ["Bindable", "bind", "bind_together", "is_bound", "original", "replicate"]

Module = TypeVar("Module", bound=nn.Module)

_SETTINGS = {
    convolution_norm_upper_bound: {"input_size", "geometry", "grid_size", "iterations"},
    spectral_norm_upper_bound: {"iterations"},
}


class Bindable(nn.Module):
    """A module that computes something besides parametrized weights from its weights alone."""

    def bind(self: Module) -> Module:
        """Compute the constrained weights once; return the module around them, see :func:`bind`."""
        return bind(self)

    def prepare(self) -> None:
        """Compute what depends on the weights alone, and keep it; called once, on what :func:`bind` returns."""


class _Constrained(NamedTuple):
    """A parametrized tensor, and where its value belongs."""

    place: dict[str, Tensor | None]
    name: str
    parametrizations: Any


def bind(module: Module) -> Module:
    """Return a module that computes what ``module`` does now, with every constraint evaluated, and only once.

    It has the structure, the hooks and the tensors of ``module`` at this moment, in ``float32`` or better, and is
    independent: other threads, :func:`torch.func.functional_call` and :func:`torch.nn.utils.parametrize.cached` do not
    reach it, and it reaches none of them. Tensors are shared, not copied, and gradients arrive at the parameters
    of ``module``. It is made for one solve or one pass through a flow, and discarded: weights that change later
    are not seen.

    A module that is bound already is returned as it is, and so is any under compilation, where the compiler sees to
    it that nothing is computed twice.
    """
    return bind_together([module])[0]


def bind_together(modules: Sequence[Module]) -> list[Module]:
    """Bind several modules; layers that differ in nothing but their weights are constrained in one computation."""
    if torch.compiler.is_compiling():
        return list(modules)
    replicas: dict[int, nn.Module] = {}
    constrained: list[_Constrained] = []
    bound = [_replicate(module, replicas, constrained) for module in modules]
    _constrain(constrained)
    for replica in replicas.values():
        if isinstance(replica, Bindable):
            replica.prepare()
    return cast(list[Module], bound)


def is_bound(module: nn.Module) -> bool:
    """Whether the module is one that :func:`bind` returned, or a part of it."""
    return "_bound" in vars(module)


def original(module: Module) -> Module:
    """Return the module that a bound one stands for, or the module itself."""
    return vars(module).get("_bound", module)


def _replicate(
    module: nn.Module, replicas: dict[int, nn.Module], constrained: list[_Constrained]
) -> nn.Module:
    """Return a shallow copy of a tree of modules, shared parts once, with the parametrized tensors left to compute."""
    if is_bound(module) or isinstance(module, torch.jit.ScriptModule):
        return module
    if id(module) in replicas:
        return replicas[id(module)]
    children = dict(module._modules)
    parametrized = children.pop("parametrizations") if parametrize.is_parametrized(module) else None
    children = {name: child and _replicate(child, replicas, constrained) for name, child in children.items()}
    replica = replicas[id(module)] = replicate(module, children=children)
    parameters, buffers = (
        {name: None if tensor is None else raised(tensor) for name, tensor in tensors.items()}
        for tensors in (module._parameters, module._buffers)
    )
    for name, parametrizations in cast(Any, parametrized or nn.ModuleDict()).items():
        constrained.append(_Constrained(parameters, name, parametrizations))
    vars(replica).update(_bound=module, _parameters=parameters, _buffers=buffers)
    return replica


def replicate(module: nn.Module, *, children: Mapping[str, nn.Module | None]) -> nn.Module:
    """Return a shallow copy of a module with other children, and without parametrizations."""
    replica = object.__new__(parametrize.type_before_parametrizations(module))
    vars(replica).update(vars(module) | {"_modules": dict(children)})
    return replica


def _constrain(constrained: Sequence[_Constrained]) -> None:
    """Compute the constrained tensors: those of known norms together, the others one by one."""
    kinds: dict[Any, list[_Constrained]] = {}
    for member in constrained:
        kind = _kind(member.parametrizations)
        if kind is None:
            # Not through the attribute of the layer, which parametrize.cached() would keep, or take from elsewhere.
            member.place[member.name] = raised(member.parametrizations())
        else:
            kinds.setdefault(kind, []).append(member)
    stacks = [_Stack.of(members) for members in kinds.values()]
    for iterations in {stack.iterations for stack in stacks}:
        together = [stack for stack in stacks if stack.iterations == iterations]
        bounds = norm_upper_bounds([stack.operator() for stack in together], iterations=iterations)
        for stack, bound in zip(together, bounds, strict=True):
            stack.place(bound)


def _kind(parametrizations: Any) -> object:
    """Return what a tensor's constraint depends on besides the tensor, ``None`` where that is not known."""
    (first, *others) = parametrizations
    norm = getattr(first, "norm", None)
    hooked = parametrizations._forward_hooks or first._forward_hooks or first._forward_pre_hooks
    if others or hooked or type(first) is not SpectralNormConstraint or not isinstance(norm, partial):
        return None
    # Others than those of constrain() are called as they are.
    if norm.args or set(norm.keywords) != _SETTINGS.get(norm.func):
        return None
    original = parametrizations.original
    # A kernel and its transpose have the same norm.
    out, into, *kernel = original.shape
    shape = (max(out, into), min(out, into), *kernel) if _transposes(norm) else original.shape
    settings = tuple(sorted(norm.keywords.items()))
    return norm.func, settings, first.coefficient, shape, original.dtype, original.device


def _transposes(norm: Any) -> bool:
    return norm.keywords.get("geometry", PLAIN).groups == 1


class _Stack(NamedTuple):
    """Tensors that share their shape and constraint, those that are transposed last."""

    members: Sequence[_Constrained]
    transposed: int
    weights: Tensor
    coefficient: float
    settings: dict[str, Any]

    @staticmethod
    def of(members: Sequence[_Constrained]) -> _Stack:
        bound = members[0].parametrizations[0]
        groups: tuple[list[_Constrained], list[_Constrained]] = ([], [])
        for member in members:
            rows, columns, *_ = member.parametrizations.original.shape
            groups[_transposes(bound.norm) and rows < columns].append(member)
        ordered, transposed = [*groups[0], *groups[1]], len(groups[1])
        upright = [member.parametrizations.original for member in groups[0]]
        turned = [member.parametrizations.original for member in groups[1]]
        if transposed > 1:
            parts = [torch.stack(upright)] if upright else []
            weights = torch.cat([*parts, torch.stack(turned).transpose(1, 2)])
        else:
            weights = torch.stack([*upright, *(tensor.transpose(0, 1) for tensor in turned)])
        return _Stack(ordered, transposed, weights, bound.coefficient, dict(bound.norm.keywords))

    @property
    def iterations(self) -> int:
        return self.settings["iterations"]

    def operator(self) -> Tensor | Symbols:
        """Return what the norms are of."""
        geometry = self.settings.get("geometry", PLAIN)
        if math.prod(self.weights.shape[3:]) == 1 and geometry.groups == 1:
            return self.weights.flatten(2).to(working_dtype(self.weights))
        return Symbols.of(self.weights, self.settings["input_size"], geometry, self.settings["grid_size"])

    def place(self, norms: Tensor) -> None:
        """Put the constrained tensors where they belong."""
        values = limit_norm(self.weights, norms, self.coefficient)
        count = len(values) - self.transposed
        if self.transposed > 1:
            upright, turned = values.split([count, self.transposed])
            found = [*upright.unbind(), *turned.transpose(1, 2).unbind()]
        else:
            found = [v if i < count else v.transpose(0, 1) for i, v in enumerate(values.unbind())]
        for (place, name, _), value in zip(self.members, found, strict=True):
            place[name] = raised(value)
