"""What a density run is made of: data, model, training, all that decides its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import UsageError
from ..settings import POSITIVE, Check, Settings, at_least, between, setting
from ..variants import Normalization, Response, variant

__all__ = [
    "DIGITS",
    "QUICK",
    "RESIDUAL",
    "TIMED",
    "TRIANGULAR",
    "Configuration",
    "Constraint",
    "Estimator",
    "parse_places",
]

Model = Literal["i-resnet", "residual-flow", "transformer-flow", "made", "maf", "cnf", "realnvp", "glow"]
RESIDUAL = ("i-resnet", "residual-flow")
"""The models made of residual blocks, which is where attention can go."""

Attention = Literal["none", Response]
Constraint = Literal["certified", "relaxed", "triangular"]
Estimator = Literal["roulette", "power-series", "exact"]

TRIANGULAR: dict[str, Any] = {"attention": "embedded_gaussian", "heads": 4}
"""What the word ``triangular`` alone means."""

DIGITS: dict[str, Any] = {
    "size": (8, 8),
    "train_images": 1437,
    "test_images": 360,
    "augmentation": "none",
    "blocks": (4, 4, 4),
    "hidden_channels": 32,
    "steps": 1500,
    "warmup": 50,
    "decay": True,
    "average": 0.99,
    "evaluate_every": 250,
    "curve_images": 360,
}
"""The settings of digits that differ from the paper's for CIFAR-10."""

QUICK: dict[str, Any] = {
    "blocks": (2, 2, 2),
    "hidden_channels": 16,
    "steps": 200,
    "warmup": 20,
    "average": 0.98,
    "evaluate_every": 50,
    "curve_images": 100,
}
TIMED: dict[str, Any] = {"decay": False, "warmup": 50, "average": 0.99, "evaluate_every": 0}
"""Where time ends training: how many steps it will take is not known, and no schedule can depend on it."""
QUICK_STUDY: dict[str, Any] = {"steps": 40, "minutes": 0.05}
"""Of each of many densities: a study of the paper's variants then takes two minutes."""
FEW = "50000; photos, svhn, celeba, folder: 1000"
FEW_TEST = "10000; photos, svhn, celeba, folder: 100"


