"""Backbones: four levels of features at strides 4, 8, 16 and 32, from transformers and efficientnet_lite_pytorch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...._install import install_line
from ...data.preparation import IMAGENET_MEAN, IMAGENET_STD
from ...errors import ExperimentError

__all__ = [
    "ARCHITECTURES",
    "Backbone",
    "EfficientNetLiteFeatures",
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


class EfficientNetLiteFeatures(Backbone):
    """The last map of every stride of an EfficientNet-Lite.

    Its weights were trained on pixels standardized by 127 and 128, not by ImageNet's mean and deviation. No block is
    dropped at random in training.

    Args:
        model: an ``efficientnet_lite_pytorch.EfficientNet``; its classifier is not used.
        name: which one, such as ``"efficientnet-lite2"``.

    References:
        Tan, Le 2019, EfficientNet; Renjie Liu 2020, Higher accuracy on vision models with EfficientNet-Lite.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        source: Any = model
        self.name = name
        self.stem = nn.Sequential(source._conv_stem, source._bn0, nn.ReLU6())
        self.blocks = nn.ModuleList(source._blocks)
        stride, last = 2, {}
        for index, block in enumerate(source._blocks):
            step = block._depthwise_conv.stride
            stride *= step[0] if isinstance(step, (list, tuple)) else step
            last[stride] = index
        self.chosen = tuple(last[stride] for stride in STRIDES)
        self.channels = tuple(source._blocks[index]._bn2.num_features for index in self.chosen)
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", (255 / 128 * std)[:, None, None], persistent=False)
        self.register_buffer("shift", ((255 * mean - 127) / 128)[:, None, None], persistent=False)

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Return the four maps of an image that is standardized by ImageNet's mean and deviation."""
        x = self.stem(image * self.scale + self.shift)
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.chosen:
                maps.append(x)
        return maps

    def description(self) -> dict[str, Any]:
        """Return the kind and the name."""
        return {"kind": "efficientnet_lite", "configuration": {"name": self.name}}


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


def _efficientnet_lite(configuration: dict[str, Any]) -> Backbone:
    return EfficientNetLiteFeatures(efficientnet_lite(configuration["name"]), configuration["name"])


def efficientnet_lite(name: str) -> nn.Module:
    """Build the network of the package, with random weights, for images of any size.

    Raises:
        ExperimentError: when the package is not installed.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise ExperimentError(
            f"{name} needs the package efficientnet-lite-pytorch: {install_line('camouflage')}"
        ) from error
    return EfficientNet.from_name(name, image_size=None)


KINDS: dict[str, Callable[[dict[str, Any]], Backbone]] = {
    "resnet": _resnet,
    "mobilenet_v1": _mobilenet,
    "efficientnet_lite": _efficientnet_lite,
}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet50": ("resnet", {"hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]}),
    "resnet18": (
        "resnet",
        {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"},
    ),
    "mobilenet": ("mobilenet_v1", {"depth_multiplier": 0.25, "tf_padding": False}),
    "efficientnet-lite0": ("efficientnet_lite", {"name": "efficientnet-lite0"}),
    "efficientnet-lite2": ("efficientnet_lite", {"name": "efficientnet-lite2"}),
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
