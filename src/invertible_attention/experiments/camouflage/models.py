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


def _models() -> dict[str, Model]:
    forms = {"": "ordinary", "Inv": "relaxed", "Certified ": "certified"}
    models = {"base": Model("Base")}
    for prefix, constraint in forms.items():
        for response, title in RESPONSES.items():
            name = f"{prefix.strip().lower()}-{response.replace('_', '-')}".removeprefix("-")
            models[name] = Model(prefix + title, response, constraint)
    return models


MODELS = _models()
"""Every model by the name the command line knows it by."""

ModelName = StrEnum("ModelName", {name.upper().replace("-", "_"): name for name in MODELS})
"""The names of :data:`MODELS`."""

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
