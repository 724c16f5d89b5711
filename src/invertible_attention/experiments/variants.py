"""Which attention, as a short text: ``RESPONSE/CONSTRAINT[/WORD...]`` such as ``gaussian/relaxed``, or ``none``."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["Normalization", "Response", "divide", "slug", "variant"]

Response = Literal["gaussian", "embedded_gaussian", "dot_product", "concatenation"]
"""How pairs of tokens are scored (Table 1)."""

Constraint = Literal["certified", "relaxed", "released", "triangular", "ordinary"]
"""What makes attention invertible: our certificate, the paper's Section 2.4, the authors' released code as it is, or an
order of tokens; ``ordinary`` attention is not."""

Normalization = Literal["column", "row", "all"]
"""What attention weights sum to one along."""

MEANING = (
    dict.fromkeys(("none", *get_args(Response)), "response")
    | dict.fromkeys(get_args(Constraint), "constraint")
    | dict.fromkeys(get_args(Normalization), "normalization")
)


def divide(text: str) -> tuple[dict[str, str], list[str]]:
    """Return what a variant says of response, constraint and normalization, and its other words.

    Raises:
        ValueError: for two words about one of the three.

    Example:
        >>> divide("concatenation/relaxed/row/heads=2")
        ({'response': 'concatenation', 'constraint': 'relaxed', 'normalization': 'row'}, ['heads=2'])
    """
    found: dict[str, str] = {}
    others = []
    for word in text.split("/"):
        meaning = MEANING.get(word)
        if meaning is None:
            others.append(word)
        elif meaning in found:
            raise ValueError(f"variant {text!r} has two words for its {meaning}: {found[meaning]} and {word}")
        else:
            found[meaning] = word
    return found, others


def variant(response: str, constraint: str, normalization: str = "column") -> str:
    """Return the text of a variant; the released code has its own normalization.

    Example:
        >>> variant("gaussian", "certified"), variant("gaussian", "certified", "row")
        ('gaussian/certified', 'gaussian/certified/row')
    """
    named = constraint != "released" and normalization != "column"
    return "/".join((response, constraint, *([normalization] if named else [])))


def slug(text: str, number: int) -> str:
    """Return the folder name of a variant with a seed or the number of a repeat.

    Example:
        >>> slug("gaussian/certified/after=0:-1", 3)
        'gaussian-certified-after=0--1-3'
    """
    plain = "".join(c if c.isalnum() or c in "-=" else "-" for c in text).strip("-")
    return f"{plain}-{number}"
