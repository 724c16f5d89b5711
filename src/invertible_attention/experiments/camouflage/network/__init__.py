"""The detection network: backbones, decoder, attention, and how it is stored."""

from __future__ import annotations

from .backbones import ARCHITECTURES, Backbone, backbone_from, random_backbone
from .detector import LEVELS, Detector, make_attention
from .storage import load_detector, save_detector
from .weights import RANDOM, build_backbone

__all__ = [
    "ARCHITECTURES",
    "LEVELS",
    "RANDOM",
    "Backbone",
    "Detector",
    "backbone_from",
    "build_backbone",
    "load_detector",
    "make_attention",
    "random_backbone",
    "save_detector",
]
