"""From a configuration to a density."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any, cast

import torch
from torch import nn

from ...attention import Certified, InvertibleAttention, Relaxed, TorusPrior, Triangular
from ...flows import Flow, Residual, i_resnet, residual_flow, transformer_flow
from ...logdet import Exact, LogDetEstimator, PowerSeries, RussianRoulette
from .configuration import RESIDUAL, Configuration, parse_places

__all__ = ["build_model", "count_parameters", "make_estimator", "using_estimator"]


def build_model(configuration: Configuration, shape: tuple[int, ...], levels: int) -> nn.Module:
    """Return the untrained density of a configuration; its weights depend on the seed alone.

    It has ``log_prob``, ``bits_per_dim``, ``sample`` and ``initialize``. The weights outside of the
    attention are the same with and without attention.

    Raises:
        ValueError: when the shape does not fit the model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(configuration.seed)
        if configuration.model == "transformer-flow":
            return _transformer_flow(configuration, shape, levels)
        if configuration.model not in RESIDUAL:
            from .baselines import build_baseline

            return build_baseline(configuration, shape, levels)
        return _residual_model(configuration, shape, levels)


def _residual_model(configuration: Configuration, shape: tuple[int, ...], levels: int) -> Flow:
    make = i_resnet if configuration.model == "i-resnet" else residual_flow
    estimator = make_estimator(
        configuration.estimator, terms=configuration.terms, probes=configuration.probes
    )
    own: dict[str, Any] = (
        {} if configuration.coefficient is None else {"coefficient": configuration.coefficient}
    )

    orders = cycle(("raster", "reverse"))

    def attention(channels: int) -> InvertibleAttention:
        if configuration.constraint == "triangular":
            # Two layers of opposite orders let every token see every other.
            constraint = Triangular(
                next(orders), configuration.affine, width=configuration.width, depth=configuration.depth
            )
            return InvertibleAttention(
                channels, configuration.attention, constraint=constraint, heads=configuration.heads
            )
        kind = Certified if configuration.constraint == "certified" else Relaxed
        prior = TorusPrior(len(shape) - 1, configuration.heads) if configuration.position_prior else None
        return InvertibleAttention(
            channels,
            configuration.attention,
            constraint=kind(configuration.attention_coefficient),
            normalization=configuration.normalization,
            heads=configuration.heads,
            position_prior=prior,
            logdet=estimator,
        )

    def apart(channels: int) -> InvertibleAttention:
        # The blocks after it start from the same weights as without it.
        with torch.random.fork_rng(devices=[]):
            return attention(channels)

    return make(
        shape,
        levels=levels,
        blocks=configuration.blocks,
        hidden_channels=configuration.hidden_channels,
        attention=None if configuration.attention == "none" else apart,
        attention_after=parse_places(configuration.attention_after),
        logdet=estimator,
        **own,
    )


def _transformer_flow(configuration: Configuration, shape: tuple[int, ...], levels: int) -> Flow:
    return transformer_flow(
        shape,
        levels=levels,
        patch=configuration.patch,
        blocks=sum(configuration.blocks),
        depth=configuration.depth,
        width=configuration.hidden_channels,
        heads=configuration.heads,
        feed_forward=2.0,
    )


def make_estimator(name: str, *, terms: int = 2, probes: int = 1) -> LogDetEstimator:
    """Return the log-determinant estimator called ``name``."""
    if name == "exact":
        return Exact()
    if name == "power-series":
        return PowerSeries(terms=terms, probes=probes, control_variate=False)  # as in the paper
    return RussianRoulette(exact_terms=terms, probes=probes)


@contextmanager
def using_estimator(model: nn.Module, estimator: LogDetEstimator) -> Iterator[None]:
    """Let every residual block of ``model`` use ``estimator`` inside the block."""
    blocks = [module for module in model.modules() if isinstance(module, Residual)]
    before = [block.logdet for block in blocks]
    try:
        for block in blocks:
            block.logdet = estimator
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            block.logdet = own


def count_parameters(model: nn.Module) -> int:
    """Return the number of trained values."""
    return sum(cast(nn.Parameter, p).numel() for p in model.parameters() if p.requires_grad)
