"""Variants of a study: which attention, and other settings."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, get_args

from ..variants import divide
from .configuration import RESIDUAL, TRIANGULAR, Configuration, Model

__all__ = ["FAIR_STUDY", "ORDER_STUDY", "PLACES_AND_HEADS", "TABLE_3", "parse_variant"]

FAIR_STUDY = (
    "none",
    *(
        f"{attention}/{constraint}"
        for constraint in ("certified", "relaxed")
        for attention in ("concatenation", "dot_product", "embedded_gaussian", "gaussian")
    ),
)
"""i-ResNet with and without each kind of attention, under each constraint."""

PLACES_AND_HEADS = (
    "none",
    "embedded_gaussian/certified",
    "embedded_gaussian/certified/heads=4",
    "embedded_gaussian/certified/after=0:0+0:-1+1:-1+2:-1",
    "embedded_gaussian/certified/heads=4/position",
    "embedded_gaussian/certified/heads=4/position/after=0:0+0:-1+1:-1+2:-1",
)
"""What else attention can be given within its certificate."""

ORDER_STUDY = (
    "none",
    "none/hidden_channels=40",
    "embedded_gaussian/certified/heads=4",
    "triangular",
    "triangular/affine",
    "triangular/after=0:0+0:-1",
    "triangular/affine/after=0:0+0:-1",
)
"""Contraction against order as the reason to be invertible, and convolutions with as many more weights."""

TABLE_3 = (
    "none",
    "made",
    "maf",
    "cnf",
    "realnvp",
    "glow",
    "dot_product/certified",
    "concatenation/certified",
    "residual-flow/none",
    "triangular/affine/after=0:0+0:-1",
    "transformer-flow",
)
"""i-ResNet first, the reference; the paper's Table 3, what came after it (Residual Flow), and attention by order."""


def parse_variant(text: str, base: Configuration) -> Configuration:
    """Return ``base`` changed as a variant says.

    A variant is a list of words divided by ``/``: a model, a response or ``none``, a constraint, a normalization,
    ``affine``, ``position`` for the positional prior, ``after=0:-1+1:-1`` for places, ``blocks=4+4+4``, or
    ``setting=value`` for any number among the settings. ``triangular`` alone means Embedded Gaussian attention with
    four heads.

    Raises:
        ValueError: naming a word that means nothing, or a setting out of range.

    Example:
        >>> base = Configuration.choose()
        >>> variant = parse_variant("concatenation/relaxed/heads=2/after=0:0+0:-1", base)
        >>> variant.attention, variant.constraint, variant.heads, variant.attention_after
        ('concatenation', 'relaxed', 2, ('0:0', '0:-1'))
    """
    found, words = divide(text)
    changes: dict[str, Any] = {
        "attention" if name == "response" else name: word for name, word in found.items()
    }
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            said = _setting(name, value, base)
        elif word in get_args(Model):
            said = {"model": word}
        elif word == "position":
            said = {"position_prior": True}
        elif word == "affine":
            said = {"affine": True}
        else:
            raise ValueError(f"variant {text!r} has the word {word!r}, which means nothing here")
        if twice := changes.keys() & said.keys():
            raise ValueError(f"variant {text!r} gives {', '.join(twice)} twice")
        changes |= said
    if changes.get("model", RESIDUAL[0]) not in RESIDUAL:
        changes = {"attention": "none"} | changes
    if changes.get("constraint") == "triangular":
        changes = TRIANGULAR | changes
    return replace(base, **changes)


def _setting(name: str, value: str, base: Configuration) -> dict[str, Any]:
    if name == "after":
        return {"attention_after": tuple(value.split("+"))}
    kinds = {field.name: type(getattr(base, field.name)) for field in fields(base)} | {"width": int}
    readers: dict[str, Any] = {known: kind for known, kind in kinds.items() if kind in (int, float)}
    readers["blocks"] = lambda value: tuple(map(int, value.split("+")))
    if name not in readers:
        raise ValueError(f"{name!r} cannot be varied: choose among {', '.join(readers)}")
    try:
        return {name: readers[name](value)}
    except ValueError:
        what = "numbers with + between them" if name == "blocks" else "a number"
        raise ValueError(f"{name} must be {what}, got {value!r}") from None
