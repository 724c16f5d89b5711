"""Missing packages of an extra, and the command that installs them."""

import json
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest

from invertible_attention import _install
from invertible_attention._install import install_line, missing_packages
from invertible_attention.cli import main

METADATA = """Metadata-Version: 2.4
Name: invertible-attention
Version: 1
Requires-Dist: torch>=2.8
Provides-Extra: experiments
Requires-Dist: no-such-package>=3; extra == 'experiments'
Requires-Dist: numpy>=2; extra == 'experiments'
Provides-Extra: demo
Requires-Dist: invertible-attention[experiments]; extra == 'demo'
Requires-Dist: pyright[nodejs]>=1; python_version >= '3.0' and extra == 'demo'
Requires-Dist: no.other_package; extra == "demo"
"""


@pytest.fixture
def installed(tmp_path: Path):
    def make(**origin) -> Distribution:
        folder = tmp_path / "invertible_attention-1.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(METADATA)
        if origin:
            (folder / "direct_url.json").write_text(json.dumps(origin))
        return PathDistribution(folder)

    return make


def test_missing_packages_include_nested_extras(installed) -> None:
    own = installed()
    assert missing_packages("experiments", own) == ["no-such-package"]
    assert [name for name in missing_packages("demo", own) if name != "pyright"] == [
        "no-such-package",
        "no.other_package",
    ]
    assert missing_packages("nothing", own) == []


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        ({}, 'pip install "invertible-attention[demo]"'),
        ({"url": "file:///a%20b/c", "dir_info": {}}, 'pip install "/a b/c[demo]"'),
        ({"url": "file:///a/b", "dir_info": {"editable": True}}, 'pip install --editable "/a/b[demo]"'),
        (
            {"url": "file:///a/ia-1-py3-none-any.whl", "archive_info": {}},
            'pip install "invertible-attention[demo] @ file:///a/ia-1-py3-none-any.whl"',
        ),
        (
            {"url": "https://example.org/ia", "vcs_info": {"vcs": "git", "commit_id": "0"}},
            'pip install "invertible-attention[demo] @ git+https://example.org/ia"',
        ),
    ],
)
def test_install_hint_matches_the_package_source(installed, origin, line) -> None:
    assert install_line("demo", installed(**origin)) == line


def test_install_hint_in_a_checkout_is_short(installed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = installed(url=tmp_path.as_uri(), dir_info={})
    assert install_line("experiments", own) == 'pip install ".[experiments]"'


@pytest.mark.parametrize(
    ("command", "package"),
    [
        (["demo"], "no.other_package"),
        (["report", "nothing"], "no-such-package"),
        (["density", "train"], "no-such"),
    ],
)
def test_missing_packages_are_reported_before_a_run(
    installed, tmp_path: Path, monkeypatch, capsys, command: list[str], package: str
) -> None:
    own = installed()
    monkeypatch.setattr(_install, "_own", lambda: own)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(command) == 1
    error = capsys.readouterr().err
    assert package in error
    assert 'pip install "invertible-attention[' in error
    assert sorted(tmp_path.rglob("*")) == before
    assert main([*command, "--help"]) == 0


def test_density_of_a_missing_library_is_refused_before_running(
    installed, tmp_path: Path, monkeypatch
) -> None:
    from invertible_attention.experiments.density.configuration import Configuration
    from invertible_attention.experiments.density.run import train_run
    from invertible_attention.experiments.density.study import run_study
    from invertible_attention.experiments.errors import ExperimentError

    monkeypatch.setattr(_install, "_installed", lambda name: name != "zuko")
    base = Configuration.choose(quick=True)
    line = r"this needs the package zuko: pip install .*\[interop\]"
    with pytest.raises(ExperimentError, match=line):
        run_study(base, ("none", "maf"), seeds=1, output=tmp_path / "study")
    with pytest.raises(ExperimentError, match=line):
        train_run(Configuration.choose(quick=True, model="made"), output=tmp_path / "run")
    assert not list(tmp_path.iterdir())
