"""Forms, implementations and random problems the tests of attention share."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from invertible_attention.attention.functional import IMPLEMENTATIONS, attend
from invertible_attention.attention.functional.dispatch import check
from invertible_attention.attention.functional.form import Form

FORMS = [
    Form(combine, phi, normalization)
    for combine, phi, normalization in product(
        ("product", "sum"),
        ("exp", "elu_plus_one", "softplus", "elu", "identity"),
        ("column", "row", "all", "count"),
    )
]


def problem(
    form: Form,
    *,
    batch: int = 2,
    heads: int = 2,
    queries: int = 7,
    keys: int = 9,
    dim: int = 3,
    features: int = 4,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random query, key and value; scores of about ``scale``, kept positive where weights could cancel."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    if form.combine == "sum":
        dim, size = 1, scale
    else:
        size = (scale / dim**0.5) ** 0.5
    query, key = normal(batch, heads, queries, dim) * size, normal(batch, heads, keys, dim) * size
    if not form.positive and form.normalization != "count":
        # Weights of both signs can sum to nearly zero, where no two algorithms agree.
        query, key = query.abs() + 0.1 * size, key.abs() + 0.1 * size
    value = normal(batch, heads, keys, features)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def applicable(form: Form, tensors: tuple[Tensor, Tensor, Tensor] | None = None) -> list[str]:
    """Names of the implementations other than the reference that can compute a form."""
    given = check(*(tensors or problem(form)), form, None, None)
    return [
        candidate.name
        for candidate in IMPLEMENTATIONS
        if candidate.name != "reference" and candidate.refuses(given) is None
    ]


def run(
    form: Form, implementation: str, query: Tensor, key: Tensor, value: Tensor, **keywords: Tensor
) -> Tensor:
    return attend(
        query,
        key,
        value,
        combine=form.combine,
        phi=form.phi,
        normalization=form.normalization,
        implementation=implementation,
        **keywords,
    )


PAIRS = [(form, name) for form in FORMS for name in applicable(form)]
IDS = [f"{form.combine}-{form.phi}-{form.normalization}-{name}" for form, name in PAIRS]


def derivatives(form: Form, implementation: str, tensors: tuple[Tensor, ...], order: int) -> list[Tensor]:
    """Output, then gradients of random contractions up to an order, which expose any wrong derivative."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    generator = torch.Generator().manual_seed(1)

    def contract(results: list[Tensor]) -> Tensor:
        return sum(
            (result * torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result)).sum()
            for result in results
        )

    results = [run(form, implementation, *inputs)]
    found = [results[0].detach()]
    for step in range(order):
        results = list(
            torch.autograd.grad(
                contract(results),
                inputs,
                create_graph=step + 1 < order,
                allow_unused=True,
                materialize_grads=True,
            )
        )
        found += [result.detach() for result in results]
        if not any(result.requires_grad for result in results):
            break
    return found


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Euclidean error over the truth's norm."""
    truth = truth.double()
    return float((found.double() - truth).norm() / truth.norm().clamp(min=1e-300))
