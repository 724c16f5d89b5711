"""Attention layers that are provably invertible.

Zha, Zhong, Zhang, Hartley, Zheng: *Invertible Attention*, 2021, arXiv 2106.09003, and what it left open:
certified Lipschitz bounds, inverses that report per sample, exact attention in O(N) memory, unbiased
log-determinants.
"""

from importlib.metadata import version

from invertible_attention import flows, interop, lipschitz, logdet, solvers
from invertible_attention.attention import (
    Attention,
    Certified,
    Concatenation,
    DotProduct,
    EmbeddedGaussian,
    Gaussian,
    InvertibleAttention,
    Relaxed,
    TorusPrior,
)
from invertible_attention.bijection import Bijection
from invertible_attention.lipschitz.audit import AuditReport, audit
from invertible_attention.logdet import Exact, PowerSeries, RussianRoulette
from invertible_attention.residual import Residual
from invertible_attention.solvers import Anderson, ConvergenceError, FixedPoint, NewtonKrylov, Solution

__version__ = version("invertible-attention")

__all__ = [
    "Anderson",
    "Attention",
    "AuditReport",
    "Bijection",
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
    "Solution",
    "TorusPrior",
    "audit",
    "flows",
    "interop",
    "lipschitz",
    "logdet",
    "solvers",
]
