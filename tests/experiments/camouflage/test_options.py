"""Options of detection that cannot be: each is one line that says which."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("transformers")

from invertible_attention.cli import main
from invertible_attention.cli.checks import check_folders
from invertible_attention.experiments.camouflage.configuration import Configuration
from invertible_attention.experiments.camouflage.options import choose, parallel
from invertible_attention.experiments.errors import ExperimentError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict"], "--checkpoint is needed: which network?"),
        (["predict", "--checkpoint", "x"], "--data or --images is needed: which images?"),
        (["train", "--quick", "--batch-size", "0"], "batch"),
    ],
)
def test_what_is_missing_is_asked_for(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["camouflage", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_settings_out_of_range_are_usage_errors() -> None:
    import typer

    with pytest.raises(typer.BadParameter, match="batch_size"):
        choose(data=False, quick=True, batch_size=-1)
    assert isinstance(choose(data=False, quick=True), Configuration)


def test_only_folders_that_exist_pass(tmp_path: Path) -> None:
    check_folders(None, tmp_path)
    with pytest.raises(ExperimentError, match=r"there is no folder .*absent"):
        check_folders(tmp_path, tmp_path / "absent")


def test_a_batch_is_shared_evenly_or_not_at_all() -> None:
    import typer

    configuration = choose(data=False, quick=True, batch_size=4)
    spread = parallel(configuration, 2, 2, "auto")
    assert (spread.processes, spread.precision) == (4, configuration.precision)
    with pytest.raises(typer.BadParameter, match="--batch-size 4 cannot be shared evenly by 3 devices"):
        parallel(configuration, 3, 1, "auto")
