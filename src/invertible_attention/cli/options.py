"""Options: those that commands share, and those that are the fields of settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from cyclopts import Group, Parameter, Token, convert
from cyclopts.validators import LimitedChoice, Number
from cyclopts.validators import Path as PathIs

from ..experiments.errors import UsageError
from ..experiments.settings import Check, Settings, kind_of

if TYPE_CHECKING:
    from ..experiments.study import Workers
    from ..experiments.training import Parallel

__all__ = [
    "DataDir",
    "Device",
    "Job",
    "Options",
    "Output",
    "Overwrite",
    "Quick",
    "Resume",
    "Seed",
    "Spread",
    "Work",
    "flag",
    "many",
    "number",
    "read",
]


def read(kind: Any, tokens: Sequence[Token]) -> Any:
    """Read ``a b,c`` as three values where several are meant, and refuse to round fractions to whole numbers."""
    if get_origin(kind) is tuple:
        tokens = [token.evolve(value=item) for token in tokens for item in token.value.split(",") if item]
    for token in tokens:
        if int in (kind, *get_args(kind)) and "." in token.value:
            raise ValueError(f"{token.value} is not a whole number.")
    return convert(kind, tokens)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def flag(help: str, *names: str, **more: Any) -> Parameter:
    """Return an option that is given or not."""
    return Parameter(names or None, help=help, negative=(), show_default=False, **more)


def number(help: str, least: int = 1, **more: Any) -> Parameter:
    """Return an option that is a number of things."""
    return Parameter(help=help, converter=read, validator=Number(gte=least), **more)


def many(help: str, *names: str, **more: Any) -> Parameter:
    """Return an option with several values: ``--seeds 0 1 2`` or ``--seeds 0,1,2``."""
    return Parameter(names or None, help=help, **SEVERAL | more)


SEVERAL: dict[str, Any] = {
    "consume_multiple": True,
    "negative": (),
    "converter": read,
    "show_default": _text,
}
ONE = Group("Existing run", show=False, validator=LimitedChoice())
Output = Annotated[
    Path, Parameter(("--output", "-o"), help="Folder for results; created if it does not exist.")
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1, mps, …")]
Seed = Annotated[int, number("Random seed.", 0)]
Quick = Annotated[bool, flag("A small but real run: at most three minutes on a laptop.")]
Resume = Annotated[bool, flag("Continue the run in the output folder.", group=("Options", ONE))]
Overwrite = Annotated[
    bool, flag("Delete the run in the output folder and start again.", group=("Options", ONE))
]
DataDir = Annotated[
    Path | None,
    Parameter(
        help="Local data (parquet files or a folder of images) instead of the Hugging Face hub.",
        validator=PathIs(exists=True, file_okay=False),
    ),
]


class Options:
    """The fields of settings as options, ``None`` where one is not given.

    A subclass names its settings, and the fields that are no options:
    ``class Given(Options, of=Configuration, without=("seed",))``.

    Args:
        of: the settings.
        without: fields that are no options.
        only: the fields that are, instead.
        defaults: values for where an option is not given, instead of ``None``.
        otherwise: other defaults and when they hold, for the help: ``{"without --data": {"epochs": 40}}``.
    """

    def __init_subclass__(
        cls,
        *,
        of: type[Settings],
        without: Collection[str] = (),
        only: Collection[str] | None = None,
        defaults: Mapping[str, Any] | None = None,
        otherwise: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        cls.__annotations__ = {}
        for declared in fields(of):
            name, metadata = declared.name, declared.metadata
            if name in without or (only is not None and name not in only):
                continue
            kind, value = kind_of(of)[name], (defaults or {}).get(name)
            shown = _defaults(name, value or metadata["shown"] or declared.default, otherwise or {})
            about: dict[str, Any] = {
                "help": metadata["help"],
                "show_default": shown,
                "validator": _validator(metadata["check"]),
                "negative": (),
            }
            if int in (kind, *get_args(kind)):
                about["converter"] = read
            if get_origin(kind) is tuple and get_args(kind)[1:] == (...,):
                about = SEVERAL | about
            cls.__annotations__[name] = Annotated[kind | None, Parameter(**about | metadata["option"])]
            setattr(cls, name, value)
        Parameter(name="*")(dataclass(frozen=True)(cls))

    def given(self) -> dict[str, Any]:
        """Return what was given."""
        return {name: value for name, value in vars(self).items() if value is not None}


def _validator(check: Check | None) -> Any:
    def validate(_: Any, value: Any) -> None:
        if value is not None and check is not None and not check.holds(value):
            raise ValueError(f"It must be {check.text}.")

    return validate


def _defaults(name: str, default: Any, otherwise: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the default in words, and those that hold otherwise."""
    varied = any(name in values for values in otherwise.values())
    texts = [] if default is None or (default is False and not varied) else [_text(default)]
    first = default
    for when, values in otherwise.items():
        if name in values and not values[name] == first == default:
            default = values[name]
            texts.append(f"{when}: {_text(default)}")
    return "; ".join(texts) or False


@Parameter(name="*")
@dataclass(frozen=True)
class Spread:
    """How training is spread over devices."""

    devices: Annotated[int, number("Devices (on a CPU, processes) per machine.")] = 1
    nodes: Annotated[int, number("Machines.")] = 1
    strategy: Annotated[str, Parameter(help="Lightning strategy: auto, ddp, …")] = "auto"

    def parallel(self, *, batch_size: int, precision: str) -> Parallel:
        """Return the devices and the precision of a training.

        Raises:
            UsageError: when the devices do not share a batch evenly.
        """
        from ..experiments.training import Parallel

        spread = Parallel(self.devices, self.nodes, self.strategy, precision)
        if batch_size % spread.processes:
            raise UsageError(
                f"--batch-size {batch_size} cannot be shared evenly by {spread.processes} devices"
            )
        return spread


@Parameter(name="*")
@dataclass(frozen=True)
class Work:
    """Where the cells of a study are computed."""

    workers: Annotated[
        int | None,
        number(
            "Processes at once, with one thread each if there are several.",
            show_default="1; of a cluster, all",
        ),
    ] = None
    cluster: Annotated[
        str | None,
        Parameter(
            help="Dask or Ray cluster, dask://HOST:PORT or ray://HOST:PORT, whose workers share the output folder."
        ),
    ] = None

    def pool(self) -> Workers:
        """Return the workers of a study."""
        from ..experiments.study import Workers

        return Workers(self.workers, self.cluster)


@Parameter(name="*")
@dataclass(frozen=True)
class Job(Work):
    """What commands that train many networks have in common, besides settings."""

    data_dir: DataDir = None
    device: Device = "auto"
    resume: Resume = False
    overwrite: Overwrite = False

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of what runs it."""
        return {
            "data_dir": self.data_dir,
            "device": self.device,
            "workers": self.pool(),
            "resume": self.resume,
            "overwrite": self.overwrite,
        }
