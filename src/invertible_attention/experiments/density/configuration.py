"""What a density run is made of: data, model, training, all that decides its numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from ..reconstruct.configuration import Normalization

__all__ = [
    "AttentionKind",
    "Augmentation",
    "Configuration",
    "Constraint",
    "Dataset",
    "Estimator",
    "Model",
    "Normalization",
    "parse_places",
]


class Dataset(StrEnum):
    """Where images come from."""

    DIGITS = "digits"
    PHOTOS = "photos"
    CIFAR10 = "cifar10"
    SVHN = "svhn"
    CELEBA = "celeba"
    FOLDER = "folder"


class Model(StrEnum):
    """Which family of densities: ours, and those of other libraries for comparison."""

    I_RESNET = "i-resnet"
    RESIDUAL_FLOW = "residual-flow"
    TRANSFORMER_FLOW = "transformer-flow"
    MADE = "made"
    MAF = "maf"
    CNF = "cnf"
    REALNVP = "realnvp"
    GLOW = "glow"

    @property
    def residual(self) -> bool:
        """Whether it is made of residual blocks, which is where attention can go."""
        return self in (Model.I_RESNET, Model.RESIDUAL_FLOW)


class AttentionKind(StrEnum):
    """How pairs of tokens are scored (Table 1), or no attention at all."""

    NONE = "none"
    GAUSSIAN = "gaussian"
    EMBEDDED_GAUSSIAN = "embedded_gaussian"
    DOT_PRODUCT = "dot_product"
    CONCATENATION = "concatenation"


class Constraint(StrEnum):
    """What limits the attention branch."""

    CERTIFIED = "certified"
    RELAXED = "relaxed"
    TRIANGULAR = "triangular"


class Estimator(StrEnum):
    """How log-determinants are computed."""

    ROULETTE = "roulette"
    POWER_SERIES = "power-series"
    EXACT = "exact"


class Augmentation(StrEnum):
    """What is done to training images: nothing, a random flip, or also a random crop padded by 4."""

    NONE = "none"
    FLIP = "flip"
    CROP_FLIP = "crop-flip"


@dataclass(frozen=True)
class Configuration:
    """Settings of a run. The defaults are the paper's for CIFAR-10, trained without bias.

    Args:
        dataset: name of the dataset.
        title: what the data are called in reports, ``None`` for the dataset's own name.
        size: height and width.
        train_images, test_images: how many are drawn, the same for every seed.
        augmentation: of training images.
        model: family of densities.
        blocks: residual blocks, couplings or transforms per scale; a transformer flow has as many as all together.
        hidden_channels: width inside a block.
        coefficient: norm of a convolution, ``None`` for the model's own.
        attention: response of the attention, ``"none"`` for no attention.
        constraint: of the attention.
        affine: whether triangular attention scales tokens too.
        width: features of a token inside triangular attention, ``None`` for 4 times the channels.
        depth: transformer blocks inside it, and inside each block of a transformer flow.
        patch: side of the patches of a transformer flow.
        attention_coefficient: its Lipschitz coefficient.
        normalization: what its weights sum to one along.
        heads: its heads.
        position_prior: whether the response is multiplied by a learned kernel of relative position.
        attention_after: where it goes, as ``scale:block`` counted from 0, -1 being the last block.
        estimator: of the log-determinant in training; the paper's is ``power-series``, which is biased.
        terms, probes: of the estimator: exact terms of ``roulette`` or all terms of ``power-series``.
        steps: optimizer steps.
        minutes: processor time after which training ends in any case, ``None`` for no limit.
        batch_size: images per step, over all devices.
        learning_rate: of Adamax.
        warmup: steps over which the learning rate grows to its value.
        decay: whether it then falls to zero along a cosine.
        clip: largest norm of the gradient.
        average: decay per step of the average of weights that is evaluated.
        evaluate_every: steps between points of the learning curve.
        curve_images: test images in each of them.
        seed: of weights, order and noise.

    Raises:
        ValueError: for a setting out of range, naming it.
    """

    dataset: str = Dataset.CIFAR10
    title: str | None = None
    size: tuple[int, int] = (32, 32)
    train_images: int = 50_000
    test_images: int = 10_000
    augmentation: str = Augmentation.CROP_FLIP
    model: str = Model.I_RESNET
    blocks: tuple[int, ...] = (16, 16, 16)
    hidden_channels: int = 512
    coefficient: float | None = None
    attention: str = "concatenation"
    constraint: str = Constraint.CERTIFIED
    affine: bool = False
    width: int | None = None
    depth: int = 1
    patch: int = 2
    attention_coefficient: float = 0.9
    normalization: str = Normalization.COLUMN
    heads: int = 1
    position_prior: bool = False
    attention_after: tuple[str, ...] = ("0:-1",)
    estimator: str = Estimator.ROULETTE
    terms: int = 2
    probes: int = 1
    steps: int = 156_250
    minutes: float | None = None
    batch_size: int = 64
    learning_rate: float = 0.003
    warmup: int = 780
    decay: bool = False
    clip: float = 20.0
    average: float = 0.999
    evaluate_every: int = 2000
    curve_images: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list | tuple):
                object.__setattr__(self, field.name, tuple(map(_plain, value)))
            else:
                object.__setattr__(self, field.name, _plain(value))
        _check_names(self)
        _check_numbers(self)
        for place in self.attention_after:
            parse_places((place,))
        if not self.blocks or min(self.blocks) < 1:
            raise ValueError(f"blocks must be positive numbers, got {self.blocks}")
        if self.attention != "none" and not Model(self.model).residual:
            raise ValueError(f"attention goes into residual models only, got model {self.model}")
        own = self.model == Model.TRANSFORMER_FLOW
        if self.attention == "none" and ((self.heads > 1 and not own) or self.position_prior):
            given = f"{self.heads} heads" if self.heads > 1 else "a position prior"
            raise ValueError(f"there is no attention to give {given}: name one with attention")
        if self.position_prior and self.constraint == Constraint.TRIANGULAR:
            raise ValueError("triangular attention knows positions without a prior, got a position prior")
        if self.affine and self.constraint != Constraint.TRIANGULAR:
            raise ValueError(f"only triangular attention scales tokens, got affine with {self.constraint}")

    @property
    def name(self) -> str:
        """What to call the model in tables and folders."""
        if self.attention == "none":
            return self.model
        extra = [f"{self.heads} heads"] if self.heads > 1 else []
        extra += ["affine"] if self.affine else []
        extra += [f"width {self.width}"] if self.width is not None else []
        extra += ["position"] if self.position_prior else []
        extra += [f"after {' '.join(self.attention_after)}"] if self.attention_after != ("0:-1",) else []
        suffix = f" ({', '.join(extra)})" if extra else ""
        return f"{self.model} + {self.attention}, {self.constraint}{suffix}"

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Configuration:
        """Return the configuration that :meth:`to_json` was called on."""
        return cls(**values)

    @classmethod
    def choose(cls, *, quick: bool = False, **given: Any) -> Configuration:
        """Return the defaults for the dataset asked for, smaller with ``quick``, and as ``given``.

        What is given as ``None`` is chosen. For digits the default trains in a few minutes on a laptop.
        """
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in given.items() if value is not None and name in known}
        dataset = str(given.setdefault("dataset", Dataset.DIGITS))
        chosen: dict[str, Any] = dict(_DEFAULTS.get(dataset, {}))
        if str(given.get("model", Model.I_RESNET)) not in (Model.I_RESNET, Model.RESIDUAL_FLOW):
            chosen["attention"] = "none"
        if given.get("minutes") is not None:
            # A schedule over steps means nothing where time ends training.
            chosen["decay"] = False
        if quick:
            chosen |= _QUICK
            if dataset != Dataset.DIGITS:
                chosen |= {"train_images": 2000, "test_images": 200}
        if dataset in (Dataset.PHOTOS, Dataset.SVHN, Dataset.FOLDER):
            chosen.setdefault("train_images", 1000)
            chosen.setdefault("test_images", 100)
        steps = given.get("steps")
        if steps is not None:
            whole = cls(**chosen, dataset=dataset)
            # A short run warms up, forgets and is looked at in proportion.
            chosen |= {
                "warmup": min(whole.warmup, steps // 20),
                "average": min(whole.average, max(0.5, 1 - 10 / max(1, steps))),
                "evaluate_every": max(1, min(whole.evaluate_every, steps // 5)),
            }
        return cls(**(chosen | given))


_DEFAULTS: dict[str, dict[str, Any]] = {
    Dataset.DIGITS: {
        "size": (8, 8),
        "train_images": 1437,
        "test_images": 360,
        "augmentation": Augmentation.NONE,
        "blocks": (4, 4, 4),
        "hidden_channels": 32,
        "steps": 1500,
        "warmup": 50,
        "decay": True,
        "average": 0.99,
        "evaluate_every": 250,
        "curve_images": 360,
    },
    Dataset.CELEBA: {"augmentation": Augmentation.FLIP, "train_images": 1000, "test_images": 100},
}
_QUICK: dict[str, Any] = {
    "blocks": (2, 2, 2),
    "hidden_channels": 16,
    "steps": 200,
    "warmup": 20,
    "average": 0.98,
    "evaluate_every": 50,
    "curve_images": 100,
}
_NAMES = {
    "dataset": Dataset,
    "augmentation": Augmentation,
    "model": Model,
    "attention": AttentionKind,
    "constraint": Constraint,
    "normalization": Normalization,
    "estimator": Estimator,
}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, StrEnum) else value


def _check_names(configuration: Configuration) -> None:
    for name, kind in _NAMES.items():
        value = getattr(configuration, name)
        if value not in list(kind):
            raise ValueError(f"{name} must be one of {', '.join(kind)}, got {value!r}")


def _check_numbers(configuration: Configuration) -> None:
    positive = ("train_images", "test_images", "hidden_channels", "heads", "terms", "probes", "steps")
    positive = (*positive, "depth", "patch")
    for name in (*positive, "batch_size", "evaluate_every", "curve_images"):
        if getattr(configuration, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(configuration, name)}")
    for name in ("coefficient", "attention_coefficient", "average"):
        value = getattr(configuration, name)
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")
    for name in ("learning_rate", "clip", "minutes"):
        value = getattr(configuration, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if configuration.warmup < 0:
        raise ValueError(f"warmup must not be negative, got {configuration.warmup}")


def parse_places(places: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Read places of attention.

    Raises:
        ValueError: naming one that is not ``scale:block``.

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
            raise ValueError(f"attention_after must be scale:block such as 0:-1, got {place!r}") from None
    return tuple(parsed)
