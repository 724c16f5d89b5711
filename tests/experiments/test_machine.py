"""Devices and machines other than the current one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from invertible_attention.experiments import metadata
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.metadata import commit, machine, versions
from invertible_attention.experiments.training import choose_device


def refuse(*_: Any, **__: Any) -> Any:
    raise OSError("not on this system")


def test_auto_selects_a_gpu_if_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ExperimentError, match="there is no device 'abacus' here"):
        choose_device("abacus")


def test_missing_package_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "PACKAGES", ("torch", "no-such-package"))
    assert set(versions()) == {"python", "invertible-attention", "torch"}


def test_no_commit_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", refuse)
    assert commit() is None


def test_uncommitted_changes_are_marked_and_other_repositories_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    top = str(Path(metadata.__file__).parents[3])
    answers = {"rev-parse --show-toplevel": top, "rev-parse --short=12 HEAD": "abc"}
    changed = {"status --porcelain -- .": " M residual.py"}

    def git(answers: dict[str, str]) -> Any:
        return lambda folder, *arguments: answers.get(" ".join(arguments))

    monkeypatch.setattr(metadata, "_git", git(answers))
    assert commit() == "abc"
    monkeypatch.setattr(metadata, "_git", git(answers | changed))
    assert commit() == "abc+"
    monkeypatch.setattr(metadata, "_git", git(answers | {"rev-parse --show-toplevel": "/elsewhere"}))
    assert commit() is None


def test_system_with_little_information_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr("os.sysconf", refuse)
    found = machine()
    assert found["memory_gib"] is None
    assert found["processor"]
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "flags : none\n")
    assert machine()["processor"] == found["processor"]
