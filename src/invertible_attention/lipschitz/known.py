"""Whether a module computes what its class promises: subclasses, hooks and replaced methods void a certificate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, parametrize

from invertible_attention.lipschitz.bind import Bindable, bind, original
from invertible_attention.lipschitz.parametrize import SpectralNormConstraint, SpectralNormEstimate

__all__ = ["bound_function", "class_of", "doubt", "examined", "has_global_hooks", "has_hooks", "watch"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{kind}" for kind in _HOOKS)
_CALL = ("__call__", "_call_impl", "_wrapped_call_impl", "_slow_forward", "__getattr__", "__getattribute__")
_PROMISES = ("lipschitz_bound", "score_bounds")  # methods that speak of what the rest of the class computes
# A subclass may override these without changing what a call computes.
_HARMLESS = {
    "_abc_impl",
    "check_input",
    "extra_repr",
    "initialize",
    "inverse",
    "inverse_and_logdet",
    "solve_inverse",
}
_LIBRARY = "invertible_attention."
_PURE = (SpectralNormConstraint, parametrizations._WeightNorm, parametrizations._Orthogonal)
# Power iterations: in training mode each evaluation of the weight changes the next.
_PURE_IN_EVALUATION = (SpectralNormEstimate, parametrizations._SpectralNorm)
_MODULE_METHODS = frozenset(name for name, value in vars(nn.Module).items() if callable(value))

# Modules that a bound being computed has looked at, with all that is inside.
_examined: ContextVar[frozenset[int]] = ContextVar("_examined", default=frozenset())

# By class: what its methods were when it became known.
_written: dict[type[nn.Module], dict[str, Any]] = {}


def watch(cls: type[nn.Module]) -> None:
    """Note the methods of a class, so that :func:`doubt` notices when one is replaced later."""
    names = {name for base in _bases(cls) for name in vars(base) if not name.startswith("__")}
    methods = {name: getattr(cls, name, None) for name in (*names, *_CALL)}
    _written[cls] = {name: value for name, value in methods.items() if value is None or callable(value)}


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return the type of a module, without the subclass that :mod:`torch.nn.utils.parametrize` makes of it."""
    cls = type(module)
    if cls.__module__ != parametrize.__name__ or not parametrize.is_parametrized(module):
        return cls
    added = {name for name in vars(cls) if not name.startswith("__")}
    return cls.__bases__[0] if added <= _parametrizations(module).keys() else cls


def bound_function(branch: nn.Module) -> Callable[..., Tensor]:
    """Return the branch with its weights computed once, by its own ``bind()`` where that speaks of what it computes."""
    if isinstance(branch, Bindable) or not hasattr(type(branch), "bind"):
        return bind(branch)
    if not torch.compiler.is_compiling() and doubt(branch, parts=False, promises=("bind",)):
        return bind(branch)
    return cast(Any, branch).bind()


def doubt(module: nn.Module, *, parts: bool = True, promises: Iterable[str] = _PROMISES) -> str | None:
    """Return why a module may not compute what its class promises; ``None`` where it does.

    Reasons are: hooks of any kind; methods replaced in the instance or in the class; a subclass that overrides what a
    promise of its base class rests on; a parametrization that is not known to be a function of parameters alone.

    Args:
        module: The module.
        parts: Whether to look at all modules inside, too.
        promises: Names of the methods that are promises.
    """
    if promises is _PROMISES and id(original(module)) in _examined.get():
        return None
    if has_global_hooks():
        return "hooks for all modules are registered"
    groups: dict[type[nn.Module], list[nn.Module]] = {nn.Module: []}
    for part in _modules(original(module)) if parts else (original(module),):
        groups.setdefault(type(part), []).append(part)
    for cls, members in groups.items():
        methods = _methods(cls)
        for part in members:
            if reason := _altered(part, methods):
                return reason
        for known in (cls, cls.__bases__[0]):  # a parametrized module is of a subclass made for it
            if any(
                getattr(known, name, None) is not value for name, value in _written.get(known, {}).items()
            ):
                return f"a method of {known.__name__} was replaced"
        for promise in promises:
            if reason := hasattr(cls, promise) and _overridden(cls, promise):
                return reason
    return None


