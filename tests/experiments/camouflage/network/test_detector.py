from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

pytest.importorskip("transformers")

from invertible_attention import Attention, InvertibleAttention
from invertible_attention.experiments.camouflage.models import MODELS, STUDY
from invertible_attention.experiments.camouflage.network import (
    Detector,
    load_detector,
    make_attention,
    random_backbone,
    save_detector,
)
from invertible_attention.experiments.camouflage.network.storage import NetworkDescription
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.published import TABLE_4


def _detector(name: str = "none", seed: int = 0, **options) -> Detector:
    torch.manual_seed(seed)
    return Detector(random_backbone("tiny"), MODELS[name], **options)


def test_study_rows_are_the_papers_and_ours() -> None:
    titles = [MODELS[name].title for name in STUDY]
    assert set(titles) == set(TABLE_4) | {"Certified Concatenation"}
    assert len(MODELS) == 13


def test_attention_of_every_row() -> None:
    for model in MODELS.values():
        layer = make_attention(model, 8, coefficient=0.5)
        if model.response is None:
            assert isinstance(layer, torch.nn.Identity)
        elif model.constraint == "ordinary":
            assert isinstance(layer, Attention)
            assert layer.response == model.response
        else:
            assert isinstance(layer, InvertibleAttention)
            assert layer.response == model.response
            assert bool(layer.lipschitz_bound() <= 0.5) == (model.constraint == "certified")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(64, 64), (70, 100)])
def test_logits_have_the_image_size(name, size) -> None:
    detector = _detector(name)
    logits = detector(torch.randn(2, 3, *size))
    assert logits.shape == (2, 1, *size)
    logits.mean().backward()
    missing = [key for key, p in detector.named_parameters() if p.grad is None]
    assert missing == []


def test_parameter_count_matches_the_paper() -> None:
    with torch.device("meta"):
        counts = Detector(random_backbone("resnet50"), MODELS["none"]).parameter_counts()
    assert counts["attention"] == 0
    assert round(counts["backbone"] / 1e6, 1) == 23.5
    assert round(counts["decoder"] / 1e6, 1) == 5.2


def test_decoder_matches_the_paper(float64) -> None:
    detector = _detector().eval()
    image = torch.randn(1, 3, 64, 64)
    r1, r2, r3, r4 = (reduce(x) for reduce, x in zip(detector.reduce, detector.backbone(image), strict=True))

    def up(x, factor=2):
        return interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)

    u4 = up(r4)
    a = up(detector.fuse3(detector.refine3(torch.cat((u4, r3), 1))))
    b = up(detector.fuse2(detector.refine2(torch.cat((up(u4), a, r2), 1))))
    logit = up(detector.predict(detector.refine1(torch.cat((up(up(u4)), up(a), b, r1), 1))), 4)
    assert torch.allclose(detector(image), logit, atol=1e-12)


def test_rows_with_equal_seed_share_initial_weights() -> None:
    base = _detector("none").state_dict()
    for name in ("concatenation/ordinary", "gaussian/certified"):
        state = _detector(name).state_dict()
        assert all(torch.equal(state[key], value) for key, value in base.items())
    assert not torch.equal(
        _detector("none", seed=1).state_dict()["predict.branches.0.weight"], base["predict.branches.0.weight"]
    )


def test_levels_select_where_attention_is_applied() -> None:
    detector = _detector("concatenation/relaxed", levels=(2, 4))
    assert list(detector.invertible_attention()) == [2, 4]
    assert isinstance(detector.attention[0], torch.nn.Identity)
    with pytest.raises(ValueError, match=r"levels must be .* got \(0, 5\)"):
        _detector(levels=(0, 5))


def _description(detector: Detector, name: str) -> NetworkDescription:
    return NetworkDescription(name, detector.backbone.description(), (1, 2, 3, 4), 0.7, 2, 64)


@pytest.mark.parametrize(
    "name", ["none", "gaussian/ordinary", "dot_product/relaxed", "concatenation/certified"]
)
def test_stored_network_round_trips(name, tmp_path) -> None:
    detector = _detector(name, coefficient=0.7, heads=2)
    image = torch.randn(2, 3, 64, 64)
    detector(image)
    detector.eval()
    save_detector(tmp_path / "model.safetensors", detector, _description(detector, name))
    state = torch.get_rng_state()
    again, description = load_detector(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert description == _description(detector, name)
    with torch.no_grad():
        # Ten times the first batch: a radius set again would differ.
        assert torch.equal(again(10 * image), detector(10 * image))


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(ExperimentError, match=r"no trained network at .*none"):
        load_detector(tmp_path / "none")
    (tmp_path / "damaged").write_bytes(b"?")
    with pytest.raises(ExperimentError, match="damaged or not a file of weights"):
        load_detector(tmp_path / "damaged")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(ExperimentError, match="does not hold a network of this command"):
        load_detector(tmp_path / "foreign")
