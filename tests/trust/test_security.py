"""Files that are read cannot run code, escape their folder, or exhaust memory."""

from __future__ import annotations

import ast
import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin

import invertible_attention
from invertible_attention.experiments.audit.checkpoints import open_checkpoint
from invertible_attention.experiments.data.folder import folder_splits
from invertible_attention.experiments.data.source import decode, open_image
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.files import read_json, read_tensors

SOURCE = Path(invertible_attention.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))


class Malicious:
    """Touches a file when it is unpickled the usual way."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.victim,))


# The source


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call with the dotted name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


RUNS_CODE = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput"}
READS_PICKLES = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "joblib.load",
    "dill.load",
    "torch.jit.load",
}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "yaml"}
ARCHIVES = {"tarfile", "zipfile", "shutil.unpack_archive"}


def findings(source: str) -> list[str]:
    """Return what in a module's source could run or unpack what it reads."""
    tree = ast.parse(source)
    found = [f"imports {name}" for name in imports(tree) if name.partition(".")[0] in MODULES | ARCHIVES]
    for name, call in calls(tree):
        given = keywords(call)
        if name in RUNS_CODE | READS_PICKLES | ARCHIVES or name.endswith((".extractall", ".unpack_archive")):
            found.append(f"calls {name}")
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if "ckpt_path" in given and given.get("weights_only") != "True":
            found.append(f"{name} without weights_only=True")
        if given.get("shell", "False") != "False":
            found.append(f"{name} with shell=True")
        if given.get("allow_pickle", "False") != "False":
            found.append(f"{name} with allow_pickle")
        if given.get("trust_remote_code", "False") != "False":
            found.append(f"{name} with trust_remote_code")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_source_never_executes_or_unpacks_files_it_reads(path: Path) -> None:
    assert findings(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "trainer.fit(module, ckpt_path=path)",
        "subprocess.run(command, shell=True)",
        "np.load(path, allow_pickle=True)",
        "import tarfile",
        "archive.extractall(folder)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_source_check_finds_unsafe_calls(line: str) -> None:
    assert findings(line)
    assert not findings("model.eval()\ntorch.load(path, map_location='cpu', weights_only=True)\n")


# Files of weights


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    return tmp_path / "owned"


def write_pickle(path: Path, victim: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "torch":
        torch.save({"weight": Malicious(victim)}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(victim)))


def test_malicious_pickle_of_these_tests_runs_code(victim: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(victim)))
    assert victim.exists()


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_pickle_in_place_of_weights_is_refused(kind: str, tmp_path: Path, victim: Path) -> None:
    path = tmp_path / "run" / "model.safetensors"
    write_pickle(path, victim, kind)
    with pytest.raises(ExperimentError, match=r"model\.safetensors is damaged or not a file of weights"):
        read_tensors(path)
    for checkpoint in (path, path.parent):
        with pytest.raises(ExperimentError, match=r"model\.safetensors is damaged or not a file of weights"):
            open_checkpoint(checkpoint)
    assert not victim.exists()


@pytest.mark.parametrize("kind", ["torch", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_pickle_in_place_of_pretrained_weights_is_refused(
    kind: str, suffix: str, tmp_path: Path, victim: Path
) -> None:
    pytest.importorskip("transformers")
    from invertible_attention.experiments.camouflage.network import build_backbone, load_detector

    path = tmp_path / f"weights{suffix}"
    write_pickle(path, victim, kind)
    with pytest.raises(ExperimentError, match="damaged or not a file of weights"):
        build_backbone("resnet18", str(path))
    with pytest.raises(ExperimentError, match="damaged or not a file of weights"):
        load_detector(path)
    assert not victim.exists()


def test_checkpoint_with_foreign_objects_is_refused(tmp_path: Path) -> None:
    """Only tensors and plain containers are loaded, even where other classes would be harmless."""
    torch.save({"state_dict": torch.nn.Linear(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ExperimentError, match="damaged"):
        open_checkpoint(tmp_path)


# Names inside of files


def test_archive_escaping_its_folder_is_not_unpacked(tmp_path: Path) -> None:
    """torch's checkpoints are archives: they are read in memory, and no name in them becomes a path."""
    path = tmp_path / "run" / "model.safetensors"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped.txt", "out")
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(ExperimentError, match="damaged"):
        open_checkpoint(path)
    with pytest.raises(ExperimentError, match="cannot be read as an image"):
        open_image(path)
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not (tmp_path.parent / "escaped.txt").exists()


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/hostname", "a/../../secret.jpg"])
def test_file_list_cannot_name_outside_files(name: str, tmp_path: Path) -> None:
    root = tmp_path / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.jpg")
    (root / "list_eval_partition.txt").write_text(f"{name} 0\n")
    with pytest.raises(ExperimentError, match="line 1"):
        folder_splits(root)


@pytest.mark.parametrize("constraint", ["__import__('os').system('x')", "../../x", "builtins.eval"])
def test_a_configuration_cannot_name_code(constraint: str, tmp_path: Path) -> None:
    folder = tmp_path / "cells" / "cell"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "images.safetensors"):
        from safetensors.torch import save_file

        save_file({"original": torch.zeros(1, 3, 12, 12)}, folder / name)
    cell = {"response": "gaussian", "constraint": constraint, "normalization": "column", "repeat": 1}
    (folder / "result.json").write_text(json.dumps(cell))
    (tmp_path / "configuration.json").write_text(json.dumps({"dataset": "photos"}))
    with pytest.raises(ExperimentError, match="is not what its configuration says"):
        open_checkpoint(tmp_path)


def test_json_is_data_only(tmp_path: Path) -> None:
    path = tmp_path / "configuration.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ExperimentError, match="is damaged"):
        read_json(path)


# Images


def test_oversized_images_are_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (11_000, 11_000)).save(path)
    assert path.stat().st_size < 1_000_000
    for mode in ("RGB", "L", None):
        with pytest.raises(ExperimentError, match=r"bomb\.png is too large"):
            open_image(path, mode)


def test_decompression_bomb_among_pairs_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from invertible_attention.experiments.camouflage.data.checks import check_pair
    from invertible_attention.experiments.camouflage.data.pairs import Pair

    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    for image, mask in (("bomb.png", None), ("image.png", "bomb.png")):
        problem = check_pair(Pair("x", tmp_path / image, None if mask is None else tmp_path / mask))
        assert problem is not None
        assert "too large" in problem.reason
        assert problem.path.name == "bomb.png"


def test_compressed_text_in_an_image_cannot_exhaust_memory(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    information = PngImagePlugin.PngInfo()
    information.add_text("comment", "x" * 2_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(path, pnginfo=information)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(ExperimentError, match=r"text\.png cannot be read as an image"):
        open_image(path)


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>", b"%PDF-1.4"]
)
def test_executable_formats_are_not_run(content: bytes) -> None:
    with pytest.raises(ExperimentError, match=r"cannot be read as an image \(not an image\)"):
        decode(content, "upload")
