from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.report.migrate import migrate
from invertible_attention.experiments.report.results import find_results

from .conftest import CONTENTS, write

Folders = Callable[..., list[Path]]


@pytest.mark.parametrize("kind", CONTENTS)
def test_folder_is_recognized_by_its_file(folders: Folders, kind: str) -> None:
    (result,), _ = find_results(folders(kind))
    assert (result.kind.name, result.name) == (kind, kind)


def test_published_results_are_recognized(reconstructions: Path) -> None:
    found, _ = find_results([reconstructions.parent])
    assert {result.kind.name for result in found} >= {"reconstruct", "conditional"}
    assert {result.folder for result in found} >= {
        path for path in reconstructions.iterdir() if path.is_dir()
    }


def test_folders_are_listed_once(folders: Folders, tmp_path: Path) -> None:
    paths = folders("density", "benchmark")
    found, _ = find_results([*paths, tmp_path, *paths])
    assert [result.name for result in found] == ["density", "benchmark"]


def test_runs_inside_a_study_are_not_listed_separately(tmp_path: Path) -> None:
    study = write(tmp_path / "study", "density-study")
    write(study / "cells" / "one", "density")
    assert [result.kind.name for result in find_results([tmp_path])[0]] == ["density-study"]


def test_folders_with_equal_names_are_distinguished(tmp_path: Path) -> None:
    for path in ("a/run", "b/run", "b/other"):
        write(tmp_path / path, "density")
    assert [result.name for result in find_results([tmp_path])[0]] == ["a/run", "other", "b/run"]


def test_files_in_one_folder_are_distinguished(tmp_path: Path) -> None:
    write(tmp_path / "a", "camouflage-measure")
    write(tmp_path / "a", "camouflage")
    assert {result.name for result in find_results([tmp_path])[0]} == {"a", "a/resnet50-352"}


def test_folder_without_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("[]")
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(ExperimentError, match=rf"{tmp_path} holds no results"):
        find_results([tmp_path])
    with pytest.raises(ExperimentError, match="there is no folder .*absent"):
        find_results([tmp_path / "absent"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"schema": "invertible-attention/reconstruct/99"}, r"schema '.*reconstruct/99' is not known"),
        ({"a": 1}, "has no schema"),
        ([], "has no schema"),
    ],
)
def test_an_unknown_schema_is_refused_by_name(tmp_path: Path, content: object, reason: str) -> None:
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(content))
    for asked in (tmp_path, folder, folder / "results.json"):
        with pytest.raises(ExperimentError, match=rf"strange/results\.json: {reason}"):
            find_results([asked])
    # Next to known results it is skipped with a message, unless it was given explicitly.
    write(tmp_path / "known", "density")
    found, unknown = find_results([tmp_path])
    assert [result.name for result in found] == ["known"]
    assert len(unknown) == 1
    assert unknown[0].startswith("strange/results.json (")
    with pytest.raises(ExperimentError, match="strange"):
        find_results([tmp_path / "known", folder])


def test_other_files_of_this_program_are_not_skipped(tmp_path: Path) -> None:
    write(tmp_path / "known", "density")
    (tmp_path / "known" / "numbers.json").write_text('{"schema": "invertible-attention/later/1"}')
    (tmp_path / "known" / "notes.json").write_text('{"schema": "of something else"}')
    (line,) = find_results([tmp_path])[1]
    assert line.startswith("known/numbers.json")


def test_subfolders_of_results_are_searched(tmp_path: Path) -> None:
    write(tmp_path, "logdet")
    write(tmp_path / "below", "density")
    assert {result.kind.name for result in find_results([tmp_path])[0]} == {"logdet", "density"}


@pytest.mark.parametrize("kind", ["density", "conditional", "compiled", "benchmark"])
def test_files_without_a_schema_are_migrated_and_keep_their_numbers(tmp_path: Path, kind: str) -> None:
    name, build = CONTENTS[kind]
    today = build()
    earlier = {key: value for key, value in today.items() if key != "schema"}
    if kind != "density":
        earlier["metadata"] = earlier.pop("run")
    write(tmp_path, kind, earlier)
    assert migrate([tmp_path]) == [tmp_path / name]
    assert json.loads((tmp_path / name).read_text()) == today
    assert migrate([tmp_path]) == []


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("camouflage", {"none": "base", "concatenation/ordinary": "concatenation"}),
        ("camouflage-measure", {"concatenation/certified": "certified-concatenation"}),
        ("audit", {"gaussian/certified/row, repeat 2": "certified-row-gaussian-2", "none-0": "base-0"}),
        ("attack", {"dot_product/softplus": "dot_product, softplus"}),
    ],
)
def test_attention_is_named_as_today_by_migration(tmp_path: Path, kind: str, texts: dict[str, str]) -> None:
    name, build = CONTENTS[kind]
    today = build()
    if kind == "audit":
        today["blocks"] = [
            block | {"network": text} for block, text in zip(today["blocks"], texts, strict=True)
        ]
    if kind == "attack":
        today["tightest_by"]["response"] = {"dot_product/softplus": [0.5, 0.25]}
    earlier = json.dumps(today).replace(f"/{kind}/2", f"/{kind}/1")
    for text, before in texts.items():
        earlier = earlier.replace(f'"{text}"', f'"{before}"')
    write(tmp_path, kind, json.loads(earlier))
    with pytest.raises(ExperimentError, match="earlier version: .*--migrate"):
        find_results([tmp_path / name])
    assert migrate([tmp_path]) == [tmp_path / name]
    assert json.loads((tmp_path / name).read_text()) == today


def test_damaged_file_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ExperimentError, match=r"study\.json is damaged"):
        find_results([tmp_path])
