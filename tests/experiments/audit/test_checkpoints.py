"""Networks stored by the experiments are opened with their inputs, audited block by block, and attacked."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from invertible_attention.experiments.audit.audit_results import headline
from invertible_attention.experiments.audit.checkpoint_audit import audit_checkpoint
from invertible_attention.experiments.audit.checkpoints import open_checkpoint
from invertible_attention.experiments.audit.settings import Audit
from invertible_attention.experiments.density.configuration import Configuration as Density
from invertible_attention.experiments.density.data import load_data
from invertible_attention.experiments.density.network import build_model
from invertible_attention.experiments.density.training import initialize
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.files import read_json, write_json, write_tensors
from invertible_attention.experiments.reconstruct.configuration import Cell
from invertible_attention.experiments.reconstruct.configuration import Configuration as Reconstruct
from invertible_attention.experiments.reconstruct.network import build_network
from invertible_attention.experiments.reconstruct.network import initialize as set_radius

CELLS = [Cell("concatenation", kind, "column", 1) for kind in ("certified", "released")]


@pytest.fixture(scope="module")
def reconstructed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as ``reconstruct`` writes it, with untrained networks."""
    root = tmp_path_factory.mktemp("reconstruct")
    configuration = Reconstruct(size=(12, 12), variants=("concatenation/certified",))
    write_json(root / "configuration.json", configuration.to_json())
    images = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0)) - 0.5
    for cell in CELLS:
        network = build_network(cell, configuration, seed=3)
        set_radius(network, images)
        folder = root / "cells" / cell.folder
        write_tensors(folder / "model.safetensors", network.state_dict())
        write_tensors(folder / "images.safetensors", {"original": images})
        write_json(folder / "result.json", vars(cell))
    return root


