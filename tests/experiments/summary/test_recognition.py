from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.summary.recognition import KINDS, find_results

from .conftest import CONTENTS, write

Folders = Callable[..., list[Path]]


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_folder_is_recognised_by_its_file(folders: Folders, kind: str) -> None:
    (result,), _ = find_results(folders(kind))
    assert (result.kind, result.name) == (kind.removesuffix("-seeds"), kind)
    assert result.kind in KINDS


def test_published_results_are_recognised(reconstructions: Path) -> None:
    found, _ = find_results([reconstructions.parent])
    assert {result.kind for result in found} >= {"reconstruct", "conditional"}
    assert {result.folder for result in found} >= {
        path for path in reconstructions.iterdir() if path.is_dir()
    }


def test_every_folder_counts_once(folders: Folders, tmp_path: Path) -> None:
    paths = folders("density", "benchmark")
    found, _ = find_results([*paths, tmp_path, *paths])
    assert [result.name for result in found] == ["density", "benchmark"]


def test_runs_inside_a_study_are_not_results_of_their_own(tmp_path: Path) -> None:
    study = write(tmp_path / "study", "density-study")
    write(study / "cells" / "one", "density")
    assert [result.kind for result in find_results([tmp_path])[0]] == ["density-study"]


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for path in ("a/run", "b/run", "b/other"):
        write(tmp_path / path, "density")
    assert [result.name for result in find_results([tmp_path])[0]] == ["a/run", "other", "b/run"]


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("[]")
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(ExperimentError, match=rf"{tmp_path} holds no results"):
        find_results([tmp_path])
    with pytest.raises(ExperimentError, match="there is no folder .*absent"):
        find_results([tmp_path / "absent"])


@pytest.mark.parametrize("content", [{"schema": "invertible-attention/reconstruct/99"}, {"a": 1}, []])
def test_an_unknown_kind_is_named(tmp_path: Path, content: object) -> None:
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(content))
    with pytest.raises(ExperimentError, match=r"strange holds a results\.json of a kind this version"):
        find_results([tmp_path])
    with pytest.raises(ExperimentError, match=r"strange holds"):
        find_results([folder / "results.json"])
    # Beside results that are known it is left out, and said to be; unless it was asked for.
    write(tmp_path / "known", "density")
    found, left_out = find_results([tmp_path])
    assert [result.name for result in found] == ["known"]
    assert left_out == ["strange"]
    with pytest.raises(ExperimentError, match=r"strange holds"):
        find_results([tmp_path / "known", folder])


def test_other_files_of_this_program_are_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "known", "density")
    later = tmp_path / "later"
    later.mkdir()
    (later / "numbers.json").write_text('{"schema": "invertible-attention/later/1"}')
    (tmp_path / "known" / "scores.json").write_text('{"schema": "invertible-attention/camouflage-scores/1"}')
    assert find_results([tmp_path])[1] == ["later"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ExperimentError, match=r"study\.json is damaged"):
        find_results([tmp_path])
