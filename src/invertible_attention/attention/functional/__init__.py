"""Interim: the N×N form only; the dispatcher replaces this file."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from invertible_attention.attention.functional.phi import log_phi

__all__ = ["attend", "log_phi"]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    combine: str,
    phi: str,
    normalization: str,
    log_prior: Tensor | None = None,
    implementation: str = "auto",
) -> Tensor:
    score = query @ key.mT if combine == "product" else query + key.mT
    if phi in ("elu", "identity"):
        weight = functional.elu(score) if phi == "elu" else score
        axis = {"column": -2, "row": -1, "all": (-2, -1)}.get(normalization)
        total = key.shape[-2] if axis is None else weight.sum(axis, keepdim=True)
        return weight / total @ value
    score = log_phi(score, phi)
    if log_prior is not None:
        score = score + log_prior
    if normalization == "column":
        weight = score.softmax(-2)
    elif normalization == "row":
        weight = score.softmax(-1)
    else:
        weight = score.flatten(-2).softmax(-1).view_as(score)
    return weight @ value
