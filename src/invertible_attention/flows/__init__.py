"""Normalizing flows out of invertible residual blocks and attention."""

from __future__ import annotations

from invertible_attention.flows.activations import LipSwish
from invertible_attention.flows.actnorm import ActNorm
from invertible_attention.flows.base import Base, DiagonalGaussian, Uniform
from invertible_attention.flows.branches import LipschitzBranch, LipschitzConvBranch, LipschitzLinearBranch
from invertible_attention.flows.data import Dequantize, Logit
from invertible_attention.flows.flow import Flow
from invertible_attention.flows.presets import i_resnet, residual_flow, transformer_flow
from invertible_attention.flows.reshape import Flatten, Split, Squeeze
from invertible_attention.flows.resnet import InvertibleResNet
from invertible_attention.flows.sequential import Sequential
from invertible_attention.residual import Residual

__all__ = [
    "ActNorm",
    "Base",
    "Dequantize",
    "DiagonalGaussian",
    "Flatten",
    "Flow",
    "InvertibleResNet",
    "LipSwish",
    "LipschitzBranch",
    "LipschitzConvBranch",
    "LipschitzLinearBranch",
    "Logit",
    "Residual",
    "Sequential",
    "Split",
    "Squeeze",
    "Uniform",
    "i_resnet",
    "residual_flow",
    "transformer_flow",
]
