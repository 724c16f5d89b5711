"""Arguments of the audit command: what runs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from invertible_attention.cli import main
from invertible_attention.experiments.audit import campaign, checkpoint_audit
from invertible_attention.experiments.audit.settings import Audit, Campaign
from invertible_attention.experiments.files import read_json
from invertible_attention.experiments.study import Workers


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(
        campaign, "run_campaign", lambda it, **options: calls.append({"campaign": it} | options)
    )
    monkeypatch.setattr(
        checkpoint_audit,
        "audit_checkpoint",
        lambda path, settings, **options: calls.append({"checkpoint": path, "settings": settings} | options),
    )
    return calls


def test_search_command(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    arguments = [
        "--configurations",
        "1000",
        "--networks",
        "3",
        "--seed",
        "7",
        "--workers",
        "2",
        "--steps",
        "20",
    ]
    assert main(["audit", "--attack", *arguments, "--resume", "-o", str(tmp_path)]) == 0
    (call,) = asked
    search = call["campaign"]
    assert search == Campaign(1000, 3, steps=20, seed=7)
    assert search.groups == 10
    # The same total distance in half as many steps.
    assert search.learning_rate == 0.1
    assert (call["workers"], call["resume"], call["output"]) == (Workers(2), True, tmp_path)


def test_checkpoint_command(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert main(["audit", str(tmp_path / "run"), "--samples", "3", "-o", str(tmp_path)]) == 0
    assert main(["audit", str(tmp_path / "run"), "--attack", "--quick", "-o", str(tmp_path)]) == 0
    assert [call["checkpoint"] for call in asked] == [tmp_path / "run"] * 2
    assert [call["settings"] for call in asked] == [Audit(samples=3), Audit(samples=2, attack_steps=40)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a CHECKPOINT to audit, or --attack"),
        (["--attack", "--resume", "--overwrite"], "Mutually exclusive arguments: {--resume, --overwrite}"),
        (["run", "--workers", "2"], "only for --attack without a CHECKPOINT: --workers"),
        (
            ["run", "--group-size", "5", "--steps", "2", "--resume"],
            "only for --attack without a CHECKPOINT: --group-size, --resume",
        ),
        (["--attack", "--samples", "5"], "are for a CHECKPOINT, not for random layers"),
        (["--attack", "--configurations", "0", "--networks", "0"], "nothing to search"),
        (["--attack", "--configurations", "-1"], "It must be at least 0."),
        (["--attack", "--seed", "x"], 'unable to convert "x" into int'),
    ],
)
def test_invalid_arguments_are_refused(
    arguments: list[str], message: str, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert asked == []


def test_missing_checkpoint_error_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["audit", str(tmp_path / "nowhere"), "-o", str(tmp_path / "out")]) == 1
    assert "there is no checkpoint" in capsys.readouterr().err


def test_stored_settings_are_those_of_earlier_versions() -> None:
    results = Path(__file__).parents[3] / "results" / "audit"
    stored = read_json(results / "attack" / "results.json")["configuration"]
    assert Campaign(steps=20).shared() == stored
    assert list(Campaign(steps=20).shared()["budget"]) == list(stored["budget"])
    for path in (results / "trained").glob("*/results.json"):
        stored = read_json(path)["configuration"]
        del stored["checkpoint"]
        assert Audit.from_json(stored).to_json() == stored
