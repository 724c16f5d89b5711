"""The API reference lists every public name once."""

from __future__ import annotations

import inspect
import pkgutil
import sys
from importlib import import_module
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="docs/ is not part of this copy")
sys.path.insert(0, str(DOCS / "_extensions"))


@pytest.fixture(scope="module")
def api():
    pytest.importorskip("sphinx", reason="needs the extra docs")
    import public_api

    return public_api


def test_every_public_package_has_a_page(api):
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.rst"))
    for package in api.PACKAGES:
        assert f".. public-api:: {package}\n" in pages, package


def test_every_package_of_the_library_is_public_or_an_experiment(api):
    import invertible_attention

    for found in pkgutil.iter_modules(invertible_attention.__path__, "invertible_attention."):
        if found.ispkg and found.name.rpartition(".")[2] not in {"cli", "experiments"}:
            assert found.name in api.PACKAGES


def test_every_name_at_the_top_is_documented_where_the_overview_links_to(api):
    for name in api.public_names("invertible_attention"):
        place = api.home("invertible_attention", name)
        assert place in api.PACKAGES
        assert (place == "invertible_attention") == (name == "Bijection"), "give it a page of its own"
        assert getattr(import_module(place), name) is getattr(import_module("invertible_attention"), name)


def test_every_public_function_and_class_has_a_docstring(api):
    for package in api.PACKAGES:
        for name in api.public_names(package):
            found = getattr(import_module(package), name)
            if inspect.isclass(found) or inspect.isroutine(found):
                assert inspect.getdoc(found), f"{package}.{name}"
