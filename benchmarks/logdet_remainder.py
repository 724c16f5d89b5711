"""Is the certified remainder of a log-determinant's series ever exceeded? A search over Jacobians and linear parts.

Jacobians are contractions of many kinds, some as bad as their constant allows; linear parts lie near them or anywhere
in the same ball. What each partial sum leaves out is compared with the bound it comes with. The true value is an
integral, by a Gauss-Legendre rule that is exact to rounding, and owes nothing to a series.

    python benchmarks/logdet_remainder.py --configurations 20000
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from invertible_attention.experiments.files import write_json
from invertible_attention.experiments.metadata import run_metadata
from invertible_attention.logdet.certified import PartialSum, partial_sums, short_partial_sums
from invertible_attention.logdet.linearization import Linearization

TERMS = 6
BATCH = 200
KINDS = ("orthogonal", "symmetric", "low rank", "multiple of 1", "any")


class Jacobian(NamedTuple):
    """Stands for a branch whose Jacobians are known."""

    matrices: Tensor

    def vjp(self, cotangent: Tensor, *, differentiable: bool = False) -> Tensor:
        return (self.matrices.mT @ cotangent[..., None])[..., 0]


class Dense(NamedTuple):
    """A linear part without structure."""

    matrices: Tensor

    def apply(self, v: Tensor, *, transposed: bool = False) -> Tensor:
        matrices = self.matrices.mT if transposed else self.matrices
        return (matrices @ v[..., None])[..., 0]

    def solve(self, r: Tensor, *, transposed: bool = False) -> Tensor:
        shifted = self.matrices + torch.eye(r.shape[-1], dtype=r.dtype)
        return torch.linalg.solve(shifted.mT if transposed else shifted, r)

    def log_determinant(self) -> Tensor:
        return torch.linalg.slogdet(self.matrices + torch.eye(self.matrices.shape[-1])).logabsdet


def contractions(kind: str, dim: int, c: float) -> Tensor:
    """Draw matrices whose norm is ``c``."""
    full = torch.randn(BATCH, dim, dim, dtype=torch.float64)
    if kind == "orthogonal":
        full = torch.linalg.qr(full).Q
    elif kind == "symmetric":
        full = full + full.mT
    elif kind == "low rank":
        full = full[..., :1] @ full[..., :1, :]
    elif kind == "multiple of 1":
        full = full[..., :1, :1].sign() * torch.eye(dim, dtype=torch.float64)
    return c * full / torch.linalg.matrix_norm(full, 2, keepdim=True)


def quadratic_logarithm(matrices: Tensor, v: Tensor) -> Tensor:
    """Return ``vᵀ log(I + A) v``, the integral of ``vᵀ A (I + tA)⁻¹ v``."""
    nodes, weights = leggauss(96)
    identity = torch.eye(v.shape[-1], dtype=v.dtype)
    image = (matrices.mT @ v[..., None])[..., 0]
    total = torch.zeros(len(v), dtype=v.dtype)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        total += weight * (image * torch.linalg.solve(identity + node * matrices, v)).sum(1)
    return total


def search(c: float, dim: int, kind: str, nearness: float) -> Iterator[tuple[str, Tensor]]:
    """Yield, per series and number of terms, what is left out in units of its bound."""
    j = contractions(kind, dim, c)
    other = contractions(KINDS[int(torch.randint(len(KINDS), ()))], dim, c)
    j0 = nearness * j + (1 - nearness) * other
    v = torch.randn(BATCH, dim, dtype=torch.float64)
    if torch.rand(()) < 0.5:
        v = v.sign()
    linear, part = cast(Linearization, Jacobian(j)), Dense(j0)
    m = torch.linalg.solve(torch.eye(dim, dtype=torch.float64) + j0, j - j0)
    cases: dict[str, tuple[Tensor, Iterator[PartialSum]]] = {
        "series": (quadratic_logarithm(j, v), partial_sums(linear, None, v, c)),
        "difference": (
            quadratic_logarithm(j, v) - quadratic_logarithm(j0, v),
            partial_sums(linear, part, v, c),
        ),
        "short series": (quadratic_logarithm(m, v), short_partial_sums(linear, part, v, c)),
    }
    for name, (truth, sums) in cases.items():
        for step in islice(sums, TERMS):
            rounding = 1e-12 * (1 + truth.abs() + step.expansion.value.abs())
            excess = (step.expansion.value - truth).abs() - rounding
            yield name, excess.clamp_min(0) / step.remainder.clamp_min(1e-300)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configurations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/logdet/remainder.json"))
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    worst: dict[str, float] = {}
    done = 0
    while done < arguments.configurations:
        c, nearness = 0.05 + 0.9 * torch.rand(()).item(), 1 - torch.rand(()).item() ** 4
        kind = KINDS[int(torch.randint(len(KINDS), ()))]
        for name, ratio in search(c, int(torch.randint(1, 13, ())), kind, nearness):
            worst[name] = max(worst.get(name, 0.0), ratio.max().item())
        done += BATCH
    results: dict[str, Any] = {
        "schema": "invertible-attention/logdet-remainder/1",
        "configurations": done,
        "terms": TERMS,
        "seed": arguments.seed,
        "largest_share_of_the_bound": worst,
        "run": run_metadata("cpu"),
    }
    print(json.dumps(worst))
    write_json(arguments.output, results)
    if max(worst.values()) > 1:
        raise SystemExit("a bound was exceeded")


if __name__ == "__main__":
    main()
