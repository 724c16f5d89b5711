"""What is measured: the paper's four responses, each computed by this library and by others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...attention.functional import attend

__all__ = ["IMPLEMENTATIONS", "RESPONSES", "Response", "work"]

CHANNELS = 12
"""Channels of a squeezed color image."""

EMBEDDED = 3
"""Channels of an embedding: a quarter, the paper's choice."""


@dataclass(frozen=True)
class Response:
    """A response as attention sees it.

    Args:
        combine: how scores are formed.
        phi: the function applied to them.
        dim: features of a query.
    """

    combine: str
    phi: str
    dim: int


RESPONSES = {
    "gaussian": Response("product", "exp", CHANNELS),
    "embedded_gaussian": Response("product", "exp", EMBEDDED),
    "dot_product": Response("product", "elu_plus_one", EMBEDDED),
    "concatenation": Response("sum", "elu_plus_one", 1),
}
"""The four responses of Table 1, normalized by column, with the paper's sizes."""

IMPLEMENTATIONS = ("auto", "reference", "sdpa")
"""This library's choice, the N×N matrix, and PyTorch's fused softmax attention on as many tokens."""


def work(
    response: str,
    implementation: str,
    tokens: int,
    *,
    batch: int = 1,
    backward: bool = False,
    device: str = "cpu",
) -> Callable[[], None]:
    """Return a function that runs attention once on random tokens, made beforehand.

    Args:
        response: a name from :data:`RESPONSES`.
        implementation: a name from :data:`IMPLEMENTATIONS`. Fused attention gets queries, keys and values of 12
            features whatever the response: with unequal ones it would not be fused.
        tokens: number of tokens.
        batch: number of samples.
        backward: whether gradients of all three inputs are computed too.
        device: where.

    Returns:
        The function, which waits for the device.
    """
    form = RESPONSES[response]
    dim = CHANNELS if implementation == "sdpa" else form.dim
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(batch, 1, tokens, features, generator=generator).to(device)
        for features in (dim, dim, CHANNELS)
    )

    def forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if implementation == "sdpa":
            return F.scaled_dot_product_attention(query, key, value)
        return attend(
            query,
            key,
            value,
            combine=form.combine,
            phi=form.phi,
            normalization="column",
            implementation=implementation,
        )

    inputs = [tensor.requires_grad_(backward) for tensor in (query, key, value)]

    def once() -> None:
        if backward:
            torch.autograd.grad(forward(*inputs), inputs, value.detach())
        else:
            with torch.no_grad():
                forward(*inputs)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)

    return once
