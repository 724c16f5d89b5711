"""The paper's second experiment: density estimation with invertible residual networks and attention."""
