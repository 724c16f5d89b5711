"""Random layers for the search: every combination of arguments, with weights and inputs of every scale."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...attention import Certified, Concatenation, DotProduct, InvertibleAttention, TorusPrior

__all__ = ["DTYPES", "Population", "Structure", "draw_population", "draw_structure"]

RESPONSES: dict[str, Any] = {
    "gaussian": "gaussian",
    "embedded_gaussian": "embedded_gaussian",
    "dot_product": "dot_product",
    "dot_product/softplus": partial(DotProduct, phi="softplus"),
    "concatenation": "concatenation",
    "concatenation/softplus": partial(Concatenation, phi="softplus"),
}
NORMALIZATIONS = ("column", "row", "all")
HEADS = (1, 2, 4)
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
SPATIAL = ((1,), (2,), (5,), (9,), (2, 2), (2, 3), (3, 3), (1, 2, 2), (2, 2, 2))
LARGEST_EVENT = 72
"""Numbers in a sample: the Jacobian, a matrix of that size, is computed whole."""

SCALES = 6.0
"""Weights, radii and inputs are from 1e-6 to 1e6."""

STRATA = tuple(itertools.product(RESPONSES, NORMALIZATIONS, HEADS, (False, True), (False, True), DTYPES))


@dataclass(frozen=True)
class Structure:
    """The arguments and sizes that the layers of a group share.

    Args:
        response: name of the response, with the φ as a further word where it is not the default.
        normalization: what weights sum to one along.
        heads: number of heads.
        bias: whether the linear maps have biases.
        prior: whether the response is multiplied by a kernel of relative position.
        dtype: precision of the weights, and of the certificate computed from them.
        channels: channels of a token.
        spatial: size of the grid of tokens.
        embedding: rows of the embeddings, ``None`` for the default.
        coefficient: the certificate's limit.
    """

    response: str
    normalization: str
    heads: int
    bias: bool
    prior: bool
    dtype: str
    channels: int
    spatial: tuple[int, ...]
    embedding: int | None
    coefficient: float

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return math.prod(self.spatial)

    def build(self) -> InvertibleAttention:
        """Return a layer in float64 that is ready to be given weights."""
        layer = InvertibleAttention(
            self.channels,
            RESPONSES[self.response],
            constraint=Certified(self.coefficient),
            normalization=self.normalization,
            embedding_channels=self.embedding,
            heads=self.heads,
            bias=self.bias,
            position_prior=TorusPrior(len(self.spatial), self.heads) if self.prior else None,
        ).double()
        layer.initialize(torch.ones(1, self.channels, *self.spatial, dtype=torch.float64))
        return layer.eval()

    def to_json(self) -> dict[str, Any]:
        """Return the structure as JSON values."""
        return asdict(self) | {"spatial": list(self.spatial)}


@dataclass(frozen=True)
class Population:
    """Layers of one structure, each with its own inputs.

    Args:
        parameters: by name, the layers along the first axis, in float64; the search rounds them to the dtype.
        inputs: where each layer's local Lipschitz constant is looked at.
    """

    parameters: dict[str, Float[Tensor, "layers *shape"]]
    inputs: Float[Tensor, "layers inputs channels *spatial"]


def draw_structure(seed: int, group: int) -> Structure:
    """Return the structure of a group: every round of all combinations is in a random order, with random sizes.

    Example:
        >>> groups = [draw_structure(0, group) for group in range(len(STRATA))]
        >>> len({(g.response, g.normalization, g.heads, g.bias, g.prior, g.dtype) for g in groups})
        648
    """
    round_, place = divmod(group, len(STRATA))
    order = torch.randperm(len(STRATA), generator=_generator(seed, -1 - round_))
    response, normalization, heads, bias, prior, dtype = STRATA[int(order[place])]
    generator = _generator(seed, group)

    def choose(choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    channels = heads * choose([n for n in (1, 2, 3, 4) if heads * n <= 8])
    spatial = choose([size for size in SPATIAL if channels * math.prod(size) <= LARGEST_EVENT])
    coefficient = choose((0.05, 0.5, 0.9, 0.99, 0.999))
    embedding = choose((None, 1, 2, 3))
    return Structure(
        response, normalization, heads, bias, prior, dtype, channels, spatial, embedding, coefficient
    )


def draw_population(structure: Structure, seed: int, group: int, *, size: int, inputs: int) -> Population:
    """Draw the weights and inputs of a group, the same for the same numbers.

    Args:
        structure: what is drawn for.
        seed: of the search.
        group: number of the group.
        size: number of layers.
        inputs: inputs per layer.
    """
    generator = _generator(seed, group, 1)
    parameters = {
        f"layer.{name}": _draw_weights(parameter.shape, size, generator)
        for name, parameter in structure.build().named_parameters()
    }
    radius = _draw_scale(size, generator)
    parameters["layer.branch.log_radius"] = radius.log()
    for name in _biases(parameters):
        parameters[name] *= _spread(_draw_scale(size, generator, -6, 1), parameters[name])
    for name in ("layer.branch.value_weight", "layer.branch.out_weight"):
        parameters[name] *= _spread(_draw_scale(size, generator), parameters[name])
    _sharpen(parameters, radius, generator)
    for name in ("log_concentration", "offset"):
        if f"layer.branch.position_prior.{name}" in parameters:
            parameters[f"layer.branch.position_prior.{name}"] *= 3
    shape = (size, inputs, structure.channels, *structure.spatial)
    return Population(parameters, _draw_inputs(shape, radius, generator))


def _generator(seed: int, *numbers: int) -> torch.Generator:
    # Large odd factors keep the streams of neighboring groups apart.
    mixed = seed
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + (number + 2**31) * 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)


def _biases(parameters: dict[str, Tensor]) -> Iterator[str]:
    return (name for name in parameters if name.endswith("bias"))


def _draw_scale(size: int, generator: torch.Generator, low: float = -SCALES, high: float = SCALES) -> Tensor:
    """Return numbers whose logarithms are uniform, from ``10**low`` to ``10**high``."""
    return 10 ** (low + (high - low) * torch.rand(size, dtype=torch.float64, generator=generator))


def _draw_weights(shape: torch.Size, size: int, generator: torch.Generator) -> Tensor:
    """Return weights of order 1: dense, of rank one, with orthogonal rows, or with one entry that is not zero."""
    weights = torch.randn(size, *shape, dtype=torch.float64, generator=generator)
    if len(shape) < 2:
        return weights
    flat = weights.reshape(size, *shape[-2:]) if len(shape) == 2 else weights
    quarter = size // 4
    rank_one = flat[:quarter, ..., :1] * flat[:quarter, ..., :1, :]
    flat[:quarter] = rank_one / rank_one.abs().amax((-2, -1), keepdim=True)
    flat[quarter : 2 * quarter] = (
        torch.linalg.qr(flat[quarter : 2 * quarter].mT)[0].mT
        if (shape[-2] <= shape[-1])
        else torch.linalg.qr(flat[quarter : 2 * quarter])[0]
    )
    largest = flat[2 * quarter : 3 * quarter].abs().amax((-2, -1), keepdim=True)
    flat[2 * quarter : 3 * quarter] *= flat[2 * quarter : 3 * quarter].abs() == largest
    return flat[torch.randperm(size, generator=generator)].reshape(size, *shape)


def _sharpen(parameters: dict[str, Tensor], radius: Tensor, generator: torch.Generator) -> None:
    """Scale the scores: four layers in five to a chosen range over the ball, the others at random."""
    size = len(radius)
    chosen = torch.rand(size, dtype=torch.float64, generator=generator) < 0.8
    score_range = _draw_scale(size, generator, -6, 2.5)
    balance = _draw_scale(size, generator, -3, 3)
    wild = [_draw_scale(size, generator), _draw_scale(size, generator)]
    temperature = "layer.branch.response.temperature"
    if temperature in parameters:
        scale = torch.where(chosen, score_range / (2 * radius**2), wild[0])
        parameters[temperature] = parameters[temperature].sign() * _spread(scale, parameters[temperature])
        return
    query, key = ("layer.branch.response.query_weight", "layer.branch.response.key_weight")
    norms = [parameters[name].flatten(1).norm(dim=1).clamp_min(1e-30) for name in (query, key)]
    if parameters[query].shape[-2] == 1 and "layer.branch.response.key_bias" not in parameters:
        scales = [score_range / (2 * radius * norm) for norm in norms]
    else:
        root = (score_range / (2 * radius**2 * norms[0] * norms[1])).sqrt()
        scales = [root * balance, root / balance]
    for name, scale, other in zip((query, key), scales, wild, strict=True):
        parameters[name] *= _spread(torch.where(chosen, scale, other), parameters[name])


def _draw_inputs(shape: tuple[int, ...], radius: Tensor, generator: torch.Generator) -> Tensor:
    """Return tokens around the ball: independent, nearly equal, or along one line with both signs."""
    size, inputs, channels, *spatial = shape
    x = torch.randn(size * inputs, channels, math.prod(spatial), dtype=torch.float64, generator=generator)
    kind = torch.arange(size * inputs) % 3
    common = x[..., :1]
    x = torch.where((kind == 1)[:, None, None], common + 0.01 * x, x)
    x = torch.where((kind == 2)[:, None, None], common * x[:, :1].sign(), x)
    x = x / x.norm(dim=1, keepdim=True).amax(-1, keepdim=True).clamp_min(1e-30)
    near = torch.rand(len(x), dtype=torch.float64, generator=generator) < 0.75
    reach = torch.where(near, _draw_scale(len(x), generator, -1.5, 0.3), _draw_scale(len(x), generator))
    x = x * _spread(reach * radius.repeat_interleave(inputs), x)
    return x.reshape(shape)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))
