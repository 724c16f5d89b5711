r"""Random vectors :math:`v` with :math:`\mathbb{E}[v v^\top] = I`, for Hutchinson's trace estimator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention._mapped import plain
from invertible_attention._precision import raised, wide_dtype

__all__ = [
    "ProbeDistribution",
    "average",
    "check_generator",
    "check_probes",
    "check_seed",
    "draw_probe",
    "inner_product",
    "sample_norm",
    "seeded_generator",
]

ProbeDistribution = Literal["gaussian", "rademacher"]


def check_probes(count: int, distribution: str) -> None:
    """Raise :class:`ValueError` for a number of probes or a distribution that does not exist."""
    if count < 1:
        raise ValueError(f"probes must be at least 1, got {count}")
    if distribution not in get_args(ProbeDistribution):
        raise ValueError(f"distribution must be one of {get_args(ProbeDistribution)}, got {distribution!r}")


def check_generator(generator: torch.Generator | None) -> None:
    """Raise :class:`RuntimeError` where a generator would not repeat the draws that are asked for again.

    :func:`torch.utils.checkpoint.checkpoint` evaluates a layer again during the backward pass. It restores the state
    of torch's global generators, so that they repeat their draws, but not that of any other generator.
    """
    recomputed = torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1
    if generator is not None and recomputed:
        raise RuntimeError(
            "a log-determinant estimator with its own generator cannot be evaluated again in the backward pass (by "
            "torch.utils.checkpoint): it would draw other probes than in the forward pass, and the gradient would not "
            "be that of the value. Use generator=None with torch.manual_seed, or no checkpoint: a block with "
            "memory_saving=True keeps no graph anyway"
        )


def check_seed(seed: int | None) -> None:
    """Raise :class:`ValueError` for a seed that does not give the same draws in every process."""
    if seed is not None and type(seed) is not int:
        raise ValueError(f"seed must be an integer or None, got {seed!r}")


def seeded_generator(x: Tensor, seed: int) -> torch.Generator:
    """Return a generator that is the same for the same batch, and another one for another layer's."""
    total = plain(x.detach().to(wide_dtype(x.device)).square().sum())
    return torch.Generator().manual_seed(hash((total.max().item(), seed)) % 2**63)


def draw_probe(x: Tensor, distribution: ProbeDistribution, generator: torch.Generator | None) -> Tensor:
    r"""Draw one probe of the shape, type and device of ``x``.

    Both have unit second moments, so :math:`\mathbb{E}[v^\top A v] = \operatorname{tr} A`. Rademacher
    entries have the smaller variance (:math:`2\sum_{i \ne j} A_{ij}^2` for a symmetric matrix, against
    :math:`2\|A\|_F^2`).
    """
    device = x.device if generator is None else generator.device
    if distribution == "gaussian":
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
    signs = torch.randint(0, 2, x.shape, generator=generator, dtype=torch.int8, device=device)
    return (2 * signs - 1).to(device=x.device, dtype=x.dtype)


def average(values: Sequence[Tensor], *, like: Tensor) -> Float[Tensor, " batch"]:
    """Return the mean of what the probes give; without probes, zero for every sample of ``like``."""
    if not values:
        return raised(like.new_zeros(len(like)))
    return values[0] if len(values) == 1 else torch.stack(list(values)).mean(0)


def inner_product(a: Tensor, b: Tensor) -> Float[Tensor, " batch"]:
    """Sum ``a · b`` over every axis but the first, in ``float32`` or better."""
    product = raised(a) * raised(b)
    return product.sum(tuple(range(1, product.ndim)))


def sample_norm(v: Tensor) -> Float[Tensor, " batch"]:
    """Return the Euclidean norm of each sample, without a graph."""
    return torch.linalg.vector_norm(v.detach(), dim=tuple(range(1, v.ndim)))
