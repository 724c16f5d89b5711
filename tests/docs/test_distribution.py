"""Contents of the source distribution and the wheel, which ``make dist`` builds."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = os.environ.get("DISTRIBUTIONS")
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="make dist builds the distributions and sets DISTRIBUTIONS"
)
PACKAGE = "src/invertible_attention"


def the_only(pattern: str) -> Path:
    (path,) = Path(FOLDER or ".").glob(pattern)
    return path


@pytest.fixture(scope="module")
def wheel() -> dict[str, bytes]:
    with zipfile.ZipFile(the_only("*.whl")) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def source() -> dict[str, int]:
    with tarfile.open(the_only("*.tar.gz")) as file:
        return {member.name.partition("/")[2]: member.size for member in file.getmembers() if member.isfile()}


@pytest.fixture(scope="module")
def metadata(wheel: dict[str, bytes]) -> Message:
    (name,) = (name for name in wheel if name.endswith(".dist-info/METADATA"))
    return HeaderParser().parsestr(wheel[name].decode())


def sources() -> set[str]:
    files = (
        path for path in (ROOT / PACKAGE).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    return {path.relative_to(ROOT / "src").as_posix() for path in files}


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel: dict[str, bytes]):
    assert {name for name in wheel if ".dist-info/" not in name} == sources()
    assert "invertible_attention/py.typed" in wheel


def test_the_wheel_has_the_license_and_the_command(wheel: dict[str, bytes]):
    assert any(re.search(r"\.dist-info/licenses/LICENSE$", name) for name in wheel)
    (entry,) = (wheel[name].decode() for name in wheel if name.endswith("entry_points.txt"))
    assert "invertible-attention = invertible_attention.cli:main" in entry


def test_the_core_needs_two_packages(metadata: Message):
    core = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert sorted(re.match(r"[\w-]+", need).group() for need in core) == ["jaxtyping", "torch"]
    assert {"camouflage", "demo", "dev", "docs", "experiments", "interop"} <= set(
        metadata.get_all("Provides-Extra")
    )
    assert metadata["Requires-Python"] == ">=3.11"


def test_the_source_distribution_can_be_tested_and_documented(source: dict[str, int]):
    for name in (
        "Makefile",
        "constraints.txt",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CITATION.cff",
        ".ci/run",
    ):
        assert name in source
    for folder in ("tests", "docs", "benchmarks"):
        files = (
            path for path in (ROOT / folder).rglob("*.py") if not {"_build", "__pycache__"} & set(path.parts)
        )
        missing = {path.relative_to(ROOT).as_posix() for path in files} - set(source)
        assert not missing
    assert any(name.startswith("results/") for name in source)
    assert {f"src/{name}" for name in sources()} <= set(source)


def test_build_artifacts_and_foreign_files_are_not_distributed(source: dict[str, int]):
    for name in source:
        assert not re.search(r"__pycache__|\.pyc$|_build/|\.parquet$|\.ckpt$", name), name
    assert sum(source.values()) < 20e6


def test_wheel_and_source_distribution_agree_on_the_version(metadata: Message):
    assert the_only("*.tar.gz").name == f"invertible_attention-{metadata['Version']}.tar.gz"
