"""What a reconstruction run is made of: the settings that decide its numbers, and the cells they give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from ..errors import UsageError
from ..settings import POSITIVE, Check, Settings, at_least, between, setting
from ..variants import Normalization, Response, divide, slug, variant

__all__ = ["LARGE", "OWN_SIZE", "QUICK", "Cell", "Configuration", "Constraint", "SolverName", "today"]

Constraint = Literal["certified", "relaxed", "released"]
"""What limits the branch: our certificate, the paper's Section 2.4, or the authors' released code."""

SolverName = Literal["anderson", "picard", "newton-krylov"]
"""How the inverse is solved for (``released`` always does its 50 fixed-point steps)."""

LARGE: dict[str, Any] = {"epochs": 1, "batch_size": 1, "studied_images": 2}
"""The paper trains images of more than 64 pixels for one epoch, one by one."""

OWN_SIZE: dict[str, Any] = {"variants": ("concatenation/certified",), "repeats": 1}
"""Other responses take a matrix of all pairs of pixels, other constraints promise nothing."""

QUICK: dict[str, Any] = {
    "train_images": 256,
    "test_images": 128,
    "epochs": 20,
    "repeats": 1,
    "studied_images": 8,
}

IMAGES = "1000; folder: as many as it has"


def _product(responses: Any, constraints: Any, normalizations: Any) -> tuple[str, ...]:
    found = (variant(r, c, n) for c in constraints for n in normalizations for r in responses)
    return tuple(dict.fromkeys(found))


ALL = _product(get_args(Response), get_args(Constraint), ("column",))
KNOWN = set(_product(get_args(Response), get_args(Constraint), get_args(Normalization)))


@dataclass(frozen=True)
class Cell:
    """One trained and inverted network: a variant, one of several repeats."""

    response: str
    constraint: str
    normalization: str
    repeat: int

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Cell:
        """Return the cell of a result."""
        return cls(*(result[declared.name] for declared in fields(cls)))

    @property
    def variant(self) -> str:
        """Which attention, as text."""
        return variant(self.response, self.constraint, self.normalization)

    @property
    def folder(self) -> str:
        """Name of the cell's folder."""
        return slug(self.variant, self.repeat)

    def __str__(self) -> str:
        return f"{self.variant}, repeat {self.repeat}"


@dataclass(frozen=True)
class Configuration(Settings):
    """Settings of a run. The defaults are the paper's protocol for 32×32 images."""

    dataset: Literal["photos", "cifar10", "svhn", "celeba", "folder"] = setting(
        "photos", "Dataset; photos come with scikit-image and scikit-learn, folder is --data-dir."
    )
    title: str | None = setting(None, "Dataset title in reports.")
    size: tuple[int, int] = setting(
        (32, 32),
        "Height and width of the images.",
        # The network squeezes 2×2 pixels into channels.
        Check(
            "two even numbers of at least 12",
            lambda size: min(size) >= 12 and not any(side % 2 for side in size),
        ),
        metavar="HEIGHT WIDTH",
    )
    random_crops: bool | None = setting(
        None,
        "Several random crops per photograph, or one centered image each.",
        shown="by dataset",
        negative="--whole-images",
    )
    own_size: bool = setting(
        False,
        "Invert the test images at their own size, too, and write the result as PNG; training is at --size.",
    )
    variants: tuple[str, ...] = setting(
        ALL,
        "Attention as RESPONSE/CONSTRAINT[/NORMALIZATION], such as gaussian/certified/row; responses as in Table 1, "
        "constraints certified, relaxed (the paper's), released (the authors' code); normalization column, row, all.",
        Check(
            "RESPONSE/CONSTRAINT[/NORMALIZATION] such as gaussian/certified/row",
            lambda texts: texts and {*texts} <= KNOWN,
        ),
        shown="every response under every constraint",
    )
    train_images: int = setting(1000, "Training images.", at_least(1), shown=IMAGES)
    test_images: int = setting(1000, "Test images.", at_least(1), shown=IMAGES)
    epochs: int = setting(100, "Passes over the training images.", at_least(1))
    batch_size: int = setting(64, "Images per step.", at_least(1))
    learning_rate: float = setting(0.003, "Learning rate (Adam).", POSITIVE)
    coefficient: float = setting(
        0.9, "Lipschitz coefficient of certified and relaxed; released has its own.", between(0, 1)
    )
    solver: SolverName = setting(
        "anderson",
        "Solver of the inverse; picard is fixed-point iteration, the paper's (released always does 50 steps of it).",
    )
    tolerance: float = setting(1e-6, "Relative residual at which the solver stops.", POSITIVE)
    repeats: int = setting(3, "Repeats; each has its own seed, counted from --seed.", at_least(1))
    seed: int = setting(0, "Random seed of the first repeat.", at_least(0))
    micro_batch: int | None = setting(
        None, "Images processed at once; changes rounding only.", at_least(1), shown="by memory"
    )
    studied_images: int = setting(
        32, "Test images for comparing solvers and estimating local Lipschitz constants.", at_least(1)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "variants", tuple(dict.fromkeys(self.variants)))
        if self.own_size and (self.random_crops or self.dataset == "photos"):
            raise UsageError("own_size is for whole images, got random crops: choose another dataset")

    def cells(self) -> Iterator[Cell]:
        """Yield every network to train. ``released`` has its own normalization, by row."""
        for repeat in range(1, self.repeats + 1):
            for text in self.variants:
                own = {"normalization": "row" if text.endswith("/released") else "column"}
                yield Cell(**own | divide(text)[0], repeat=repeat)

    def seed_of(self, repeat: int) -> int:
        """Return the seed of a repeat, counted from 1."""
        return self.seed + repeat - 1

    @classmethod
    def choose(cls, *, quick: bool = False, **given: Any) -> Configuration:
        """Return the paper's protocol for the size asked for, smaller with ``quick``, changed by ``given``."""
        own = OWN_SIZE if given.get("own_size") else {}
        large = own | LARGE if max(given.get("size", (32, 32))) > 64 else own
        chosen = large | QUICK | {"epochs": large.get("epochs", QUICK["epochs"])} if quick else large
        return cls.from_json(chosen | given)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings, also those of earlier versions."""
        return super().from_json(today(values))


def today(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with variants in place of the lists that earlier versions combined.

    Example:
        >>> today({"responses": ["gaussian"], "constraints": ["certified", "released"], "seed": 0})
        {'seed': 0, 'variants': ['gaussian/certified', 'gaussian/released']}
    """
    lists = ("responses", "constraints", "normalizations")
    kept = {name: value for name, value in settings.items() if name not in lists}
    if len(kept) == len(settings):
        return kept
    known = [divide(text)[0] for text in settings.get("variants", ALL)]
    default = [dict.fromkeys(words[name] for words in known) for name in ("response", "constraint")]
    combined = zip(lists, (*default, ["column"]), strict=True)
    return kept | {"variants": list(_product(*(settings.get(name, other) for name, other in combined)))}
