"""The tests named on the page of guarantees exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guarantees.md"
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))))


def test_every_guarantee_names_its_tests() -> None:
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(sections) >= 8
    for section in sections:
        title = section.partition("\n")[0]
        assert "**Promise.**" in section, title
        assert "**Not promised.**" in section, title
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", section), title


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_test_named_in_the_guarantees_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
