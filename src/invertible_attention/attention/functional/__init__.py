"""How attention is computed: one function, several exact implementations, and the choice between them."""

from __future__ import annotations

from invertible_attention.attention.functional.dispatch import attend
from invertible_attention.attention.functional.form import log_phi
from invertible_attention.attention.functional.implementations import IMPLEMENTATIONS, Implementation
from invertible_attention.attention.functional.reference import response_matrix

__all__ = ["IMPLEMENTATIONS", "Implementation", "attend", "log_phi", "response_matrix"]
