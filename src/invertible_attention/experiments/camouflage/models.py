"""The rows of Table 4: which attention the network has, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..published import RESPONSES

__all__ = ["MODELS", "STUDY", "Model", "ModelName"]


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


class ModelName(StrEnum):
    """The rows by the names the command line knows them by."""

    BASE = "base"
    CONCATENATION = "concatenation"
    DOT_PRODUCT = "dot-product"
    GAUSSIAN = "gaussian"
    EMBEDDED_GAUSSIAN = "embedded-gaussian"
    INV_CONCATENATION = "inv-concatenation"
    INV_DOT_PRODUCT = "inv-dot-product"
    INV_GAUSSIAN = "inv-gaussian"
    INV_EMBEDDED_GAUSSIAN = "inv-embedded-gaussian"
    CERTIFIED_CONCATENATION = "certified-concatenation"
    CERTIFIED_DOT_PRODUCT = "certified-dot-product"
    CERTIFIED_GAUSSIAN = "certified-gaussian"
    CERTIFIED_EMBEDDED_GAUSSIAN = "certified-embedded-gaussian"


FORMS = {"inv-": ("Inv", "relaxed"), "certified-": ("Certified ", "certified"), "": ("", "ordinary")}


def _model(name: str) -> Model:
    if name == ModelName.BASE:
        return Model("Base")
    prefix = next(prefix for prefix in FORMS if name.startswith(prefix))
    response = name.removeprefix(prefix).replace("-", "_")
    return Model(FORMS[prefix][0] + RESPONSES[response], response, FORMS[prefix][1])


MODELS = {str(name): _model(name) for name in ModelName}
"""Every model by name."""

STUDY = (
    "base",
    "concatenation",
    "inv-concatenation",
    "certified-concatenation",
    "dot-product",
    "inv-dot-product",
    "gaussian",
    "inv-gaussian",
    "embedded-gaussian",
    "inv-embedded-gaussian",
)
"""The ten rows of the study: the paper's nine, and ours."""
