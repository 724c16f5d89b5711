"""Images and their masks, paired by the stem of their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.folder import IMAGE_SUFFIXES
from ...data.problems import Problem

__all__ = ["Collection", "Pair", "by_stem", "files_in", "pair_by_stem"]


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Args:
        name: the stem both files share.
        image: the image's file.
        mask: the mask's file, ``None`` where only a prediction is wanted.
    """

    name: str
    image: Path
    mask: Path | None


@dataclass(frozen=True)
class Collection:
    """The pairs of one dataset's training or test part.

    Args:
        name: what the dataset is called, as in Table 4.
        pairs: its pairs, by name.
        left_out: how many images were skipped, such as COD10K's images without a camouflaged object.
    """

    name: str
    pairs: tuple[Pair, ...]
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.pairs)


def files_in(folder: Path) -> list[Path]:
    """Return the image files directly in ``folder``, sorted; hidden ones are skipped."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def pair_by_stem(images: Sequence[Path], masks: Sequence[Path]) -> tuple[list[Pair], list[Problem]]:
    """Pair files by stem, never by their order, and say which have no partner or two.

    Example:
        >>> pairs, problems = pair_by_stem([Path("1.jpg"), Path("10.jpg")], [Path("10.png"), Path("2.png")])
        >>> [pair.name for pair in pairs], [str(problem) for problem in problems]
        (['10'], ['1.jpg has no mask', '2.png has no image'])
    """
    by_image, problems = by_stem(images)
    by_mask, doubled = by_stem(masks)
    problems += doubled
    problems += [Problem(path, "has no mask") for stem, path in by_image.items() if stem not in by_mask]
    problems += [Problem(path, "has no image") for stem, path in by_mask.items() if stem not in by_image]
    pairs = [Pair(stem, path, by_mask[stem]) for stem, path in by_image.items() if stem in by_mask]
    return pairs, problems


def by_stem(paths: Iterable[Path]) -> tuple[dict[str, Path], list[Problem]]:
    """Return files by the stem of their names, and those whose stem another has."""
    found: dict[str, Path] = {}
    problems = []
    for path in paths:
        first = found.setdefault(path.stem, path)
        if first is not path:
            problems.append(Problem(path, f"has the same name as {first.name}"))
    return found, problems
