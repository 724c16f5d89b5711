"""Attacks on what the library promises, and reports of how it stood up to them."""