@contextmanager
def examined(module: nn.Module) -> Iterator[None]:
    """Within it :func:`doubt` does not look again at a module that it found nothing in, nor at its parts.

    For the computation of one bound, in which bounds of parts are computed that begin with the same question.
    """
    token = _examined.set(_examined.get().union(map(id, _modules(original(module)))))
    try:
        yield
    finally:
        _examined.reset(token)


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks of any kind are registered on a module."""
    return any(map(vars(module).__getitem__, _HOOKS))


def has_global_hooks() -> bool:
    """Whether hooks are registered for all modules."""
    return any(getattr(torch_module, kind) for kind in _GLOBAL_HOOKS)


def _modules(module: nn.Module) -> list[nn.Module]:
    # As module.modules(), which takes ten times as long.
    found = {id(module): module}
    rest = [module]
    while rest:
        for part in rest.pop()._modules.values():
            if part is not None and id(part := original(part)) not in found:
                found[id(part)] = part
                rest.append(part)
    return list(found.values())


def _methods(cls: type[nn.Module]) -> set[str]:
    """Return the names of what a class can call of its own."""
    own = {name for base in _bases(cls) for name, value in vars(base).items() if callable(value)}
    return (own | _MODULE_METHODS).difference(_PROMISES)


def _altered(module: nn.Module, methods: set[str]) -> str | None:
    """Return what changes the result of calling a module; ``None`` if nothing does."""
    state, name = vars(module), type(module).__name__
    if has_hooks(module):
        return f"{name} has hooks"
    if not methods.isdisjoint(state):
        return f"{name} has its own {min(methods & state.keys())}"
    if state.get("_compiled_call_impl") is not None and not _is_compiled_as_it_is(module):
        return f"{name} has its own call"
    if "parametrizations" in state["_modules"]:
        for attribute, chain in _parametrizations(module).items():
            for part in chain if type(chain) is parametrize.ParametrizationList else [chain]:
                if not _is_pure(part):
                    return f"{name}.{attribute} is parametrized by {type(part).__name__}"
    return None


def _is_compiled_as_it_is(module: nn.Module) -> bool:
    """Whether :meth:`torch.nn.Module.compile` was called, whose result is trusted."""
    return getattr(module._compiled_call_impl, "_torchdynamo_orig_callable", None) == module._call_impl


def _overridden(cls: type, promise: str) -> str | None:
    """Say what stands in place of what the method ``promise`` of a class was written for."""
    bases = _bases(cls)
    owner = next(base for base in bases if promise in vars(base))
    for base in bases:
        for name in ("forward", promise, *_CALL):
            value = vars(base).get(name)
            if value is not None and getattr(value, "__qualname__", None) not in (
                None,
                f"{base.__qualname__}.{name}",
            ):
                return f"{base.__name__}.{name} was replaced"
    for i, base in enumerate(bases[: bases.index(owner)]):
        if not base.__module__.startswith(_LIBRARY):
            above = {name for other in bases[i + 1 :] for name in vars(other) if not name.startswith("__")}
            if changed := ({*above, *_CALL} - _HARMLESS) & vars(base).keys():
                return f"{base.__name__} overrides {min(changed)} but not {promise}"
    return None


def _bases(cls: type) -> list[type]:
    """Return the class and its bases that are modules, without ``nn.Module`` itself."""
    return [base for base in cls.__mro__ if issubclass(base, nn.Module) and base is not nn.Module]


def _parametrizations(module: nn.Module) -> dict[str, Any]:
    found = module._modules.get("parametrizations")
    return dict(found.items()) if isinstance(found, nn.ModuleDict) else {}


def _is_pure(part: nn.Module) -> bool:
    """Whether a parametrization is known to be a function of parameters and nothing else."""
    if type(part) is SpectralNormConstraint:
        norm: Any = part.norm.func if isinstance(part.norm, partial) else part.norm
        return getattr(norm, "__module__", "").startswith(_LIBRARY)
    return type(part) in _PURE or (type(part) in _PURE_IN_EVALUATION and not part.training)


for _cls in (nn.Module, parametrize.ParametrizationList, *_PURE, *_PURE_IN_EVALUATION):
    watch(_cls)
