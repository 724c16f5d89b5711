"""Attention layers that are provably invertible.

Zha, Zhong, Zhang, Hartley, Zheng: *Invertible Attention*, 2021, arXiv 2106.09003, and what it left open:
certified Lipschitz bounds, inverses that report per sample, exact attention in O(N) memory, unbiased
log-determinants.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from invertible_attention._lazy import lazily, together_with

if TYPE_CHECKING:
    from invertible_attention import attention, flows, interop, lipschitz, logdet, solvers
    from invertible_attention.attention import (
        Attention,
        Blockwise,
        Certified,
        Concatenation,
        DotProduct,
        EmbeddedGaussian,
        Gaussian,
        InvertibleAttention,
        Relaxed,
        TorusPrior,
        Triangular,
    )
    from invertible_attention.bijection import Bijection
    from invertible_attention.lipschitz.audit import AuditReport, audit
    from invertible_attention.logdet import Exact, PowerSeries, RussianRoulette, Series
    from invertible_attention.residual import Residual
    from invertible_attention.solvers import Anderson, ConvergenceError, FixedPoint, NewtonKrylov, Solution

__version__ = version("invertible-attention")

__all__ = [
    "Anderson",
    "Attention",
    "AuditReport",
    "Bijection",
    "Blockwise",
    "Certified",
    "Concatenation",
    "ConvergenceError",
    "DotProduct",
    "EmbeddedGaussian",
    "Exact",
    "FixedPoint",
    "Gaussian",
    "InvertibleAttention",
    "NewtonKrylov",
    "PowerSeries",
    "Relaxed",
    "Residual",
    "RussianRoulette",
    "Series",
    "Solution",
    "TorusPrior",
    "Triangular",
    "attention",
    "audit",
    "flows",
    "interop",
    "lipschitz",
    "logdet",
    "solvers",
]

# The command line and the version should not need torch.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "Anderson": "solvers",
        "Attention": "attention",
        "AuditReport": "lipschitz.audit",
        "Bijection": "bijection",
        "Blockwise": "attention",
        "Certified": "attention",
        "Concatenation": "attention",
        "ConvergenceError": "solvers",
        "DotProduct": "attention",
        "EmbeddedGaussian": "attention",
        "Exact": "logdet",
        "FixedPoint": "solvers",
        "Gaussian": "attention",
        "InvertibleAttention": "attention",
        "NewtonKrylov": "solvers",
        "PowerSeries": "logdet",
        "Relaxed": "attention",
        "Residual": "residual",
        "RussianRoulette": "logdet",
        "Series": "logdet",
        "Solution": "solvers",
        "TorusPrior": "attention",
        "Triangular": "attention",
        "attention": "attention",
        "audit": "lipschitz.audit",
        "flows": "flows",
        "interop": "interop",
        "lipschitz": "lipschitz",
        "logdet": "logdet",
        "solvers": "solvers",
    },
)

# What a checkpoint may contain is known to torch from the start: loading one asks this package for nothing.
together_with("torch", "invertible_attention.attention")
