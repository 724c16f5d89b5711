from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from invertible_attention._install import install_line
from invertible_attention.cli import main
from invertible_attention.cli.application import build
from invertible_attention.cli.commands import COMMANDS

ONE = "concatenation/certified/row"


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run a command that must fail with one line on standard error; return its status and the line."""
    status = main(arguments)
    captured = capsys.readouterr()
    assert status != 0
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("invertible-attention: error: ")
    assert "Traceback" not in captured.err + captured.out
    return status, captured.err


def test_interrupted_command_says_how_to_resume(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from invertible_attention.experiments.audit import campaign

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(campaign, "search_group", interrupted)
    status = main(["audit", "--attack", "--configurations", "1", "--networks", "0", "-o", str(tmp_path)])
    assert status == 130
    assert "interrupted: the same command with --resume continues it" in capsys.readouterr().err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert command.name in shown
        assert command.help.split(".")[0][:40] in shown


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help(command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command.name, "--help"]) == 0
    assert "Usage: invertible-attention" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "shown", "hidden"),
    [
        (["audit"], "CHECKPOINT  model.safetensors", "--checkpoint"),
        (["report"], "report [OPTIONS] FOLDERS", "--folders"),
        (["camouflage", "predict"], "--data", "generated images"),
        (["camouflage", "evaluate"], "--data", "generated images"),
        (["camouflage", "measure"], "[default: random]", "without --data"),
    ],
)
def test_help_is_specific_to_the_command(
    capsys: pytest.CaptureFixture[str], arguments: list[str], shown: str, hidden: str
) -> None:
    assert main([*arguments, "--help"]) == 0
    text = capsys.readouterr().out
    assert shown in text
    assert hidden not in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"invertible-attention {version('invertible-attention')}\n"


@pytest.mark.parametrize("message", ["", "interrupted: the same command with --resume continues it"])
def test_interruption_message_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, message: str
) -> None:
    def interrupt(folders: object) -> None:
        raise KeyboardInterrupt(message) if message else KeyboardInterrupt

    monkeypatch.setattr("invertible_attention.experiments.report.results.find_results", interrupt)
    status, line = fail(capsys, "report", str(tmp_path))
    assert status == 130
    assert line == f"invertible-attention: error: {message or 'interrupted'}\n"


def test_help_is_shown_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "reconstruct" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [(), *((command.name,) for command in COMMANDS), ("camouflage", "train"), ("density", "study")]
)
def test_help_imports_nothing_slow(command: tuple[str, ...]) -> None:
    program = (
        f"import sys; from invertible_attention.cli import main; main([*{command}, '--help']);"
        "loaded = {name.partition('.')[0] for name in sys.modules};"
        "sys.exit(bool(loaded & {'torch', 'lightning', 'datasets', 'matplotlib', 'skimage', 'sklearn'}))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_runs_as_a_module() -> None:
    arguments = [sys.executable, "-m", "invertible_attention", "--version"]
    finished = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert finished.stdout.startswith("invertible-attention ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "many"], "--epochs"),
        (
            ["--variants", "gauss/certified"],
            "for --variants. It must be RESPONSE/CONSTRAINT[/NORMALIZATION] such",
        ),
        (["--variants", "gaussian/relaxed,none"], "for --variants"),
        (["--constraints", "certified", "loose"], 'Invalid value "loose" for --constraints'),
        (["--dataset", "imagenet"], 'Invalid value "imagenet" for --dataset'),
        (
            ["--size", "33", "32"],
            'Invalid value "(33, 32)" for --size. It must be two even numbers of at least 12.',
        ),
        (["--size", "32"], "--size"),
        (["--variants"], "--variants"),
        (["--coefficient", "1.5"], 'Invalid value "1.5" for --coefficient. It must be between 0 and 1.'),
        (["--seed", "-1"], "--seed"),
        (["--seed", "1.5"], "Invalid value for --seed: 1.5 is not a whole number."),
        (["--epcohs", "3"], "Unknown option: --epcohs. Did you mean --epochs?"),
        (["--resume", "--overwrite"], "Mutually exclusive arguments: {--resume, --overwrite}"),
        (["--color", "red"], "--color"),
        (["extra"], "extra"),
        (["--data-dir", "/nowhere/at/all"], '"/nowhere/at/all" does not exist.'),
    ],
)
def test_bad_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, line = fail(capsys, "reconstruct", *arguments)
    assert status == 2
    assert message in line
    assert "see invertible-attention reconstruct --help" in line


def test_mistyped_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    status, line = fail(capsys, "reconstrct")
    assert status == 2
    assert "reconstruct" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "warp"], "there is no device 'warp'"),
        (["--dataset", "folder"], "needs --data-dir"),
    ],
)
def test_failures_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    status, line = fail(capsys, "reconstruct", "--output", str(tmp_path / "out"), *arguments)
    assert status == 1
    assert message in line


def test_error_points_to_the_commands_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, line = fail(capsys, "density", "train", "--coefficient", "2")
    assert status == 2
    assert "see invertible-attention density train --help" in line


def test_missing_device_of_the_benchmark_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, line = fail(capsys, "benchmark", "--quick", "--device", "warp", "--output", str(tmp_path))
    assert status == 1
    assert "there is no device 'warp'" in line


def test_unwritable_output_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, line = fail(capsys, "reconstruct", "--output", str(tmp_path / "file" / "out"))
    assert status == 1
    assert "cannot write to" in line


def test_damaged_image_error_names_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(b"not a picture")
    arguments = [
        "--dataset",
        "folder",
        "--data-dir",
        str(tmp_path),
        "--train-images",
        "3",
        "--test-images",
        "3",
    ]
    status, line = fail(capsys, "reconstruct", "--output", str(tmp_path / "out"), *arguments)
    assert status == 1
    assert ".png cannot be read as an image" in line


def test_missing_package_error_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "invertible_attention.experiments.reconstruct.run", None)
    monkeypatch.setitem(sys.modules, "lightning", None)
    for name in [
        name for name in sys.modules if name.startswith("invertible_attention.experiments.reconstruct.run")
    ]:
        monkeypatch.delitem(sys.modules, name)
    for name in [
        name for name in sys.modules if name.startswith("invertible_attention.experiments.training")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    status, line = fail(capsys, "reconstruct", "--output", str(tmp_path))
    assert status == 1
    assert f"needs the package 'lightning': {install_line('experiments')}" in line


def test_missing_cyclopts_error_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    status, line = fail(capsys, "--help")
    assert status == 1
    assert "needs the package 'cyclopts'" in line


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--variants", ONE, "gaussian/released"], (ONE, "gaussian/released")),
        (["--variants", f"{ONE},gaussian/released", "--seed", "1"], (ONE, "gaussian/released")),
        ([f"--variants={ONE},gaussian/released"], (ONE, "gaussian/released")),
        (["--variants", ONE, "-o", "y"], (ONE,)),
        (["--variants", ONE, "--variants", "gaussian/released"], (ONE, "gaussian/released")),
    ],
)
def test_lists_take_several_values(given: list[str], expected: tuple[str, ...]) -> None:
    _, bound, _ = build().parse_args(["reconstruct", *given], exit_on_error=False, print_error=False)
    assert bound.arguments["given"].given()["variants"] == expected


@pytest.mark.slow
def test_run_from_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = [
        *("reconstruct", "--quick", "--output", str(tmp_path / "run")),
        *("--variants", ONE, "concatenation/released", "--size", "12", "12"),
        *("--train-images", "8", "--test-images", "4", "--epochs", "1", "--device", "cpu"),
    ]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "report.html" in captured.out
    assert (tmp_path / "run" / "results.json").is_file()
    status, line = fail(capsys, *arguments)
    assert status == 1
    assert "--resume continues it" in line
    # What is drawn again takes most of the time.
    monkeypatch.setattr("invertible_attention.experiments.reconstruct.run.draw_figures", lambda *_: [])
    assert main([*arguments, "--resume"]) == 0
    assert main([*arguments, "--overwrite"]) == 0
