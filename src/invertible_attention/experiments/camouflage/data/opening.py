"""From folders to checked training and test collections."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import ExperimentError
from .checks import check_pairs
from .layouts import collect, find_parts
from .pairs import Collection, Pair, files_in
from .problems import Problem, report_problems

__all__ = ["DetectionData", "check_collections", "open_data", "open_images"]

REMEDY = "mend or remove these files, or go on without them with --leave-out-bad"

Report = Callable[[int, int], None]
"""What is told of the checks: pairs done so far, and how many there are."""


@dataclass(frozen=True)
class DetectionData:
    """Training pairs, and the test sets they are not part of.

    Args:
        train: datasets to train on.
        test: datasets to test on.
        unusable: files that were left out since they cannot be used.
    """

    train: tuple[Collection, ...]
    test: tuple[Collection, ...]
    unusable: tuple[Problem, ...] = ()

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
        note = f" ({dropped} images without a camouflaged object left out)" if dropped else ""
        if self.unusable:
            note += f" ({len(self.unusable)} that cannot be used left out)"
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
        roots: folders whose names tell training from test.
        train_roots: folders of which everything is for training.
        test_roots: folders of which everything is for testing.
        need_train: whether it is an error if there are no training images.
        leave_out_bad: go on without the files that cannot be used.
        listing: file for the whole list of unusable files.
        report: called while files are checked.

    Raises:
        ExperimentError: naming the files that cannot be used, or the folder whose layout is not understood.
    """
    parts = [part for root in roots for part in find_parts(root)]
    unclear = [part for part in parts if part.split is None]
    if unclear:
        raise ExperimentError(
            f"nothing says whether {unclear[0].images} is for training or for testing: "
            "give its folder with --train-data or --test-data"
        )
    parts += [replace(part, split="train") for root in train_roots for part in find_parts(root)]
    parts += [replace(part, split="test") for root in test_roots for part in find_parts(root)]
    found, problems = collect(parts)
    splits: dict[str, list[Collection]] = {"train": [], "test": []}
    for split, collections in splits.items():
        paired = [item for own, item in found if own == split and item.pairs]
        checked, wrong = check_collections(paired, report=report)
        collections.extend(checked)
        problems += wrong
    problems = list(dict.fromkeys(problems))
    if not leave_out_bad:
        report_problems(problems, listing=listing, remedy=REMEDY)
    if need_train and not splits["train"]:
        where = ", ".join(str(root) for root in (*roots, *test_roots))
        raise ExperimentError(f"there is nothing to train on in {where}: give --train-data")
    _refuse_overlap(splits["train"], splits["test"])
    return DetectionData(tuple(splits["train"]), tuple(splits["test"]), tuple(problems))


def open_images(root: Path) -> list[Collection]:
    """Find the images of a folder, in any layout or loose, with or without masks.

    Raises:
        ExperimentError: when there is none.
    """
    if not root.is_dir():
        raise ExperimentError(f"there is no folder {root}")
    loose = files_in(root)
    if loose:
        name = root.resolve().name
        return [Collection(name, tuple(Pair(path.stem, path, None) for path in loose))]
    collections, problems = collect(find_parts(root), masks=False)
    report_problems(problems)
    return [collection for _, collection in collections]


def check_collections(
    collections: Sequence[Collection], *, report: Report | None = None
) -> tuple[list[Collection], list[Problem]]:
    """Decode every file; return the collections without what is damaged or mismatched, and what that is."""
    pairs = [pair for collection in collections for pair in collection.pairs]
    wrong = check_pairs(pairs, report=None if report is None else lambda done: report(done, len(pairs)))
    bad = {pairs[index] for index in wrong}
    kept = [
        replace(collection, pairs=tuple(pair for pair in collection.pairs if pair not in bad))
        for collection in collections
    ]
    return [collection for collection in kept if collection.pairs], list(wrong.values())


def _refuse_overlap(train: Sequence[Collection], test: Sequence[Collection]) -> None:
    trained = {pair.image.resolve() for collection in train for pair in collection.pairs}
    for collection in test:
        for pair in collection.pairs:
            if pair.image.resolve() in trained:
                raise ExperimentError(
                    f"{pair.image} would be both trained and tested on: give separate folders"
                )
