"""Attention layers that are provably invertible."""
