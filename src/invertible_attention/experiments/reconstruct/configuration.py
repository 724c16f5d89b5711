"""What a reconstruction run is made of: the settings that decide its numbers, and the cells they give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

__all__ = ["Cell", "Configuration", "Constraint", "Dataset", "Normalization", "Response", "SolverName"]


class Dataset(StrEnum):
    """Where images come from."""

    PHOTOS = "photos"
    CIFAR10 = "cifar10"
    SVHN = "svhn"
    CELEBA = "celeba"
    FOLDER = "folder"


class Response(StrEnum):
    """How pairs of tokens are scored (Table 1)."""

    GAUSSIAN = "gaussian"
    EMBEDDED_GAUSSIAN = "embedded_gaussian"
    DOT_PRODUCT = "dot_product"
    CONCATENATION = "concatenation"


class Constraint(StrEnum):
    """What limits the branch: our certificate, the paper's Section 2.4, or the authors' released code."""

    CERTIFIED = "certified"
    RELAXED = "relaxed"
    RELEASED = "released"


class Normalization(StrEnum):
    """What attention weights sum to one along."""

    COLUMN = "column"
    ROW = "row"
    ALL = "all"


class SolverName(StrEnum):
    """How the inverse is solved for (``released`` always does its 50 fixed-point steps)."""

    ANDERSON = "anderson"
    PICARD = "picard"
    NEWTON_KRYLOV = "newton-krylov"


@dataclass(frozen=True)
class Cell:
    """One trained and inverted network: a response under a constraint, one of several repeats."""

    response: str
    constraint: str
    normalization: str
    repeat: int

    @property
    def folder(self) -> str:
        """Name of the cell's folder."""
        return f"{self.constraint}-{self.normalization}-{self.response}-{self.repeat}"


@dataclass(frozen=True)
class Configuration:
    """Settings of a run. The defaults are the paper's protocol for 32×32 images.

    Args:
        dataset: name of the dataset.
        title: what the data are called in reports, ``None`` for the dataset's own name.
        size: height and width, both even: the network squeezes 2×2 pixels into channels.
        random_crops: draw several random crops per image, ``None`` for the dataset's habit.
        own_size: invert the test images at their own size too, and write what came back as PNG.
        responses, constraints, normalizations: whose product gives the cells.
        train_images, test_images: how many are drawn.
        epochs: passes over the training images.
        batch_size: images per optimiser step.
        learning_rate: of Adam.
        coefficient: Lipschitz coefficient of ``certified`` and ``relaxed``; ``released`` keeps its own.
        solver: how ``certified`` and ``relaxed`` are inverted.
        tolerance: relative residual at which the solver stops.
        repeats: how often everything is repeated with seeds ``seed``, ``seed + 1``, …
        seed: seed of the first repeat.
        micro_batch: images processed at once, ``None`` to choose by memory. Does not change the mathematics,
            only its rounding.
        studied_images: test images on which solvers are compared and local Lipschitz constants estimated.

    Raises:
        ValueError: for a setting out of range, naming it.
    """

    dataset: str = "photos"
    title: str | None = None
    size: tuple[int, int] = (32, 32)
    random_crops: bool | None = None
    own_size: bool = False
    responses: tuple[str, ...] = tuple(Response)
    constraints: tuple[str, ...] = tuple(Constraint)
    normalizations: tuple[str, ...] = (Normalization.COLUMN,)
    train_images: int = 1000
    test_images: int = 1000
    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 0.003
    coefficient: float = 0.9
    solver: str = SolverName.ANDERSON
    tolerance: float = 1e-6
    repeats: int = 3
    seed: int = 0
    micro_batch: int | None = None
    studied_images: int = 32

    def __post_init__(self) -> None:
        for name in ("responses", "constraints", "normalizations"):
            values = tuple(dict.fromkeys(str(value) for value in getattr(self, name)))
            object.__setattr__(self, name, values)
            if not values:
                raise ValueError(f"{name} must not be empty")
        object.__setattr__(self, "size", tuple(self.size))
        for name in ("train_images", "test_images", "epochs", "batch_size", "repeats", "studied_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, got {self.micro_batch}")
        height, width = self.size
        if min(height, width) < 12 or height % 2 or width % 2:
            raise ValueError(f"size must be two even numbers of at least 12, got {height} {width}")
        if not 0 < self.coefficient < 1:
            raise ValueError(f"coefficient must be between 0 and 1, got {self.coefficient}")
        if self.own_size and (self.random_crops or self.dataset == Dataset.PHOTOS):
            raise ValueError("own_size is for whole images, got random crops: choose another dataset")
        for name in ("learning_rate", "tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def cells(self) -> Iterator[Cell]:
        """Yield every network to train. ``released`` has one normalisation of its own, the row."""
        for repeat in range(1, self.repeats + 1):
            for constraint in self.constraints:
                own = constraint == Constraint.RELEASED
                for normalization in (str(Normalization.ROW),) if own else self.normalizations:
                    for response in self.responses:
                        yield Cell(response, constraint, normalization, repeat)

    def seed_of(self, repeat: int) -> int:
        """Return the seed of a repeat, counted from 1."""
        return self.seed + repeat - 1

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        values = asdict(self)
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def choose(cls, *, quick: bool = False, **given: Any) -> Configuration:
        """Return the paper's protocol for the size asked for, smaller with ``quick``, and as ``given``.

        At more than 64 pixels the paper trains one epoch, image by image. What is given as ``None`` is
        chosen.
        """
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in given.items() if value is not None and name in known}
        chosen: dict[str, Any] = {}
        if given.get("own_size"):
            # The others take a matrix of all pairs of pixels, or promise nothing.
            chosen |= {
                "responses": (Response.CONCATENATION,),
                "constraints": (Constraint.CERTIFIED,),
                "repeats": 1,
            }
        if max(given.get("size", (32, 32))) > 64:
            chosen |= {"epochs": 1, "batch_size": 1, "studied_images": 2}
        if quick:
            chosen |= {"train_images": 256, "test_images": 128, "repeats": 1, "studied_images": 8}
            chosen.setdefault("epochs", 20)
        return cls(**(chosen | given))


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value
