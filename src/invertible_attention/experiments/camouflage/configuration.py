"""What decides the numbers of a camouflage run, besides the model and the seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

__all__ = ["Configuration", "Schedule"]

Schedule = ("constant", "cosine")
"""How the learning rate goes: as it is, or up for 5 % of the steps and then down to zero along a cosine."""

SMALLEST = 48
"""Smaller images have a single pixel at the coarsest level, too few for the statistics of a batch of one."""

GENERATED = {
    "backbone": "tiny",
    "size": 96,
    "batch_size": 8,
    "epochs": 40,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "gradient_clip": 1.0,
    "train_images": 960,
    "test_images": 90,
}
"""Without data at hand: generated images, and a backbone small enough to learn them from random weights."""

QUICK = GENERATED | {"size": 64, "epochs": 12, "train_images": 800, "test_images": 60, "audited_images": 4}
"""Minutes on a laptop."""


@dataclass(frozen=True)
class Configuration:
    """Settings of a run. The defaults are the paper's protocol.

    Args:
        backbone: name of the backbone.
        weights: where its pretrained weights are, ``None`` for the backbone's usual ones.
        freeze_backbone: leave the backbone as it is and train on its features, computed once of every image and of
            its mirror image.
        levels: the levels that have attention.
        coefficient: Lipschitz coefficient of invertible attention.
        heads: heads of the attention.
        size: side of the images the network sees.
        batch_size: images per step, over all devices.
        epochs: passes over the training images.
        learning_rate: of Adam.
        schedule: one of :data:`Schedule`.
        average: decay of the moving average of the weights that is tested, 0 for the last weights.
        gradient_clip: largest norm of a gradient, ``None`` for any.
        precision: Lightning's name of the precision.
        train_images, test_images: numbers of generated images; ``None`` with data from disk.
        audited_images: test images whose features the invertible attention is audited on.

    Raises:
        ValueError: for a setting out of range, naming it.
    """

    backbone: str = "resnet50"
    weights: str | None = None
    freeze_backbone: bool = False
    levels: tuple[int, ...] = (1, 2, 3, 4)
    coefficient: float = 0.9
    heads: int = 1
    size: int = 352
    batch_size: int = 6
    epochs: int = 30
    learning_rate: float = 2.5e-5
    schedule: str = "constant"
    average: float = 0.0
    gradient_clip: float | None = None
    precision: str = "32-true"
    train_images: int | None = None
    test_images: int | None = None
    audited_images: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(sorted(set(self.levels))))
        if not self.levels or not set(self.levels) <= {1, 2, 3, 4}:
            raise ValueError(f"levels must be among 1, 2, 3 and 4, got {self.levels}")
        for name in ("batch_size", "epochs", "audited_images", "train_images", "test_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.size < SMALLEST:
            raise ValueError(f"size must be at least {SMALLEST}, got {self.size}")
        if self.heads < 1 or 32 % self.heads:
            raise ValueError(f"heads must divide the 32 channels, got {self.heads}")
        if not 0 < self.coefficient < 1:
            raise ValueError(f"coefficient must be between 0 and 1, got {self.coefficient}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.schedule not in Schedule:
            raise ValueError(f"schedule must be one of {', '.join(Schedule)}, got {self.schedule!r}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be in [0, 1), got {self.average}")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip must be positive, got {self.gradient_clip}")

    @property
    def generated(self) -> bool:
        """Whether the images are generated."""
        return self.train_images is not None

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self) | {"levels": list(self.levels)}

    def portable(self) -> dict[str, Any]:
        """Return the settings for a file that is read on other machines: a folder of weights by its name."""
        settings = self.to_json()
        if self.weights is not None and Path(self.weights).is_absolute():
            settings["weights"] = Path(self.weights).name
        return settings

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Configuration:
        """Return the settings that :meth:`to_json` gave."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    @classmethod
    def choose(cls, *, generated: bool, quick: bool = False, **given: Any) -> Configuration:
        """Return the paper's protocol, or that of the generated images, as ``given``.

        Args:
            generated: whether there are no data on disk.
            quick: choose everything so that the run takes minutes.
            **given: settings; ``None`` leaves the choice.
        """
        given = {name: value for name, value in given.items() if value is not None}
        chosen: dict[str, Any] = dict(QUICK if quick else GENERATED if generated else {})
        if not generated:
            for name in ("train_images", "test_images"):
                chosen.pop(name, None)
                given.pop(name, None)
        return cls(**(chosen | given))
