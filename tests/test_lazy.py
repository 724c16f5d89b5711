"""Importing the package is cheap, and every public name is importable."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

PACKAGES = ("invertible_attention", "invertible_attention.interop")


@pytest.mark.parametrize(
    "program",
    [
        "import invertible_attention; invertible_attention.__version__; dir(invertible_attention)",
        "from invertible_attention.cli import main; assert main(['--version']) == 0",
        "from invertible_attention.cli import main; assert main(['--help']) == 0",
    ],
)
def test_torch_is_not_imported(program):
    program += "; import sys; print('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "False"


def test_compiler_is_not_imported_by_what_is_not_compiled():
    """It takes as long to import as PyTorch itself."""
    program = """
import sys, torch, invertible_attention as ia
layer = ia.InvertibleAttention(4)
z, logdet = layer.forward_and_logdet(torch.randn(2, 4, 3, 3))
logdet.sum().backward()
layer.inverse(z)
print('torch._dynamo' in sys.modules)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_importable(package):
    if package.endswith("interop"):
        for library in ("zuko", "nflows", "normflows", "pyro", "FrEIA"):
            pytest.importorskip(library, reason="needs pip install 'invertible-attention[interop]'")
    module = import_module(package)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        value = getattr(module, name)
        assert getattr(value, "__name__", name).rpartition(".")[2] == name
        assert vars(module)[name] is value  # asked for once
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_and_documentation_see_the_same_names(package):
    module = import_module(package)
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert isinstance(block.test, ast.Name)
    assert block.test.id == "TYPE_CHECKING"
    imported = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name for node in imported for alias in node.names} == set(module.__all__)


@pytest.mark.parametrize(
    ("package", "old", "new"),
    [
        ("invertible_attention.interop", "OnVectors", "FlattenedBijection"),
        ("invertible_attention.lipschitz", "SpectralNormBound", "SpectralNormConstraint"),
    ],
)
def test_renamed_names_warn(package, old, new):
    module = import_module(package)
    for _ in range(2):
        with pytest.warns(DeprecationWarning, match=f"{package}.{old} is now called {new}"):
            assert getattr(module, old) is getattr(module, new)
    assert old not in module.__all__
