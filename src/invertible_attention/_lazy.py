"""Lazy imports: names of a package that import their module on first use (PEP 562), or along with another package."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

__all__ = ["lazily", "together_with"]


def lazily(
    package: str, modules: Mapping[str, str], renamed: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: Its ``__name__``.
        modules: The submodule each name is found in; a submodule's own name stands for itself.
        renamed: Names of the last release and what they are called now; using one warns.
    """

    def getattribute(name: str) -> Any:
        if renamed and name in renamed:
            warnings.warn(
                f"{package}.{name} is now called {renamed[name]}; the old name will be removed in the next release",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(sys.modules[package], renamed[name])
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{modules[name]}")
        found = module if name == modules[name] else getattr(module, name)
        # From now on it is an ordinary attribute.
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return getattribute, names


def together_with(package: str, module: str) -> None:
    """Import a module as soon as a package has been imported: now, if it was already."""
    if package in sys.modules:
        import_module(module)
    else:
        sys.meta_path.insert(0, _Watch(package, module))


class _Watch(MetaPathFinder):
    """Import hook that imports a module right after a package."""

    def __init__(self, package: str, module: str) -> None:
        self.package, self.module = package, module

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return ``None`` except for the package, whose loader then imports the module too."""
        if fullname != self.package:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(package: Any) -> None:
                execute(package)
                if not _importing(self.module.partition(".")[0]):
                    import_module(self.module)

            loader.exec_module = exec_module
        return spec


def _importing(package: str) -> bool:
    """Whether any module of a package is in the middle of its import, where no other may be imported."""
    parts = [module for name, module in list(sys.modules.items()) if name.startswith(package + ".")]
    return any(getattr(part.__spec__, "_initializing", False) for part in parts)
