"""The network of the experiment: squeeze, then one attention block under one of the constraints."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from ...attention import Certified, InvertibleAttention, Relaxed
from ...flows import Residual, Sequential, Squeeze
from ...solvers import Anderson, FixedPoint, NewtonKrylov, Solver
from .configuration import Cell, Configuration
from .released import ReleasedAttention

__all__ = ["CHANNELS", "block_of", "build_network", "choose_micro_batch", "initialize", "make_solver"]

CHANNELS = 12
"""An RGB image squeezed by 2."""

TOKENS_AT_ONCE = 2**17
"""Tokens, over all images, that are processed at once: memory is linear in them."""


def build_network(cell: Cell, configuration: Configuration, *, seed: int) -> Sequential:
    """Return the untrained network of a cell; its weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if cell.constraint == "released":
            block = ReleasedAttention(CHANNELS, cell.response, tolerance=configuration.tolerance)
        else:
            kind = Certified if cell.constraint == "certified" else Relaxed
            block = InvertibleAttention(
                CHANNELS,
                response=cell.response,
                constraint=kind(configuration.coefficient),
                normalization=cell.normalization,
                solver=make_solver(configuration.solver, configuration.tolerance),
            )
        return Sequential(Squeeze(2), block)


def initialize(network: Sequential, batch: Float[Tensor, "batch 3 height width"]) -> None:
    """Set what the block takes from its first batch, from the whole batch however it is divided later."""
    squeeze, block = network
    if isinstance(block, InvertibleAttention):
        block.initialize(squeeze(batch))


def block_of(network: Sequential) -> Residual:
    """Return the attention block."""
    return cast(Residual, network[1])


def make_solver(name: str, tolerance: float, max_evaluations: int | None = None) -> Solver:
    """Return the solver called ``name``, with its own limit unless one is given."""
    kind = {
        "anderson": Anderson,
        "picard": FixedPoint,
        "newton-krylov": NewtonKrylov,
    }[name]
    if max_evaluations is None:
        return kind(tolerance=tolerance)
    return kind(tolerance=tolerance, max_evaluations=max_evaluations)


def choose_micro_batch(configuration: Configuration) -> int:
    """Return how many images to process at once: the paper's 64 where they are small, fewer where not."""
    if configuration.micro_batch is not None:
        return configuration.micro_batch
    height, width = configuration.size
    return max(1, min(64, TOKENS_AT_ONCE // (height * width // 4)))
