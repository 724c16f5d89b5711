"""The map of the code names existing files, and answers a maintainer's questions within two files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "invertible_attention"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = {
    question: re.findall(r"`([\w/*.]+)`", where)
    for question, where in re.findall(r"^\| (.+?\?) \| (.+) \|$", PAGE, re.MULTILINE)
}

# A maintainer's question, the row that answers it, and the name of the answer.
QUESTIONS = [
    (
        "Anderson takes a step that makes the residual worse: where does it fall back?",
        "Which step",
        "Anderson._judge",
    ),
    ("Where is the tolerance compared with the residual?", "When does a solver stop", "_Run.evaluate"),
    (
        "A bound is violated: where is the formula of the certificate?",
        "Where does the Lip",
        "attention_log_bound",
    ),
    ("Why did it take the N×N matrix for 5,000 tokens?", "Which implementation", "choose"),
    (
        "Who initializes the radius from the first batch?",
        "Which weights does attention",
        "AttentionBranch._set",
    ),
    ("Where is the random cut of the Russian roulette drawn?", "How is `log det", "RussianRoulette"),
    ("How do I let a user's own layer have a Lipschitz bound?", "any module", "register_lipschitz_bound"),
    (
        "Where is CMYK or 16-bit data turned into what a network takes?",
        "How is an image file decoded",
        "as_shown",
    ),
    ("Two workers want the same cell: who gets it?", "claimed by one of several", "Study"),
    ("A results file has a field that no table shows: where is the list?", "Which results files", "Kind"),
    ("Context in FrEIA arrives as c: where is it passed on?", "in another flow library", "FreiaModule"),
    ("--resume refuses images that changed: where are they compared?", "claimed by one of several", "_check"),
    ("What does the word affine in a variant mean?", "Where is a variant", "parse_variant"),
    ("Where is a mask with soft borders thresholded?", "How does a mask of", "binarize"),
    ("Two processes start from data: whose first batch counts?", "set from the first", "_over_processes"),
    ("A published V-score is mistyped: where is it?", "the paper's numbers", "ReconstructionRow"),
    ("May a configuration on the hub name a class of another package?", "on the hub", "_resolve"),
    ("The hint to install an extra is wrong: who writes it?", "packages of an extra", "install_line"),
    ("Where does the temperature of samples enter?", "Which base densities", "DiagonalGaussian"),
    ("Who words the error of a solve that failed?", "What does a solve return", "ConvergenceError"),
    ("How many digits has a number in a table?", "How is a number written", "format_number"),
    ("What does a new solver have to define?", "What must a solver provide", "Solver"),
    (
        "How often is the remainder of a log-determinant estimated?",
        "what the linear part leaves",
        "ShortSeries",
    ),
    ("vmap over an inverse gives wrong axes: where are they moved?", "under `vmap`", "outside_vmap"),
]


def files(question: str) -> list[Path]:
    """The files of a row, in its order."""
    return [path for entry in ROWS[question] for path in sorted(SOURCE.rglob(entry))]


@pytest.mark.parametrize("question", ROWS)
def test_files_of_every_question_exist(question: str):
    missing = [entry for entry in ROWS[question] if not list(SOURCE.rglob(entry.rstrip("/")))]
    assert ROWS[question]
    assert not missing


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:\w+/)+\w+\.py|_?\w+\.py)`", PAGE))))
def test_files_in_the_text_exist(name: str):
    assert list(SOURCE.rglob(name))


def defined(path: Path) -> set[str]:
    """Names of classes, functions and methods, methods also with their class."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)
            }
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
    return names


@pytest.mark.parametrize(
    ("question", "row", "answer"), QUESTIONS, ids=[question for question, *_ in QUESTIONS]
)
def test_question_is_answered_within_two_files(question: str, row: str, answer: str):
    (found,) = (asked for asked in ROWS if row in asked)
    tries = files(found)[:2]
    assert any(answer in defined(path) for path in tries), tries
