"""Attention that can be inverted, its ordinary counterpart, and their parts."""

from torch.serialization import add_safe_globals

from invertible_attention.attention.branch import AttentionBranch
from invertible_attention.attention.constraints import Certified, Constraint, Relaxed, Unconstrained
from invertible_attention.attention.layer import Attention, InvertibleAttention
from invertible_attention.attention.position import PositionPrior, TorusPrior
from invertible_attention.attention.responses import (
    Concatenation,
    DotProduct,
    EmbeddedGaussian,
    Gaussian,
    Response,
)
from invertible_attention.attention.triangular import (
    Blockwise,
    CausalTransformer,
    Triangular,
    TriangularBranch,
)

__all__ = [
    "Attention",
    "AttentionBranch",
    "Blockwise",
    "CausalTransformer",
    "Certified",
    "Concatenation",
    "Constraint",
    "DotProduct",
    "EmbeddedGaussian",
    "Gaussian",
    "InvertibleAttention",
    "PositionPrior",
    "Relaxed",
    "Response",
    "TorusPrior",
    "Triangular",
    "TriangularBranch",
    "Unconstrained",
]

# A checkpoint may contain what a layer was made with.
add_safe_globals([Certified, Relaxed, Triangular, Unconstrained, Blockwise, TorusPrior])
add_safe_globals([Gaussian, EmbeddedGaussian, DotProduct, Concatenation, Attention, InvertibleAttention])
