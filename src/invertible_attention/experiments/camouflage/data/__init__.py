"""Images with masks: every layout they come in, checked before use; and a generator that needs no download."""

from __future__ import annotations

from ...data.problems import Problem, report_problems
from .cache import Batch, CachedFeatures, CachedImages, TrainingImages
from .loader import EpochBatches, batches_per_second
from .masks import binarize, read_mask
from .opening import DetectionData, open_data, open_images
from .pairs import Collection, Pair
from .synthetic import generate_data

__all__ = [
    "Batch",
    "CachedFeatures",
    "CachedImages",
    "Collection",
    "DetectionData",
    "EpochBatches",
    "Pair",
    "Problem",
    "TrainingImages",
    "batches_per_second",
    "binarize",
    "generate_data",
    "open_data",
    "open_images",
    "read_mask",
    "report_problems",
]
