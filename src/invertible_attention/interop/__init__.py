"""Bijections in other flow libraries, and their layers as bijections.

Nothing here is imported before it is asked for, so none of the libraries is needed to import this package. Each
has its own module: :mod:`.distributions` (PyTorch's own, no extra), :mod:`.freia`, :mod:`.nflows`,
:mod:`.normflows`, :mod:`.pyro`, :mod:`.zuko`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from invertible_attention._lazy import lazily

if TYPE_CHECKING:
    from invertible_attention.interop.distributions import from_distribution, to_distribution
    from invertible_attention.interop.export import FixedInverse, compile_branches, to_plain
    from invertible_attention.interop.freia import FreiaAttention, FreiaModule, from_freia, to_freia
    from invertible_attention.interop.nflows import from_nflows, to_nflows
    from invertible_attention.interop.normflows import from_normflows, to_normflows
    from invertible_attention.interop.pyro import to_pyro, to_pyro_conditional
    from invertible_attention.interop.wrappers import FlattenedBijection, Inverse, MaskInContext
    from invertible_attention.interop.zuko import from_zuko, to_zuko

__all__ = [
    "FixedInverse",
    "FlattenedBijection",
    "FreiaAttention",
    "FreiaModule",
    "Inverse",
    "MaskInContext",
    "compile_branches",
    "from_distribution",
    "from_freia",
    "from_nflows",
    "from_normflows",
    "from_zuko",
    "to_distribution",
    "to_freia",
    "to_nflows",
    "to_normflows",
    "to_plain",
    "to_pyro",
    "to_pyro_conditional",
    "to_zuko",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "FixedInverse": "export",
        "compile_branches": "export",
        "to_plain": "export",
        "Inverse": "wrappers",
        "MaskInContext": "wrappers",
        "FlattenedBijection": "wrappers",
        "from_distribution": "distributions",
        "FreiaAttention": "freia",
        "FreiaModule": "freia",
        "from_freia": "freia",
        "from_nflows": "nflows",
        "from_normflows": "normflows",
        "from_zuko": "zuko",
        "to_distribution": "distributions",
        "to_freia": "freia",
        "to_nflows": "nflows",
        "to_normflows": "normflows",
        "to_pyro": "pyro",
        "to_pyro_conditional": "pyro",
        "to_zuko": "zuko",
    },
    renamed={"OnVectors": "FlattenedBijection"},
)
