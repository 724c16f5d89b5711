"""Attention that is invertible by order: a token sees strictly earlier tokens only."""

from __future__ import annotations

from invertible_attention.attention.triangular.blockwise import Blockwise
from invertible_attention.attention.triangular.branch import TriangularBranch
from invertible_attention.attention.triangular.constraint import Triangular
from invertible_attention.attention.triangular.transformer import CausalTransformer

__all__ = ["Blockwise", "CausalTransformer", "Triangular", "TriangularBranch"]
