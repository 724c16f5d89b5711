from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.files import (
    atomic_path,
    read_json,
    remove_unfinished,
    write_bytes,
    write_json,
)


def test_failed_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half a res")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_readers_never_see_a_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent  # same file system: the rename is atomic
    assert path.read_text() == "whole"


def test_missing_folders_are_created_and_umask_is_respected(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        write_bytes(tmp_path / "a" / "b" / "c.bin", b"x")
    finally:
        os.umask(umask)
    assert (tmp_path / "a" / "b" / "c.bin").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["result.json", "training.ckpt", "a.b_c.png", ".hidden.json"])
def test_only_partial_files_are_removed(tmp_path: Path, name: str) -> None:
    mine = ["notes.txt", ".lock", ".bashrc", ".config.personal", ".a.b.c", ".report.html.personal.json", name]
    with atomic_path(tmp_path / "cells" / name) as temporary:
        temporary.write_text("half a res")
        os.link(temporary, tmp_path / "cells" / "kept")
        killed_at = temporary
    os.link(tmp_path / "cells" / "kept", killed_at)  # as after a kill
    for other in mine:
        (tmp_path / other).touch()
    remove_unfinished(tmp_path)
    assert not killed_at.exists()
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == sorted(["kept", name])
    assert all((tmp_path / other).is_file() for other in mine)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_json_numbers_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"x": value})
    assert not list(tmp_path.iterdir())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    write_json(path, value)
    assert read_json(path) == value


def test_truncated_json_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"a": [1, 2, 3]})[:-3])
    with pytest.raises(ExperimentError, match=r"result\.json is damaged"):
        read_json(path)
