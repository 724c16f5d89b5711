"""Lipschitz constants: certified upper bounds, estimates, constraints and the audit.

A name with ``upper_bound`` is never below the truth, a name with ``estimate`` never above it.
"""

from invertible_attention._lazy import lazily
from invertible_attention.lipschitz.adversarial import AdversarialLipschitz, adversarial_lipschitz
from invertible_attention.lipschitz.audit import audit
from invertible_attention.lipschitz.convolution import (
    convolution_norm_estimate,
    convolution_norm_upper_bound,
    convolution_power_iteration,
)
from invertible_attention.lipschitz.geometry import Geometry
from invertible_attention.lipschitz.local import local_lipschitz_estimate, smallest_stretch_estimate
from invertible_attention.lipschitz.module_bound import lipschitz_upper_bound, register_lipschitz_bound
from invertible_attention.lipschitz.norms import (
    log_spectral_norm_upper_bound,
    power_iteration,
    spectral_norm_estimate,
    spectral_norm_upper_bound,
)
from invertible_attention.lipschitz.parametrize import (
    SpectralNormConstraint,
    SpectralNormEstimate,
    constrain,
    constrain_by_estimate,
)
from invertible_attention.lipschitz.preimage import SecondPreimage, find_second_preimage
from invertible_attention.lipschitz.report import AuditReport

__all__ = [
    "AdversarialLipschitz",
    "AuditReport",
    "Geometry",
    "SecondPreimage",
    "SpectralNormConstraint",
    "SpectralNormEstimate",
    "adversarial_lipschitz",
    "audit",
    "constrain",
    "constrain_by_estimate",
    "convolution_norm_estimate",
    "convolution_norm_upper_bound",
    "convolution_power_iteration",
    "find_second_preimage",
    "lipschitz_upper_bound",
    "local_lipschitz_estimate",
    "log_spectral_norm_upper_bound",
    "power_iteration",
    "register_lipschitz_bound",
    "smallest_stretch_estimate",
    "spectral_norm_estimate",
    "spectral_norm_upper_bound",
]

__getattr__, __dir__ = lazily(__name__, {}, renamed={"SpectralNormBound": "SpectralNormConstraint"})
