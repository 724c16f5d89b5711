"""Images with masks: every layout they come in, checked before use; and a generator that needs no download."""

from __future__ import annotations

from .loader import Batch, EpochBatches
from .masks import binarize, read_mask
from .opening import DetectionData, open_data, open_images
from .pairs import Collection, Pair
from .problems import Problem, report_problems
from .synthetic import generate_data

__all__ = [
    "Batch",
    "Collection",
    "DetectionData",
    "EpochBatches",
    "Pair",
    "Problem",
    "binarize",
    "generate_data",
    "open_data",
    "open_images",
    "read_mask",
    "report_problems",
]
