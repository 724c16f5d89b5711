"""Backbones: four levels of features at strides 4, 8, 16 and 32, from transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "ARCHITECTURES",
    "Backbone",
    "MobileNetFeatures",
    "ResNetFeatures",
    "backbone_from",
    "random_backbone",
]

LEAKY_SLOPE = 0.1
"""Slope of LeakyReLU that MobileNetV1 weights with this activation are trained with.

transformers builds the activation with PyTorch's default, 0.01, whatever the weights want.
"""

MOMENTUM = 0.1
"""How fast batch statistics move. transformers builds MobileNetV1 with TensorFlow's 0.9997, which in PyTorch's
convention replaces them at every step by those of one batch."""

STRIDES = (4, 8, 16, 32)


class Backbone(nn.Module, ABC):
    """A network that gives four maps of an image, at strides 4, 8, 16 and 32.

    Attributes:
        channels: of the four maps.
    """

    channels: tuple[int, ...]

    @abstractmethod
    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Return the four maps, finest first."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Return what :func:`backbone_from` needs to build it again, as JSON values."""


class ResNetFeatures(Backbone):
    """The stages of a ``ResNetBackbone``.

    Args:
        model: a ``transformers.ResNetBackbone`` that gives all four stages.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        configuration: Any = model.config
        self.channels = tuple(configuration.hidden_sizes)

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Return the four stages' outputs."""
        return list(self.model(image).feature_maps)

    def description(self) -> dict[str, Any]:
        """Return the kind and the sizes."""
        names = (
            "embedding_size",
            "hidden_sizes",
            "depths",
            "layer_type",
            "hidden_act",
            "downsample_in_first_stage",
            "downsample_in_bottleneck",
        )
        return {"kind": "resnet", "configuration": {name: getattr(self.model.config, name) for name in names}}


class MobileNetFeatures(Backbone):
    """The last map of every stride of a ``MobileNetV1Model``.

    LeakyReLU gets the slope its weights are trained with, batch statistics a momentum of 0.1.

    Args:
        model: a ``transformers.MobileNetV1Model``.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.chosen = _last_of_each_stride(model)
        layers: Any = model.layer
        self.channels = tuple(layers[index].convolution.out_channels for index in self.chosen)
        for module in model.modules():
            if isinstance(module, nn.LeakyReLU):
                module.negative_slope = LEAKY_SLOPE
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Return the four maps."""
        states = self.model(image, output_hidden_states=True).hidden_states
        return [states[index] for index in self.chosen]

    def description(self) -> dict[str, Any]:
        """Return the kind and the sizes."""
        names = ("depth_multiplier", "min_depth", "hidden_act", "tf_padding", "layer_norm_eps")
        return {
            "kind": "mobilenet_v1",
            "configuration": {name: getattr(self.model.config, name) for name in names},
        }


def _last_of_each_stride(model: nn.Module) -> tuple[int, ...]:
    stride, last = 2, {}
    layers: Any = model.layer
    for index, layer in enumerate(layers):
        stride *= layer.convolution.stride[0]
        last[stride] = index
    return tuple(last[stride] for stride in STRIDES)


def _resnet(configuration: dict[str, Any]) -> Backbone:
    from transformers import ResNetBackbone, ResNetConfig

    stages = [f"stage{number}" for number in range(1, 5)]
    settings: dict[str, Any] = configuration | {"out_features": stages}
    return ResNetFeatures(ResNetBackbone(ResNetConfig(**settings)))


def _mobilenet(configuration: dict[str, Any]) -> Backbone:
    from transformers import MobileNetV1Config, MobileNetV1Model

    model = MobileNetV1Model(MobileNetV1Config(**configuration), add_pooling_layer=False)
    return MobileNetFeatures(model)


KINDS: dict[str, Callable[[dict[str, Any]], Backbone]] = {"resnet": _resnet, "mobilenet_v1": _mobilenet}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet50": ("resnet", {"hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]}),
    "resnet18": (
        "resnet",
        {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"},
    ),
    "mobilenet": ("mobilenet_v1", {"depth_multiplier": 0.25, "tf_padding": False}),
    "tiny": (
        "resnet",
        {
            "embedding_size": 16,
            "hidden_sizes": [16, 32, 64, 128],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
        },
    ),
}
"""Kind and sizes of the backbones that are known by name."""


def backbone_from(description: dict[str, Any]) -> Backbone:
    """Build a backbone with random weights from what :meth:`Backbone.description` returned.

    Raises:
        ValueError: for an unknown kind.
    """
    if description["kind"] not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {description['kind']!r}")
    return KINDS[description["kind"]](description["configuration"])


def random_backbone(name: str) -> Backbone:
    """Build a backbone of :data:`ARCHITECTURES` with random weights.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> import torch
        >>> maps = random_backbone("tiny")(torch.zeros(1, 3, 64, 96))
        >>> [tuple(x.shape[1:]) for x in maps]
        [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"backbone must be one of {', '.join(ARCHITECTURES)}, got {name!r}")
    kind, configuration = ARCHITECTURES[name]
    return backbone_from({"kind": kind, "configuration": configuration})
