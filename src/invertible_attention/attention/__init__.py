"""Attention that can be inverted, its ordinary counterpart, and their parts."""
