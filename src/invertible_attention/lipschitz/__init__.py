"""Lipschitz constants: certified upper bounds, estimates, constraints and the audit.

A name with ``upper_bound`` is never below the truth, a name with ``estimate`` never above it.
"""

from invertible_attention.lipschitz.convolution import (
    convolution_norm_estimate,
    convolution_norm_upper_bound,
    convolution_power_iteration,
)
from invertible_attention.lipschitz.module_bound import lipschitz_upper_bound
from invertible_attention.lipschitz.norms import (
    log_spectral_norm_upper_bound,
    power_iteration,
    spectral_norm_estimate,
    spectral_norm_upper_bound,
)
from invertible_attention.lipschitz.parametrize import (
    SpectralNormBound,
    SpectralNormEstimate,
    constrain,
    constrain_by_estimate,
)

__all__ = [
    "SpectralNormBound",
    "SpectralNormEstimate",
    "constrain",
    "constrain_by_estimate",
    "convolution_norm_estimate",
    "convolution_norm_upper_bound",
    "convolution_power_iteration",
    "lipschitz_upper_bound",
    "log_spectral_norm_upper_bound",
    "power_iteration",
    "spectral_norm_estimate",
    "spectral_norm_upper_bound",
]
