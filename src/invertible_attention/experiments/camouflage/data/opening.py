"""From folders to checked training and test collections."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...data.problems import REMEDY, Problem, report_problems
from ...data.source import image_size
from ...errors import ExperimentError
from .checks import check_pairs
from .layouts import Part, collect, find_parts
from .pairs import Collection, Pair, by_stem, files_in

__all__ = ["DetectionData", "check_collections", "open_data", "open_images"]

Report = Callable[[int, int], None]
"""What is reported of the checks: pairs done so far, and how many there are."""


@dataclass(frozen=True)
class DetectionData:
    """Training pairs, and the test sets they are not part of.

    Args:
        train: datasets to train on.
        test: datasets to test on.
        unusable: files that were skipped since they cannot be used.
        other_size: how many test masks are of another size than their image: maps are made at the mask's size.
    """

    train: tuple[Collection, ...]
    test: tuple[Collection, ...]
    unusable: tuple[Problem, ...] = ()
    other_size: int = 0

    @property
    def train_pairs(self) -> tuple[Pair, ...]:
        """The training pairs of all datasets."""
        return tuple(pair for collection in self.train for pair in collection.pairs)

    def fingerprint(self) -> str:
        """Return a digest of the datasets' names and files, by which a resumed run knows its data."""
        digest = hashlib.sha256()
        for split, collections in (("train", self.train), ("test", self.test)):
            for collection in collections:
                digest.update(f"{split}/{collection.name}\n".encode())
                for pair in collection.pairs:
                    digest.update(f"{pair.name} {pair.image.stat().st_size}\n".encode())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """Return what there is, in words."""
        train = ", ".join(f"{item.name} {len(item)}" for item in self.train) or "nothing"
        test = ", ".join(f"{item.name} {len(item)}" for item in self.test) or "nothing"
        dropped = sum(item.left_out for item in (*self.train, *self.test))
        note = f" ({dropped} images without a camouflaged object skipped)" if dropped else ""
        if self.unusable:
            note += f" ({len(self.unusable)} that cannot be used skipped)"
        if self.other_size:
            note += (
                f" ({self.other_size} masks of another size than their image: maps are scaled to the masks)"
            )
        return f"training on {train}; testing on {test}{note}"


def open_data(
    roots: Sequence[Path],
    *,
    train_roots: Sequence[Path] = (),
    test_roots: Sequence[Path] = (),
    need_train: bool = True,
    leave_out_bad: bool = False,
    listing: Path | None = None,
    report: Report | None = None,
) -> DetectionData:
    """Find, pair and check the images of an experiment.

    Args:
        roots: folders whose names distinguish training and test.
        train_roots: folders of which everything is for training.
        test_roots: folders of which everything is for testing.
        need_train: whether it is an error if there are no training images.
        leave_out_bad: continue without the files that cannot be used.
        listing: file for the whole list of unusable files.
        report: called while files are checked.

    Raises:
        ExperimentError: naming the files that cannot be used, or the folder whose layout is not understood.
    """
    parts = [part for root in roots for part in find_parts(root)]
    fatal = [
        Problem(
            part.images,
            "does not say whether it is for training or for testing: give --train-data or --test-data",
        )
        for part in parts
        if part.split is None
    ]
    parts += [replace(part, split="train") for root in train_roots for part in find_parts(root)]
    parts += [replace(part, split="test") for root in test_roots for part in find_parts(root)]
    fatal += _same_names([part for part in parts if part.split == "test"])
    found, problems = collect(parts)
    splits: dict[str, list[Collection]] = {"train": [], "test": []}
    for split, collections in splits.items():
        paired = [item for own, item in found if own == split and item.pairs]
        checked, wrong = check_collections(paired, same_size=split == "train", report=report)
        collections.extend(checked)
        problems += wrong
    problems = list(dict.fromkeys(problems))
    fatal += _overlap(splits["train"], splits["test"])
    if fatal or not leave_out_bad:
        report_problems([*fatal, *problems], listing=listing, remedy=REMEDY)
    if need_train and not splits["train"]:
        where = ", ".join(str(root) for root in (*roots, *test_roots))
        raise ExperimentError(f"there is nothing to train on in {where}: give --train-data")
    other_size = sum(
        image_size(pair.image) != image_size(pair.mask)
        for collection in splits["test"]
        for pair in collection.pairs
        if pair.mask is not None
    )
    return DetectionData(tuple(splits["train"]), tuple(splits["test"]), tuple(problems), other_size)


def open_images(root: Path) -> list[Collection]:
    """Find the images of a folder, in any layout or loose, with or without masks.

    Raises:
        ExperimentError: when there is none.
    """
    if not root.is_dir():
        raise ExperimentError(f"there is no folder {root}")
    if loose := files_in(root):
        named, problems = by_stem(loose)
        report_problems(problems)
        pairs = (Pair(stem, path, None) for stem, path in named.items())
        return [Collection(root.resolve().name, tuple(pairs))]
    collections, problems = collect(find_parts(root), masks=False)
    report_problems(problems)
    return [collection for _, collection in collections]


def check_collections(
    collections: Sequence[Collection], *, same_size: bool = True, report: Report | None = None
) -> tuple[list[Collection], list[Problem]]:
    """Decode every file; return the collections without what is damaged or mismatched, and what that is."""
    pairs = [pair for collection in collections for pair in collection.pairs]
    progress = None if report is None else lambda done: report(done, len(pairs))
    wrong = check_pairs(pairs, same_size=same_size, report=progress)
    bad = {pairs[index] for index in wrong}
    kept = [
        replace(collection, pairs=tuple(pair for pair in collection.pairs if pair not in bad))
        for collection in collections
    ]
    return [collection for collection in kept if collection.pairs], list(wrong.values())


def _same_names(parts: Sequence[Part]) -> list[Problem]:
    """Return test sets that another has the name of: their maps and scores would be one."""
    first: dict[str, Part] = {}
    return [
        Problem(part.images, f"is called {part.name} as {other.images} is: rename one of the folders")
        for part in parts
        if (other := first.setdefault(part.name, part)) is not part
    ]


def _overlap(train: Sequence[Collection], test: Sequence[Collection]) -> list[Problem]:
    trained = {pair.image.resolve() for collection in train for pair in collection.pairs}
    return [
        Problem(pair.image, "would be both trained and tested on: give separate folders")
        for collection in test
        for pair in collection.pairs
        if pair.image.resolve() in trained
    ]
