"""Arithmetic on batches of flattened samples: norms, inner products, choices."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invertible_attention._precision import wide_dtype

__all__ = ["all_on_cpu", "choose", "inner_products", "sample_norm", "wide_dtype"]

_CHUNK = 2**14


def sample_norm(x: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
    """Return Euclidean norms per sample in the wide dtype; not finite where an entry is not."""
    wide = wide_dtype(x.device)
    if x.dtype != wide or x.shape[1] == 0:
        return torch.linalg.vector_norm(x, dim=1, dtype=wide)
    # Squares of float64 entries beyond 1e154 overflow, below 1e-154 vanish: scale by the largest entry.
    largest = torch.linalg.vector_norm(x, torch.inf, dim=1).clamp(min=torch.finfo(wide).tiny)
    return torch.linalg.vector_norm(x / largest[:, None], dim=1) * largest


def inner_products(
    columns: Float[Tensor, "batch columns features"],
    vectors: Float[Tensor, "batch vectors features"] | None = None,
) -> Float[Tensor, "batch columns vectors"]:
    """Return inner products per sample, in the wide dtype: ``float32`` would lose nearly dependent columns.

    Those of the columns with one another where there are no vectors.
    """
    wide = wide_dtype(columns.device)

    def product(columns: Tensor, vectors: Tensor | None) -> Tensor:
        columns = columns.to(wide)
        return torch.bmm(columns, (columns if vectors is None else vectors.to(wide)).mT)

    if columns.shape[2] <= _CHUNK:
        return product(columns, vectors)
    # In pieces: a wide copy of the whole would double its memory.
    pieces = columns.split(_CHUNK, dim=2)
    others = [None] * len(pieces) if vectors is None else vectors.split(_CHUNK, dim=2)
    return sum(product(*pair) for pair in zip(pieces, others, strict=True))  # pyright: ignore[reportReturnType]


def all_on_cpu(condition: Bool[Tensor, " batch"]) -> bool:
    """Return whether a condition holds for every sample, where asking costs less than acting sample by sample.

    Another device would have to be waited for: there the answer is no.
    """
    return condition.device.type == "cpu" and bool(condition.all())


def choose(
    condition: Bool[Tensor, " batch"],
    yes: Float[Tensor, "batch features"],
    no: Float[Tensor, "batch features"] | float,
) -> Float[Tensor, "batch features"]:
    """Return the samples of ``yes`` where the condition holds, else those of ``no``."""
    return torch.where(condition[:, None], yes, no)
