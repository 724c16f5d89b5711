"""Failing disks, folders, images and checkpoints: one clear error each, without losing results."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from killing import check_whole, silent, tiny_density, train_density, weights

from invertible_attention.cli import main
from invertible_attention.experiments import files
from invertible_attention.experiments.density.configuration import Configuration as Density
from invertible_attention.experiments.density.run import evaluate_run, sample_run
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.files import atomic_path, read_tensors, write_json, write_tensors
from invertible_attention.experiments.study import folder as output_folder

KILLS = int(os.environ.get("INVERTIBLE_ATTENTION_KILLS", "2"))
"""How often each run is killed; 50 by hand."""

TINY = tiny_density(train_images=32, test_images=4, steps=6, evaluate_every=3, warmup=1)


def train(folder: Path, configuration: Density = TINY, **options: Any) -> dict[str, Any]:
    return train_density(folder, configuration, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("density") / "run"
    train(folder)
    return folder


def copy_of(folder: Path, to: Path, *names: str) -> Path:
    to.mkdir()
    for name in names:
        (to / name).write_bytes((folder / name).read_bytes())
    return to


# Kill −9


@pytest.mark.slow
def test_run_killed_at_random_times_matches_an_uninterrupted_one() -> None:
    # Both in one process: to import what they need takes longer than they do.
    experiments = ["reconstruct", "density"]
    program = [sys.executable, str(Path(__file__).with_name("killing.py")), *experiments]
    program += ["--moments", str(KILLS), "--seed", str(random.randrange(2**31))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{program}\n{done.stderr}"
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [outcome["experiment"] for outcome in outcomes] == experiments
    for outcome in outcomes:
        assert outcome["moments"] == KILLS
        assert outcome["mismatches"] == []


@pytest.fixture
def left_alone(tmp_path: Path) -> Path:
    """A small imitation of an uninterrupted run's folder."""
    write_json(tmp_path / "configuration.json", {})
    write_json(tmp_path / "results.json", {})
    (tmp_path / "report.html").write_text("<html></html>\n")
    write_tensors(tmp_path / "model.safetensors", {"weight": torch.zeros(2)})
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("results.json", b'{"a', "results.json is damaged"),
        ("report.html", b"<html>", "report.html is damaged"),
        ("model.safetensors", b"\x08", "model.safetensors is damaged"),
        ("model.safetensors", None, "other weights in model.safetensors"),
        ("training.ckpt", b"PK", "training.ckpt is damaged"),
        ("training.ckpt", b"PK", "training.ckpt is left behind"),
        (".training.ckpt.ga60p8a_.ckpt", b"PK", ".training.ckpt.ga60p8a_.ckpt is left behind"),
        ("samples.png", b"\x89PNG", "samples.png is damaged"),
        ("results.json", None, "results.json is missing"),
    ],
)
def test_damage_by_a_kill_is_detected(
    left_alone: Path, name: str, content: bytes | None, complaint: str
) -> None:
    expected = weights(left_alone)
    assert check_whole(left_alone, expected) == []
    if content is None:
        (left_alone / name).unlink()
    else:
        (left_alone / name).write_bytes(content)
    assert any(wrong.startswith(complaint) for wrong in check_whole(left_alone, expected))


# Full disks


