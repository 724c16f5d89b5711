"""What pages are made of: sections of sentences, tables and pictures."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .figures import DPI, Figure, FigureKind
from .sources import Source
from .table import Table

__all__ = ["Picture", "Section", "anchor", "stored_pictures"]


@dataclass(frozen=True)
class Picture:
    """A figure and where it comes from.

    Args:
        figure: what is shown.
        sources: where its numbers come from.
        pixelated: whether to keep the pixels of small images sharp.
        scale: CSS pixels (1/96 inch) per pixel; by default letters are as large as in the other figures.
    """

    figure: Figure
    sources: tuple[Source, ...]
    pixelated: bool = False
    scale: float = 96 / DPI

    @property
    def repeats(self) -> str:
        """Which of the paper's figures it repeats, as that says; empty for none."""
        return self.figure.repeats

    @property
    def width(self) -> int:
        """Width on the page in CSS pixels."""
        (pixels,) = struct.unpack(">I", self.figure.png[16:20])
        return round(pixels * self.scale)


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        title: heading.
        lead: paragraphs that say what was found.
        tables: the first before the pictures, the details after them.
        pictures: called when they are shown, for drawing takes time.
        findings: paragraphs that explain the pictures.
        notes: small print.
    """

    title: str
    lead: Sequence[str] = field(default_factory=tuple)
    tables: Sequence[Table] = field(default_factory=tuple)
    pictures: Callable[[], Sequence[Picture]] = tuple
    findings: Sequence[str] = field(default_factory=tuple)
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def anchor(self) -> str:
        """What links to the section point at."""
        return anchor(self.title)


def anchor(title: str) -> str:
    """Return a title as an address within the page.

    Example:
        >>> anchor("Table 2, CIFAR-10: reconstruction")
        'table-2-cifar-10-reconstruction'
    """
    words = "".join(letter if letter.isalnum() else " " for letter in title.lower())
    return "-".join(words.split())


def stored_pictures(
    folder: Path, name: str, kinds: Sequence[FigureKind], source: Source
) -> Callable[[], list[Picture]]:
    """Return what reads the figures in a result's folder, in the order of their kinds.

    Args:
        folder: where they are: a run keeps them in ``figures``, published results next to the numbers.
        name: what the folder is called on the page.
        kinds: which figures there may be.
        source: where their numbers come from.
    """

    def read() -> list[Picture]:
        found = []
        for kind in kinds:
            pattern = f"{kind.name}.png"
            for path in sorted((folder / "figures").glob(pattern)) or sorted(folder.glob(pattern)):
                figure = kind.of(path.read_bytes(), name=path.stem, about=f"{name}: ")
                scale = 1.0 if kind.tiles else Picture.scale
                found.append(Picture(figure, (source,), kind.pixelated or kind.tiles, scale))
        return found

    return read
