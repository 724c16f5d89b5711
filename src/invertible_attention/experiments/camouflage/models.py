"""The rows of Table 4: which attention the network has, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass

from ..published import RESPONSES
from ..variants import slug, variant

__all__ = ["EARLIER", "MODELS", "STUDY", "Model", "folder_today", "row_today"]


@dataclass(frozen=True)
class Model:
    """A row of the table.

    Args:
        title: what it is called in tables; the paper's names are keys of its Table 4.
        response: how pairs of positions are scored, ``None`` for no attention at all.
        constraint: ``"ordinary"`` (the non-local block), ``"relaxed"`` (the paper's invertible form) or
            ``"certified"`` (ours), ``None`` for no attention at all.
    """

    title: str
    response: str | None = None
    constraint: str | None = None

    @property
    def invertible(self) -> bool:
        """Whether the attention is meant to be inverted."""
        return self.constraint in ("relaxed", "certified")


FORMS = {"ordinary": ("", ""), "relaxed": ("Inv", "inv-"), "certified": ("Certified ", "certified-")}
"""The constraints, how titles begin, and how names began in earlier versions."""

MODELS = {"none": Model("Base")} | {
    variant(response, constraint): Model(prefix + title, response, constraint)
    for constraint, (prefix, _) in FORMS.items()
    for response, title in RESPONSES.items()
}
"""Every model by its variant."""

EARLIER = {"base": "none"} | {
    prefix + response.replace("_", "-"): variant(response, constraint)
    for constraint, (_, prefix) in FORMS.items()
    for response in RESPONSES
}
"""The variants by the names that they had in earlier versions."""

STUDY = (
    "none",
    "concatenation/ordinary",
    "concatenation/relaxed",
    "concatenation/certified",
    "dot_product/ordinary",
    "dot_product/relaxed",
    "gaussian/ordinary",
    "gaussian/relaxed",
    "embedded_gaussian/ordinary",
    "embedded_gaussian/relaxed",
)
"""The ten rows of the study: the paper's nine, and ours."""


def row_today(name: str) -> str:
    """Return the variant of a row, given that or the name it had in earlier versions."""
    return EARLIER.get(name, name)


def folder_today(folder: str) -> str:
    """Return the folder name of a network that has it, or had another one in earlier versions."""
    model, _, seed = folder.rpartition("-")
    return slug(EARLIER[model], int(seed)) if model in EARLIER and seed.isdigit() else folder