def test_a_full_disk_names_the_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(
        ExperimentError, match=r"cannot write .*results\.json \(No space left on device\).*--resume"
    ):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def limited(write: Any) -> None:
    """Call with files limited to 4 kB, like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_safetensors(path: Path) -> None:
    write_tensors(path, {"weight": torch.zeros(10_000)})


def save_checkpoint(path: Path) -> None:
    with atomic_path(path) as temporary:
        torch.save({"weight": torch.zeros(10_000)}, temporary)


def save_picture(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    with atomic_path(path) as temporary:
        Image.fromarray(noise).save(temporary)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (save_safetensors, "model.safetensors"),
        (save_checkpoint, "training.ckpt"),
        (save_picture, "map.png"),
        (lambda path: write_json(path, [0.5] * 10_000), "results.json"),
    ],
)
def test_full_disk_is_one_clear_error_for_every_writer(tmp_path: Path, write: Any, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(ExperimentError, match=f"cannot write .*{name}"):
        limited(lambda: write(path))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    write(path)
    assert path.stat().st_size > 4096


def test_run_resumes_after_a_full_disk(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up at every file in turn: each run ends in one error, and the next gets further."""
    folder, sync, room = tmp_path / "run", os.fsync, [0]

    def fsync(descriptor: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)
    messages: list[str] = []
    for attempt in range(20):
        room[0] = attempt
        resume = (folder / "configuration.json").is_file()
        try:
            train(folder, resume=resume)
            break
        except ExperimentError as error:
            messages.append(str(error))
    assert len(messages) > 3
    assert all("No space left on device" in message for message in messages)
    assert (folder / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert (folder / "results.json").is_file()


# Folders that cannot be used

COMMANDS = {
    "reconstruct": ["reconstruct", "--quick", "--device", "cpu"],
    "density": ["density", "train", "--quick", "--device", "cpu"],
    "camouflage": ["camouflage", "train", "--quick", "--device", "cpu"],
    "audit": ["audit", "--attack", "--quick"],
}


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail with one line on standard error, and return the line."""
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("invertible-attention: error: ")
    return error


@pytest.mark.parametrize("command", COMMANDS)
def test_output_that_cannot_be_a_folder_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "camouflage":
        pytest.importorskip("transformers")
    (tmp_path / "file").write_text("mine")
    line = fail(capsys, *COMMANDS[command], "--output", str(tmp_path / "file"))
    assert "file" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", COMMANDS)
def test_output_in_use_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "camouflage":
        pytest.importorskip("transformers")
    monkeypatch.setattr(output_folder, "PATIENCE", 0.0)
    with FileLock(tmp_path / ".lock"):
        line = fail(capsys, *COMMANDS[command], "--output", str(tmp_path))
    assert "in use by another run" in line
    assert [entry.name for entry in tmp_path.iterdir()] == [".lock"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write to read-only folders")
@pytest.mark.parametrize("command", COMMANDS)
def test_read_only_output_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "cannot write to" in fail(capsys, *COMMANDS[command], "--output", str(tmp_path / "run"))
    finally:
        tmp_path.chmod(0o700)


# Checkpoints that cannot be used


def test_density_of_a_different_configuration_is_refused_and_kept(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    other = Density.from_json(TINY.to_json() | {"seed": 1})
    for resume in (False, True):
        with pytest.raises(ExperimentError, match="seed was 0, now 1"):
            train(finished, other, resume=resume)
    assert {path: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_training_checkpoint_is_reported(damage: str, finished: Path, tmp_path: Path) -> None:
    folder = copy_of(finished, tmp_path / "run", "configuration.json")
    whole = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, whole)
    content = {"truncated": whole.getvalue()[:2000], "empty": b"", "text": b"hello"}[damage]
    (folder / "training.ckpt").write_bytes(content)
    with pytest.raises(ExperimentError, match=r"training\.ckpt is damaged or not a checkpoint"):
        train(folder, resume=True)
    assert (folder / "training.ckpt").read_bytes() == content


@pytest.mark.parametrize("use", [evaluate_run, sample_run])
@pytest.mark.parametrize("damage", ["truncated", "text", "foreign"])
def test_damaged_density_weights_are_reported(damage: str, use: Any, finished: Path, tmp_path: Path) -> None:
    folder = copy_of(finished, tmp_path / "run", "configuration.json", "model.safetensors")
    path = folder / "model.safetensors"
    if damage == "foreign":
        save_file({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes(path.read_bytes()[:-100] if damage == "truncated" else b"hello")
    with pytest.raises(ExperimentError, match=r"model\.safetensors"):
        use(folder, device="cpu", console=silent())


def test_damaged_tensors_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in (b"", b"hello", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(ExperimentError, match=r"x\.safetensors is damaged or not a file of weights"):
            read_tensors(path)
    with pytest.raises(ExperimentError, match=r"there is no file .*absent"):
        read_tensors(tmp_path / "absent")


# Images that cannot be used


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "bomb"])
@pytest.mark.parametrize("command", ["reconstruct", "density"])
def test_unreadable_image_error_names_the_file(
    command: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{number}.png")
    whole = (images / "2.png").read_bytes()
    if damage == "bomb":
        Image.new("1", (20_000, 20_000)).save(images / "2.png")
    else:
        (images / "2.png").write_bytes(
            {"truncated": whole[: len(whole) // 2], "text": b"?", "empty": b""}[damage]
        )
    arguments = [
        "--dataset",
        "folder",
        "--data-dir",
        str(images),
        "--train-images",
        "2",
        "--test-images",
        "2",
    ]
    arguments += (
        ["--size", "16", "16", "--whole-images"] if command == "reconstruct" else ["--size", "16", "16"]
    )
    line = fail(capsys, *COMMANDS[command], *arguments, "--output", str(tmp_path / "out"))
    assert "2.png" in line
    assert ("too large" if damage == "bomb" else "cannot be read as an image") in line
