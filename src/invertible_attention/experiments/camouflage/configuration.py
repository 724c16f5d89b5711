"""What decides the numbers of a camouflage run, besides the model and the seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UsageError
from ..settings import POSITIVE, Check, Settings, at_least, between, setting

__all__ = ["GENERATED", "QUICK", "Configuration"]

Backbone = Literal["resnet50", "resnet18", "efficientnet-lite0", "efficientnet-lite2", "mobilenet", "tiny"]

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
"""Without data: generated images, and a backbone small enough to learn them from random weights."""

QUICK = GENERATED | {"size": 64, "epochs": 6, "train_images": 800, "test_images": 60, "audited_images": 4}
"""Two minutes on a laptop."""

QUICK_STUDY = {"epochs": 1, "train_images": 240, "test_images": 24, "audited_images": 2}
"""The same for the ten networks of a study."""


@dataclass(frozen=True)
class Configuration(Settings):
    """Settings of a run. The defaults are the paper's protocol."""

    backbone: Backbone = setting("resnet50", "Backbone network.")
    weights: str | None = setting(
        None,
        "Backbone weights: a folder, a file, a name on the hub, or 'random'.",
        shown="pretrained on ImageNet; tiny: random",
    )
    freeze_backbone: bool = setting(
        False, "Train on frozen backbone features, computed once for every image and its mirror image."
    )
    levels: tuple[int, ...] = setting(
        (1, 2, 3, 4),
        "Levels with attention; 1 is the finest.",
        Check("among 1, 2, 3 and 4", lambda levels: levels and set(levels) <= {1, 2, 3, 4}),
    )
    coefficient: float = setting(0.9, "Lipschitz coefficient of invertible attention.", between(0, 1))
    heads: int = setting(
        1,
        "Attention heads.",
        Check("a divisor of the 32 channels", lambda heads: heads > 0 and 32 % heads == 0),
    )
    # Smaller images have a single pixel at the coarsest level, too few for the statistics of a batch of one.
    size: int = setting(352, "Side length of the input images in pixels.", at_least(48))
    batch_size: int = setting(6, "Images per step, over all devices.", at_least(1))
    epochs: int = setting(30, "Passes over the training images.", at_least(1))
    learning_rate: float = setting(2.5e-5, "Learning rate (Adam).", POSITIVE)
    schedule: Literal["constant", "cosine"] = setting(
        "constant",
        "Learning rate schedule; cosine warms up over the first 5% of the steps and decays to zero.",
    )
    average: float = setting(
        0.0,
        "Decay of the moving average of the weights that is tested; 0 tests the last weights.",
        Check("in [0, 1)", lambda decay: 0 <= decay < 1),
    )
    gradient_clip: float | None = setting(None, "Gradient clipping: largest norm.", POSITIVE, shown="none")
    precision: str = setting(
        "32-true", "Lightning precision: 32-true, bf16-mixed, 16-mixed, …; attention stays in float32."
    )
    train_images: int | None = setting(None, "Number of generated training images.", at_least(1))
    test_images: int | None = setting(None, "Number of generated test images.", at_least(1))
    audited_images: int = setting(
        8, "Test images on whose features invertible attention is audited.", at_least(1)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "levels", tuple(sorted(set(self.levels))))

    @property
    def generated(self) -> bool:
        """Whether the images are generated."""
        return self.train_images is not None

    def portable(self) -> dict[str, Any]:
        """Return the settings for a file that is read on other machines: a folder of weights by its name."""
        settings = self.to_json()
        if self.weights is not None and Path(self.weights).is_absolute():
            settings["weights"] = Path(self.weights).name
        return settings

    @classmethod
    def choose(cls, *, generated: bool, quick: bool = False, **given: Any) -> Configuration:
        """Return the paper's protocol, or that of the generated images, changed by ``given``.

        Args:
            generated: whether there are no data on disk.
            quick: choose everything so that the run takes minutes.
            **given: settings.

        Raises:
            UsageError: for a number of generated images where there are data, and as the class does.
        """
        chosen: dict[str, Any] = dict(QUICK if quick else GENERATED if generated else {})
        for name in () if generated else ("train_images", "test_images"):
            chosen.pop(name, None)
            if name in given:
                raise UsageError(f"{name} is for generated images, not for --data, got {given[name]}")
        return cls.from_json(chosen | given)