@dataclass(frozen=True)
class Configuration(Settings):
    """Settings of a run. The defaults are the paper's for CIFAR-10, trained without bias."""

    dataset: Literal["digits", "photos", "cifar10", "svhn", "celeba", "folder"] = setting(
        "cifar10", "Dataset."
    )
    title: str | None = setting(None, "Dataset title in reports.")
    size: tuple[int, int] = setting((32, 32), "Height and width of the images.", metavar="HEIGHT WIDTH")
    train_images: int = setting(50_000, "Training images, the same for every seed.", at_least(1), shown=FEW)
    test_images: int = setting(10_000, "Test images, the same for every seed.", at_least(1), shown=FEW_TEST)
    augmentation: Literal["none", "flip", "crop-flip"] = setting(
        "crop-flip",
        "Training augmentation: none, a random flip, or a random crop (padding 4) and flip.",
        shown="crop-flip; celeba: flip",
    )
    model: Model = setting("i-resnet", "Model family; those that are not residual are for comparison.")
    blocks: tuple[int, ...] = setting(
        (16, 16, 16),
        "Residual blocks, couplings or transforms per scale; a transformer flow has their sum.",
        Check("positive numbers", lambda blocks: blocks and min(blocks) >= 1),
    )
    hidden_channels: int = setting(512, "Hidden channels of a block.", at_least(1))
    coefficient: float | None = setting(
        None, "Spectral-norm limit of each convolution.", between(0, 1), shown="0.9; residual-flow: 0.98"
    )
    attention: Attention = setting("concatenation", "Response of the attention (Table 1), or none.")
    constraint: Constraint = setting("certified", "How the attention is made invertible.")
    affine: bool = setting(False, "Scale tokens, too, in triangular attention.")
    width: int | None = setting(
        None, "Features per token in triangular attention.", at_least(1), shown="4 times the channels"
    )
    depth: int = setting(
        1, "Transformer blocks in triangular attention and in each block of a transformer flow.", at_least(1)
    )
    patch: int = setting(2, "Patch size of a transformer flow.", at_least(1))
    attention_coefficient: float = setting(0.9, "Lipschitz coefficient of the attention.", between(0, 1))
    normalization: Normalization = setting("column", "Axis along which attention weights sum to one.")
    heads: int = setting(1, "Attention heads.", at_least(1))
    position_prior: bool = setting(False, "Multiply the response by a learned kernel of relative position.")
    attention_after: tuple[str, ...] = setting(
        ("0:-1",), "Blocks with attention after them, as scale:block counted from 0; block -1 is the last."
    )
    estimator: Estimator = setting(
        "roulette", "Log-determinant estimator in training; power-series is the paper's and biased."
    )
    terms: int = setting(
        2, "Exact terms of roulette, or all terms of power-series.", at_least(1), shown="2; power-series: 5"
    )
    probes: int = setting(1, "Probes of the estimator.", at_least(1))
    steps: int = setting(156_250, "Optimizer steps.", at_least(1))
    minutes: float | None = setting(
        None,
        "CPU time after which training ends if --steps are not done before; the learning rate then does not decay.",
        POSITIVE,
        shown="no limit",
    )
    batch_size: int = setting(64, "Images per step, over all devices.", at_least(1))
    learning_rate: float = setting(0.003, "Learning rate (Adamax).", POSITIVE)
    warmup: int = setting(780, "Steps of linear learning-rate warmup.", at_least(0))
    decay: bool = setting(False, "Decay the learning rate to zero along a cosine.", negative="--no-decay")
    clip: float = setting(20.0, "Gradient clipping: largest norm.", POSITIVE)
    average: float = setting(
        0.999, "Decay per step of the moving average of the weights, which is evaluated.", between(0, 1)
    )
    evaluate_every: int = setting(
        2000,
        "Steps between points of the learning curve; 0: points at 10, 14, 20, 28, 40, … steps.",
        at_least(0),
    )
    curve_images: int = setting(256, "Test images per point of the learning curve.", at_least(1))
    seed: int = setting(0, "Random seed of weights, order and noise.", at_least(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_places(self.attention_after)
        if self.attention != "none" and self.model not in RESIDUAL:
            raise UsageError(f"attention goes into residual models only, got model {self.model}")
        own = self.model == "transformer-flow"
        if self.attention == "none" and ((self.heads > 1 and not own) or self.position_prior):
            given = f"{self.heads} heads" if self.heads > 1 else "a position prior"
            raise UsageError(f"there is no attention to give {given}: name one with attention")
        if self.position_prior and self.constraint == "triangular":
            raise UsageError("triangular attention knows positions without a prior, got a position prior")
        if self.affine and self.constraint != "triangular":
            raise UsageError(f"only triangular attention scales tokens, got affine with {self.constraint}")

    @property
    def name(self) -> str:
        """The model, or its variant with attention as commands take it: ``gaussian/certified/heads=2``."""
        if self.attention == "none":
            return self.model
        usual = TRIANGULAR if self.constraint == "triangular" else {"attention": None, "heads": 1}
        words = [self.model] if self.model != RESIDUAL[0] else []
        kind = variant(self.attention, self.constraint, self.normalization)
        words.append(kind.partition("/")[2] if self.attention == usual["attention"] else kind)
        words += ["affine"] if self.affine else []
        words += [f"heads={self.heads}"] if self.heads != usual["heads"] else []
        words += [f"width={self.width}"] if self.width is not None else []
        words += ["position"] if self.position_prior else []
        words += [f"after={'+'.join(self.attention_after)}"] if self.attention_after != ("0:-1",) else []
        return "/".join(words)

    @classmethod
    def choose(cls, *, quick: bool = False, **given: Any) -> Configuration:
        """Return the defaults for the dataset asked for, smaller with ``quick``, changed by ``given``.

        For digits, the dataset where none is given, the default trains in a few minutes on a laptop.
        """
        given.setdefault("dataset", "digits")
        chosen: dict[str, Any] = {}
        if given["dataset"] == "digits":
            chosen |= DIGITS
        elif quick:
            chosen |= {"train_images": 2000, "test_images": 200}
        elif given["dataset"] != "cifar10":
            chosen |= {"train_images": 1000, "test_images": 100}
        if given["dataset"] == "celeba":
            chosen["augmentation"] = "flip"
        if given.get("model", "i-resnet") not in RESIDUAL:
            chosen["attention"] = "none"
        if given.get("minutes") is not None:
            chosen |= TIMED
        if given.get("estimator") == "power-series":
            chosen["terms"] = 5
        chosen |= QUICK if quick else {}
        if "steps" in given:
            whole, steps = cls.from_json({"attention": "none"} | chosen), given["steps"]
            # A short run warms up, forgets and is looked at in proportion.
            chosen |= {
                "warmup": min(whole.warmup, steps // 20),
                "average": min(whole.average, max(0.5, 1 - 10 / max(1, steps))),
                "evaluate_every": min(whole.evaluate_every, max(1, steps // 5)),
            }
        return cls.from_json(chosen | given)


def parse_places(places: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Read places of attention.

    Raises:
        UsageError: naming one that is not ``scale:block``.

    Example:
        >>> parse_places(("0:-1", "1:3"))
        ((0, -1), (1, 3))
    """
    parsed = []
    for place in places:
        scale, _, block = place.partition(":")
        try:
            parsed.append((int(scale), int(block)))
        except ValueError:
            raise UsageError(f"attention_after must be scale:block such as 0:-1, got {place!r}") from None
    return tuple(parsed)
