from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cyclopts")
pytest.importorskip("transformers")
pytest.importorskip("py_sod_metrics")

from safetensors.torch import load_file

from invertible_attention.cli import main

from ..conftest import blank_figures

TINY = ["--backbone", "tiny", "--size", "48", "--batch-size", "2", "--epochs", "1"]


def _train(dataset: Path, output: Path, *more: str) -> int:
    return main(["camouflage", "train", "--data", str(dataset), "--output", str(output), *TINY, *more])


@pytest.fixture(scope="module")
def base_run(tmp_path_factory, write_dataset) -> Path:
    """A finished run without attention."""
    folder = tmp_path_factory.mktemp("base")
    with blank_figures():
        assert _train(write_dataset(folder / "dataset"), folder / "run", "--model", "none") == 0
    return folder / "run"


def _error(capsys) -> str:
    message = capsys.readouterr().err.strip()
    assert message.count("\n") == 0
    return message


def test_help_names_every_part(capsys) -> None:
    assert main(["camouflage", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in ("train", "study", "predict", "evaluate", "measure"))


@pytest.mark.usefixtures("no_rendering")
def test_train_predict_evaluate(dataset, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert _train(dataset, run, "--model", "concatenation/relaxed", "--levels", "4") == 0
    assert "InvConcatenation" in capsys.readouterr().out
    maps = tmp_path / "maps"
    assert (
        main(["camouflage", "predict", "--checkpoint", str(run), "--data", str(dataset), "-o", str(maps)])
        == 0
    )
    assert sorted(path.name for path in (maps / "CAMO").iterdir()) == [f"test_{i}.png" for i in range(3)]
    for path in (maps / "CAMO").iterdir():
        assert path.read_bytes() == (run / "maps" / "CAMO" / path.name).read_bytes()
    # Both ways of evaluating give the scores of the run.
    trained = json.loads((run / "result.json").read_text())["scores"]
    ways = {
        "network": ["--checkpoint", str(run / "model.safetensors"), "--data", str(dataset)],
        "maps": ["--predictions", str(maps), "--masks", str(dataset)],
    }
    for name, arguments in ways.items():
        file = tmp_path / f"{name}.json"
        assert main(["camouflage", "evaluate", *arguments, "-o", str(file)]) == 0
        assert json.loads(file.read_text())["scores"] == trained


@pytest.mark.usefixtures("no_rendering")
def test_frozen_backbone_from_the_command_line(dataset, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert _train(dataset, run, "--model", "none", "--freeze-backbone", "--decoders", "1") == 0
    assert "steps/s (loader alone" in capsys.readouterr().out.replace("\n", " ")
    result = json.loads((run / "result.json").read_text())
    assert result["configuration"]["freeze_backbone"] is True
    assert result["training"]["steps_per_second"] > 0
    assert result["training"]["loader_steps_per_second"] > 0
    assert not (run / "cache").exists()


def test_images_without_a_dataset_layout_are_predicted(base_run, tmp_path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (50, 20), "green").save(photos / "leaf.jpg")
    maps = tmp_path / "maps"
    arguments = ["--checkpoint", str(base_run), "--images", str(photos), "--output", str(maps)]
    assert main(["camouflage", "predict", *arguments]) == 0
    with Image.open(maps / "photos" / "leaf.png") as image:
        assert (image.mode, image.size) == ("L", (50, 20))


def test_reference_maps_reproduce_the_reference_scores(data_dir, tmp_path) -> None:
    root = data_dir / "metric_check"
    if not root.is_dir():
        pytest.skip("needs metric_check/ in the folder of real data")
    file = tmp_path / "scores.json"
    arguments = [
        "--predictions",
        str(root / "CamMap" / "2020-CVPR-SINet"),
        "--masks",
        str(root / "CamDataset"),
    ]
    assert main(["camouflage", "evaluate", *arguments, "--output", str(file)]) == 0
    scores = json.loads(file.read_text())["scores"]["COD10K"]
    assert round(scores["s_measure"], 3) == 0.960
    assert round(scores["mae"], 3) == 0.023


def test_maps_are_evaluated_without_a_model(tmp_path) -> None:
    for name in ("maps", "masks"):
        (tmp_path / name).mkdir()
        mask = np.zeros((8, 8), dtype=np.uint8)
        mask[2:5, 2:5] = 255
        Image.fromarray(mask).save(tmp_path / name / "a.png")
    code = (
        "import sys; from invertible_attention.cli import main; "
        f"status = main(['camouflage', 'evaluate', '--predictions', {str(tmp_path / 'maps')!r}, "
        f"'--masks', {str(tmp_path / 'masks')!r}]); "
        "sys.exit(status or ('transformers' in sys.modules) or ('lightning' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def maps_and_masks(tmp_path) -> list[str]:
    """Eight maps of CAMO, six without a mask, one damaged; masks of NC4K without maps."""
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:5, 2:5] = 255
    held = {"maps/CAMO": "abcdefgh", "masks/CAMO": "ab", "masks/NC4K": "a"}
    for folder, names in held.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            Image.fromarray(mask).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "maps" / "CAMO" / "b.png").write_bytes(b"?")
    return ["evaluate", "--predictions", str(tmp_path / "maps"), "--masks", str(tmp_path / "masks")]


def test_skipped_maps_are_reported_and_stored(maps_and_masks, tmp_path, capsys) -> None:
    file = tmp_path / "scores.json"
    assert main(["camouflage", *maps_and_masks, "-o", str(file)]) == 1
    assert "6 files cannot be used" in _error(capsys)
    assert main(["camouflage", *maps_and_masks, "--leave-out-bad", "-o", str(file)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"images scored +1 *\n", printed)
    assert re.search(r"Skipped, 7: \S*c\.png has no mask; .*; and 2 more\n", printed)
    assert "Not scored, 1: NC4K has masks and no maps\n" in printed
    stored = json.loads(file.read_text())
    assert stored["images"] == {"CAMO": 1}
    assert len(stored["left_out"]) == 7
    assert "b.png cannot be read" in stored["left_out"][-1]
    assert stored["not_scored"] == ["NC4K has masks and no maps"]


def test_skipped_images_are_reported_and_stored(base_run, dataset, tmp_path, capsys) -> None:
    (dataset / "TestDataset" / "CAMO" / "GT" / "test_1.png").unlink()
    arguments = ["evaluate", "--checkpoint", str(base_run), "--data", str(dataset)]
    file = tmp_path / "scores.json"
    assert main(["camouflage", *arguments, "--leave-out-bad", "-o", str(file)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"images scored +2 *\n", printed)
    assert re.search(r"Skipped, 1: \S*test_1\.jpg has no mask\n", printed)
    stored = json.loads(file.read_text())
    assert (stored["images"], len(stored["left_out"])) == ({"CAMO": 2}, 1)


def test_unwritable_output_is_reported_before_scoring(maps_and_masks, tmp_path, capsys, monkeypatch) -> None:
    from invertible_attention.experiments.camouflage import applying

    monkeypatch.delattr(applying, "match_folders")
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "more" / "scores.json"
    for output, reason in ((below, f"{tmp_path / 'file'} is not a folder"), (tmp_path, "it is a folder")):
        assert main(["camouflage", *maps_and_masks, "--output", str(output)]) == 1
        assert f"cannot write {output}: {reason}" in _error(capsys)
    assert main(["camouflage", "measure", "--models", "none", "--output", str(below)]) == 1
    assert f"cannot write {below}" in _error(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "nowhere"], "there is no folder nowhere"),
        (["train", "--size", "16"], "--size"),
        (["train", "--levels", "7"], 'Invalid value "(7,)" for --levels. It must be among 1, 2, 3 and 4.'),
        (["train", "--model", "convolution"], "convolution"),
        (["study", "--devices", "2", "--workers", "2"], "give no --workers or --cluster too"),
        (
            ["train", "--data", "x", "--train-images", "5"],
            "train_images is for generated images, not for --data, got 5",
        ),
        (
            ["train", "--batch-size", "3", "--devices", "2"],
            "--batch-size 3 cannot be shared evenly by 2 devices",
        ),
        (["train", "--resume", "--overwrite"], "Mutually exclusive arguments: {--resume, --overwrite}"),
        (["evaluate"], "give --checkpoint with --data, or --predictions with --masks"),
        (["evaluate", "--predictions", "x"], "give --checkpoint with --data, or --predictions with --masks"),
        (
            ["evaluate", "--predictions", "x", "--masks", "y", "--data", "z"],
            "--predictions are scored against --masks alone: --data and --test-data go with --checkpoint",
        ),
        (["evaluate", "--checkpoint", "x"], "--data or --test-data is needed"),
        (["predict"], "--checkpoint requires an argument"),
        (["predict", "--checkpoint", "x"], "--data or --images is needed"),
        (["predict", "--checkpoint", "x", "--images", "y"], "there is no folder y"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["camouflage", *arguments]) != 0
    assert message in _error(capsys)


def _wrong_layout(root: Path) -> None:
    (root / "TrainDataset" / "Imgs").rename(root / "TrainDataset" / "photographs")
    (root / "TestDataset" / "CAMO" / "Imgs").rename(root / "TestDataset" / "CAMO" / "photographs")


def _missing_masks(root: Path) -> None:
    (root / "TrainDataset" / "GT" / "train_2.png").unlink()


def _corrupted_image(root: Path) -> None:
    path = root / "TrainDataset" / "Imgs" / "train_2.jpg"
    path.write_bytes(path.read_bytes()[:400])


def _mask_of_another_size(root: Path) -> None:
    Image.new("L", (20, 10)).save(root / "TrainDataset" / "GT" / "train_2.png")


def _empty_folder(root: Path) -> None:
    for path in (root / "TrainDataset" / "Imgs").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (
            _wrong_layout,
            r"dataset has no folder of images next to a folder of masks .* expected TrainDataset",
        ),
        (_missing_masks, r"1 file cannot be used: \S*Imgs/train_2\.jpg has no mask:"),
        (
            _corrupted_image,
            r"1 file cannot be used: \S*train_2\.jpg cannot be read as an image .*[Tt]runcated",
        ),
        (_mask_of_another_size, r"\S*GT/train_2\.png is 20×10 and its image train_2\.jpg is 40×30"),
        (_empty_folder, r"\S*TrainDataset/Imgs holds no images"),
    ],
)
def test_damaged_dataset_error_is_one_line(damage, pattern, dataset, tmp_path, capsys) -> None:
    damage(dataset)
    assert _train(dataset, tmp_path / "run") == 1
    message = _error(capsys)
    assert re.search(pattern, message), message
    assert not (tmp_path / "run").exists()


def _arguments(dataset: Path, output: Path, *more: str) -> list[str]:
    command = ["camouflage", "train", "--data", str(dataset), "--output", str(output)]
    return [*command, *TINY[:-1], "6", *more]


def _start(dataset: Path, output: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "invertible_attention", *_arguments(dataset, output, *more)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=output.parent
    )


def _finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()


@pytest.mark.slow
@pytest.mark.usefixtures("no_rendering", "one_thread")
def test_killed_run_resumes_to_the_same_weights(dataset, tmp_path, monkeypatch, start_command) -> None:
    monkeypatch.chdir(tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start_command(_arguments(dataset, parts))
    checkpoint = parts / "training.ckpt"
    while process.is_alive() and not checkpoint.exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (parts / "model.safetensors").exists()
    assert main(_arguments(dataset, parts, "--resume")) == 0
    assert main(_arguments(dataset, whole)) == 0
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert all((first[key] == value).all() for key, value in second.items())


@pytest.mark.slow
def test_two_processes_train_together(dataset, tmp_path) -> None:
    output = tmp_path / "run"
    arguments = ["--devices", "2", "--device", "cpu", "--model", "gaussian/certified", "--levels", "4"]
    _finish(_start(dataset, output, *arguments))
    result = json.loads((output / "result.json").read_text())
    # Six pairs, two a step, shared by two processes.
    assert result["training"]["steps"] == 18
    assert (output / "report.html").is_file()
