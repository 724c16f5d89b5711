"""The photographs in the wheels of scikit-image and scikit-learn: real images without a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from ..._install import install_line
from ..errors import ExperimentError
from .source import ImageSource, open_image

__all__ = ["PHOTOGRAPHS", "BundledPhotographs", "bundled_file", "bundled_photograph"]

# The two motorcycle pictures are one scene from two sides and stay in one split. The packages' other
# pictures are gray, drawings, or seen through microscopes and telescopes.
PHOTOGRAPHS = {
    "train": (
        "skimage/data/astronaut.png",
        "skimage/data/coffee.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/motorcycle_right.png",
        "sklearn/datasets/images/china.jpg",
    ),
    "test": (
        "skimage/data/chelsea.png",
        "skimage/data/rocket.jpg",
        "sklearn/datasets/images/flower.jpg",
    ),
}


def bundled_file(path: str) -> Path:
    """Return the file of a photograph inside an installed package.

    Args:
        path: ``package/path/inside/it``, as in :data:`PHOTOGRAPHS`.

    Raises:
        ExperimentError: when the package is not installed.
    """
    package, _, inside = path.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ExperimentError(f"the photographs need the package {package}: {install_line('experiments')}")
    return Path(spec.submodule_search_locations[0]) / inside


def bundled_photograph(path: str) -> Image.Image:
    """Read a photograph from inside an installed package.

    The file is opened directly: ``skimage.data`` would download what it does not find.

    Args:
        path: see :func:`bundled_file`.

    Raises:
        ExperimentError: when the package, or the photograph in it, is not installed.

    Example:
        >>> bundled_photograph("skimage/data/chelsea.png").size
        (451, 300)
    """
    return open_image(bundled_file(path))


class BundledPhotographs(ImageSource):
    """The bundled photographs of one split.

    Args:
        split: ``"train"`` or ``"test"``; no photograph is in both.
    """

    def __init__(self, split: str):
        if split not in PHOTOGRAPHS:
            raise ValueError(f"split must be one of {sorted(PHOTOGRAPHS)}, got {split!r}")
        self.paths = PHOTOGRAPHS[split]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return bundled_photograph(self.paths[index])

    def name(self, index: int) -> str:
        """Return the photograph's path inside its package."""
        return self.paths[index]
