"""Settings, declared once: a field with its default, help and check is the option, the JSON and the documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from .errors import UsageError

__all__ = ["POSITIVE", "Check", "Settings", "at_least", "between", "kind_of", "setting"]


@dataclass(frozen=True)
class Check:
    """What a value must be, in words and as a predicate."""

    text: str
    holds: Callable[[Any], bool]


POSITIVE = Check("positive", lambda value: value > 0)


def at_least(least: float) -> Check:
    """Return the check of a lower limit."""
    return Check(f"at least {least}", lambda value: value >= least)


def between(low: float, high: float) -> Check:
    """Return the check of an open interval."""
    return Check(f"between {low} and {high}", lambda value: low < value < high)


def setting(
    default: Any, help: str, check: Check | None = None, *, shown: str | None = None, **option: Any
) -> Any:
    """Declare a field of :class:`Settings`.

    Args:
        default: its default.
        help: what it is, as ``--help`` and the documentation say it.
        check: what its value must be in addition to its type; ``None`` passes.
        shown: the default in words, where the value alone does not say it.
        **option: further arguments of the command line's ``Parameter``, such as ``name``.
    """
    return field(default=default, metadata={"help": help, "check": check, "shown": shown, "option": option})


@cache
def kind_of(settings: type[Settings]) -> dict[str, Any]:
    """Return the type of every setting."""
    return get_type_hints(settings)


@dataclass(frozen=True)
class Settings:
    """Base of what decides an experiment's numbers: a frozen dataclass whose fields are :func:`setting`.

    Values are read as the field's type (lists as tuples, whole numbers as floats) and checked.

    Raises:
        UsageError: for a value that is out of range or of another type, naming the setting.
    """

    def __post_init__(self) -> None:
        for declared in fields(self):
            name, check = declared.name, declared.metadata["check"]
            value = _read(name, kind_of(type(self))[name], getattr(self, name))
            if check is not None and value is not None and not check.holds(value):
                raise UsageError(f"{name} must be {check.text}, got {value}")
            object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings that :meth:`to_json` gave; those that are absent have their defaults.

        Raises:
            UsageError: for a name that is no setting, and as the class does.
        """
        if unknown := sorted(set(values) - {declared.name for declared in fields(cls)}):
            raise UsageError(f"there is no setting {', '.join(unknown)}")
        return cls(**values)


def _read(name: str, kind: Any, value: Any) -> Any:
    """Return a value as the type of its field."""
    choices = get_args(kind)
    if NoneType in choices:
        return None if value is None else _read(name, choices[0], value)
    if get_origin(kind) is Literal:
        if value not in choices:
            raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        return choices[choices.index(value)]
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        kinds = choices[:1] * len(value) if choices[1:] == (...,) else choices
        if len(kinds) == len(value):
            return tuple(_read(name, item, each) for item, each in zip(kinds, value, strict=True))
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind:
        return value
    raise UsageError(f"{name} must be {_WORDS.get(kind, f'{len(choices)} values')}, got {value!r}")


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