@pytest.fixture(scope="module")
def density(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("density")
    return write_density(root, Density.choose(blocks=(1, 1), hidden_channels=4))


def write_density(root: Path, configuration: Density) -> Path:
    data = load_data(configuration)
    model: Any = build_model(configuration, data.shape, data.levels)
    if configuration.model == "i-resnet":
        initialize(model, data.train, 0)
    write_json(root / "configuration.json", configuration.to_json())
    write_tensors(root / "model.safetensors", model.state_dict())
    return root


def run(
    checkpoint: Path, output: Path, attack_steps: int = 0, overwrite: bool = False
) -> tuple[dict[str, Any], str]:
    stream = io.StringIO()
    console = Console(file=stream, width=100)
    settings = Audit(samples=1, attack_steps=attack_steps)
    results = audit_checkpoint(checkpoint, settings, output=output, overwrite=overwrite, console=console)
    return results, stream.getvalue()


@pytest.mark.slow
def test_reconstruction_networks_are_audited_on_their_stored_images(
    reconstructed: Path, tmp_path: Path
) -> None:
    results, printed = run(reconstructed, tmp_path / "audit")
    assert results == read_json(tmp_path / "audit" / "results.json")
    rows = {row["network"]: row for row in results["blocks"]}
    assert list(rows) == sorted(map(str, CELLS))
    certified = rows["concatenation/certified, repeat 1"]
    assert certified["passed"]
    assert certified["contraction"] == "certified"
    assert certified["certificate"] == pytest.approx(0.9)
    assert 0 < certified["lipschitz_estimate"] <= 0.9
    assert certified["relative_error"] < 1e-4
    assert certified["samples"] == 1
    assert certified["event_shape"] == [12, 6, 6]
    assert not certified["searched"]
    released = rows["concatenation/released, repeat 1"]
    assert released["certificate"] is None
    assert released["attack"] is None
    assert released["searched"]
    for word in (
        "concatenation/certified, repeat 1",
        "round-trip error",
        "contraction",
        "excluded",
        "Report:",
    ):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 100
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "concatenation/certified, repeat 1" in page
    assert "data:image/png;base64," in page
    assert (tmp_path / "audit" / "figures" / "lipschitz.png").is_file()


@pytest.mark.slow
def test_a_single_network_can_be_audited(reconstructed: Path, tmp_path: Path) -> None:
    folder = reconstructed / "cells" / CELLS[0].folder
    results, printed = run(folder, tmp_path / "audit", attack_steps=8)
    (row,) = results["blocks"]
    for kind in ("input", "weights"):
        assert row["attack"][kind]["ascents"] == 1
        assert row["lipschitz_estimate"] / row["certificate"] - 1e-6 <= row["attack"][kind]["ratio"] <= 1
    assert "ratio: input" in printed
    assert "no certificate was exceeded" in printed
    same, _ = run(folder / "model.safetensors", tmp_path / "file", attack_steps=8)
    assert same["blocks"] == results["blocks"]


@pytest.mark.parametrize(("ratio", "exceeded"), [(1.0, False), (1.001, True), (None, True)])
def test_ratio_above_one_or_nonfinite_counts_as_a_violation(ratio: float | None, exceeded: bool) -> None:
    row = {"passed": True, "contraction": "certified", "silently_wrong": 0, "exceeds_certificate": 0}
    found = headline([row | {"attack": {"input": {"ratio": 0.5}, "weights": {"ratio": ratio}}}])
    assert ("1 CERTIFICATES WERE EXCEEDED" in found) == exceeded


def test_wrong_certificate_is_detected(
    reconstructed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from invertible_attention import InvertibleAttention
    from invertible_attention.attention.branch import AttentionBranch

    for kind in (InvertibleAttention, AttentionBranch):
        monkeypatch.setattr(kind, "lipschitz_bound", lambda self: torch.tensor(0.1))
    folder = reconstructed / "cells" / CELLS[0].folder
    results, printed = run(folder, tmp_path / "audit", attack_steps=2)
    assert results["blocks"][0]["exceeds_certificate"] == 1
    assert not results["blocks"][0]["passed"]
    assert "1 CERTIFICATES WERE EXCEEDED" in printed


@pytest.mark.slow
def test_every_block_of_a_density_is_audited(density: Path, tmp_path: Path) -> None:
    results, _ = run(density, tmp_path / "audit", attack_steps=2)
    rows = results["blocks"]
    assert [row["block"] for row in rows] == [block.name for block in open_checkpoint(density)[0].blocks]
    # Two convolutional blocks, and the attention after the first scale.
    assert len(rows) == 3
    assert all(row["kind"] == "density" and row["passed"] for row in rows)
    assert all(row["inputs"].startswith("test images") for row in rows)
    assert all(0 < ratio["ratio"] <= 1 for row in rows for ratio in row["attack"].values())


def test_density_without_residual_blocks_is_refused(tmp_path: Path) -> None:
    write_density(tmp_path, Density.choose(model="realnvp", blocks=(1,), hidden_channels=4))
    with pytest.raises(ExperimentError, match="realnvp is not made of them"):
        open_checkpoint(tmp_path)


@pytest.mark.slow
def test_attention_of_a_detector_is_audited(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from invertible_attention.experiments.camouflage.models import MODELS
    from invertible_attention.experiments.camouflage.network import Detector, random_backbone, save_detector
    from invertible_attention.experiments.camouflage.network.storage import NetworkDescription

    for name in ("gaussian/certified", "none"):
        backbone = random_backbone("tiny")
        description = NetworkDescription(name, backbone.description(), (3, 4), 0.9, 1, 64)
        detector = Detector(backbone, MODELS[name], levels=(3, 4))
        detector.train()(torch.rand(2, 3, 64, 64))
        save_detector(tmp_path / name / "model.safetensors", detector, description)
    subject = open_checkpoint(tmp_path / "gaussian/certified", samples=2)[0]
    assert [block.name for block in subject.blocks] == ["attention.2", "attention.3"]
    assert subject.inputs == "bundled photographs"
    assert subject.blocks[0].x.shape == (2, 32, 4, 4)
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (70, 50), "red").save(images / "a.png")
    (subject,) = open_checkpoint(tmp_path / "gaussian/certified", samples=2, data_dir=images)
    assert subject.blocks[0].x.shape == (1, 32, 4, 4)
    with pytest.raises(ExperimentError, match="no invertible attention: it has none"):
        open_checkpoint(tmp_path / "none")


def test_non_checkpoint_is_refused(reconstructed: Path, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="there is no checkpoint .*nowhere"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ExperimentError, match="holds no trained network"):
        open_checkpoint(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "alone.safetensors")
    with pytest.raises(ExperimentError, match="nothing next to it that says what it is"):
        open_checkpoint(tmp_path / "alone.safetensors")
    cell = reconstructed / "cells" / CELLS[0].folder
    other = tmp_path / "cells" / "other"
    for name in ("model.safetensors", "images.safetensors"):
        write_tensors(other / name, load_file(cell / name))
    write_json(other / "result.json", vars(CELLS[1]))
    write_json(tmp_path / "configuration.json", read_json(reconstructed / "configuration.json"))
    with pytest.raises(ExperimentError, match="is not what its configuration says"):
        open_checkpoint(tmp_path)


def test_audit_is_not_overwritten_without_the_flag(reconstructed: Path, tmp_path: Path) -> None:
    folder = reconstructed / "cells" / CELLS[0].folder
    run(folder, tmp_path)
    with pytest.raises(ExperimentError, match="already holds this run"):
        run(folder, tmp_path)
    run(folder, tmp_path, overwrite=True)
