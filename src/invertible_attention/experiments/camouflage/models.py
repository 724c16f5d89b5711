"""The rows of Table 4: which attention the network has, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..published import RESPONSES

__all__ = ["MODELS", "STUDY", "VARIANTS", "Model", "ModelName"]


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


ModelName = Literal[
    "base",
    "concatenation",
    "dot-product",
    "gaussian",
    "embedded-gaussian",
    "inv-concatenation",
    "inv-dot-product",
    "inv-gaussian",
    "inv-embedded-gaussian",
    "certified-concatenation",
    "certified-dot-product",
    "certified-gaussian",
    "certified-embedded-gaussian",
]
"""The rows as the command line calls them."""

FORMS = {"inv-": ("Inv", "relaxed"), "certified-": ("Certified ", "certified"), "": ("", "ordinary")}


def _model(name: str) -> Model:
    if name == "base":
        return Model("Base")
    prefix = next(prefix for prefix in FORMS if name.startswith(prefix))
    response = name.removeprefix(prefix).replace("-", "_")
    return Model(FORMS[prefix][0] + RESPONSES[response], response, FORMS[prefix][1])


MODELS = {name: _model(name) for name in get_args(ModelName)}
"""Every model by name."""

VARIANTS = {f"{model.response}/{model.constraint}": name for name, model in MODELS.items()} | {"none": "base"}
"""The same as the variants of a density study write them."""

STUDY: tuple[ModelName, ...] = (
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
