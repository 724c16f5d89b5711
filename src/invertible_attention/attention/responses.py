r"""How a pair of tokens is scored: the four responses of the paper's Table 1.

A response turns tokens into a query and a key per head and says how the two combine into the positive weight

.. math:: w_{ij} = e^{\sigma_{ij}}, \qquad \sigma_{ij} = \log \varphi(q_i \cdot k_j)
          \quad\text{or}\quad \log \varphi(q_i + k_j).

It also knows how fast :math:`\sigma` can change while the tokens stay in a ball, which is what the certificate
(:mod:`invertible_attention.lipschitz.certificate`) needs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invertible_attention.attention.functional.form import log_phi
from invertible_attention.lipschitz.certificate import Normalization, ScoreBounds
from invertible_attention.lipschitz.gram import working_dtype
from invertible_attention.lipschitz.norms import spectral_norm_upper_bound, spectral_norm_upper_bounds

__all__ = [
    "RESPONSES",
    "Concatenation",
    "DotProduct",
    "EmbeddedGaussian",
    "Gaussian",
    "Response",
    "make_response",
]

Tokens = Float[Tensor, "batch tokens channels"]
Sources = Float[Tensor, "batch sources channels"]
PerHead = Float[Tensor, "batch heads tokens features"]
SourcesPerHead = Float[Tensor, "batch heads sources features"]

# Below this a range counts as zero: rescaling leaves such weights as they are.
_TINY = 1e-30

_POSITIVE = ("exp", "elu_plus_one", "softplus")


class Response(nn.Module, ABC):
    """Base class of responses: scores for every pair of tokens, one set per head.

    Attributes:
        combine: ``"product"`` (scores :math:`q_i \\cdot k_j`) or ``"sum"`` (scores :math:`q_i + k_j`).
        phi: The function applied to the scores, see :func:`~invertible_attention.attention.functional.attend`.
    """

    combine: str
    phi: str

    @abstractmethod
    def forward(self, tokens: Tokens, sources: Sources) -> tuple[PerHead, SourcesPerHead]:
        """Return queries of ``tokens`` and keys of ``sources``, ``(batch, heads, tokens, features)`` each."""

    def query_matrix(self) -> Float[Tensor, "heads features channels"] | None:
        """Return what maps the difference of two tokens to that of their queries; ``None`` if that is not linear.

        Override this too where :meth:`forward` is overridden.
        """
        return None

    def matrices(self) -> list[Tensor]:
        """Return the matrices, a stack per head each, whose spectral norms :meth:`score_bounds` is given."""
        return []

    @abstractmethod
    def score_bounds(self, radius: Tensor, normalization: Normalization, *norms: Tensor) -> ScoreBounds:
        r"""Bound :math:`\sigma`'s slopes and range over tokens of norm at most ``radius`` (positive phi only).

        Args:
            radius: Of the ball.
            normalization: Along which the weights are normalized.
            *norms: Upper bounds of the norms of :meth:`matrices`, per head; computed where none are given.
        """

    @abstractmethod
    def rescale(self, radius: Tensor, normalization: Normalization, log_range: float = 1.0) -> None:
        """Scale the parameters in place so that the range of the scores over the ball is about ``log_range``."""

    def transforms(self) -> tuple[str, ...]:
        """Names of the weights that ``Relaxed(constrain_response=True)`` constrains."""
        return ()


class Gaussian(Response):
    r"""Gaussian response, :math:`\sigma_{ij} = \tau\, x_i \cdot x_j`; heads split the channels.

    Args:
        channels: Number of channels :math:`C`.
        heads: Number of heads; must divide ``channels``.
        embedding_channels: Not used: the Gaussian has no embedding.
        bias: Not used.
        temperature: Initial :math:`\tau`; the paper has 1.
        learnable: Whether :math:`\tau` (one per head) is trained.
    """

    combine = "product"
    phi = "exp"

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        embedding_channels: int | None = None,
        bias: bool = False,
        *,
        temperature: float = 1.0,
        learnable: bool = True,
    ) -> None:
        super().__init__()
        self.channels, self.heads = channels, heads
        value = torch.full((heads,), float(temperature))
        if learnable:
            self.temperature = nn.Parameter(value)
        else:
            self.register_buffer("temperature", value)

    def forward(self, tokens: Tokens, sources: Sources) -> tuple[PerHead, SourcesPerHead]:
        """Return :math:`τ x_i` and :math:`x_j`, split into heads."""
        query = _split_heads(tokens, self.heads) * self.temperature.to(tokens.dtype)[:, None, None]
        return query, _split_heads(sources, self.heads)

    def query_matrix(self) -> Float[Tensor, "heads features channels"]:
        """τ times the rows of the identity that belong to a head."""
        identity = torch.eye(self.channels, dtype=self.temperature.dtype, device=self.temperature.device)
        return self.temperature[:, None, None] * identity.unflatten(0, (self.heads, -1))

    def score_bounds(self, radius: Tensor, normalization: Normalization, *norms: Tensor) -> ScoreBounds:
        r""":math:`\ell_q = \ell_k = |\tau|\rho` and a range of :math:`2|\tau|\rho^2`."""
        slope = _working(self.temperature).abs() * radius
        return ScoreBounds(query_slope=slope, key_slope=slope, log_range=2 * slope * radius)

    @torch.no_grad()
    def rescale(self, radius: Tensor, normalization: Normalization, log_range: float = 1.0) -> None:
        """Set the temperature, keeping its sign."""
        self.temperature.copy_(torch.sign(self.temperature) * log_range / (2 * radius.square()))


class _Embedded(Response):
    """Scores of two linear embeddings, shared by the Embedded Gaussian and Dot-product."""

    combine = "product"

    def __init__(
        self, channels: int, heads: int, embedding_channels: int | None, bias: bool, phi: str
    ) -> None:
        super().__init__()
        self.phi = phi
        features = max(1, channels // 4) if embedding_channels is None else embedding_channels
        if features < 1:
            raise ValueError(f"embedding_channels must be at least 1, got {features}")
        self.query_weight = nn.Parameter(_uniform(heads, features, channels))
        self.key_weight = nn.Parameter(_uniform(heads, features, channels))
        self.query_bias = nn.Parameter(torch.zeros(heads, features)) if bias else None
        self.key_bias = nn.Parameter(torch.zeros(heads, features)) if bias else None

    def forward(self, tokens: Tokens, sources: Sources) -> tuple[PerHead, SourcesPerHead]:
        """Return :math:`W_1 x_i + b_1` and :math:`W_2 x_j + b_2`."""
        return (
            _embed(tokens, self.query_weight, self.query_bias),
            _embed(sources, self.key_weight, self.key_bias),
        )

    def query_matrix(self) -> Float[Tensor, "heads features channels"]:
        """:math:`W_1`."""
        return self.query_weight

    def matrices(self) -> list[Tensor]:
        """Both embeddings, or without biases their product."""
        query, key = _working(self.query_weight), _working(self.key_weight)
        return [query.mT @ key] if self.query_bias is None or self.key_bias is None else [query, key]

    def _cancellation(self) -> Tensor:
        """Return what rounding may have taken from the product, which may cancel and be mostly that."""
        query, key = _working(self.query_weight.detach()), _working(self.key_weight.detach())
        sizes = torch.linalg.matrix_norm(query) * torch.linalg.matrix_norm(key)
        return (query.shape[-2] + 4) * torch.finfo(query.dtype).eps * sizes

    def score_bounds(self, radius: Tensor, normalization: Normalization, *norms: Tensor) -> ScoreBounds:
        """Slopes and range over the ball; without biases the norm of the product of both embeddings is used."""
        norms = norms or tuple(spectral_norm_upper_bounds(self.matrices()))
        if self.query_bias is None or self.key_bias is None:
            slope = (norms[0] + self._cancellation()) * radius
            return ScoreBounds(query_slope=slope, key_slope=slope, log_range=2 * slope * radius)
        norm_q, norm_k = norms
        reach_q = norm_q * radius + torch.linalg.vector_norm(_working(self.query_bias), dim=-1)
        reach_k = norm_k * radius + torch.linalg.vector_norm(_working(self.key_bias), dim=-1)
        # A part of σ that is constant along the normalized axis cancels, but only where φ is the exponential.
        centered = self.phi == "exp"
        query_slope = norm_q * (norm_k * radius if centered and normalization == "row" else reach_k)
        key_slope = norm_k * (norm_q * radius if centered and normalization == "column" else reach_q)
        log_range = {
            "column": 2 * norm_q * radius * reach_k,
            "row": 2 * norm_k * radius * reach_q,
            "all": 2 * reach_q * reach_k,
        }[normalization]
        return ScoreBounds(query_slope=query_slope, key_slope=key_slope, log_range=log_range)

    @torch.no_grad()
    def rescale(self, radius: Tensor, normalization: Normalization, log_range: float = 1.0) -> None:
        """Scale both embeddings by the same factor per head."""
        current = 2 * spectral_norm_upper_bound(self.query_weight.mT @ self.key_weight) * radius.square()
        factor = (log_range / current.clamp_min(_TINY)).sqrt()[:, None, None]
        self.query_weight.mul_(factor)
        self.key_weight.mul_(factor)

    def transforms(self) -> tuple[str, ...]:
        """Both embeddings."""
        return ("query_weight", "key_weight")


class EmbeddedGaussian(_Embedded):
    r"""Embedded Gaussian response, :math:`\sigma_{ij} = (W_1 x_i + b_1) \cdot (W_2 x_j + b_2)`.

    Args:
        channels: Number of channels :math:`C`.
        heads: Number of heads, each with its own embeddings.
        embedding_channels: Rows of :math:`W_1, W_2` per head; default ``max(1, channels // 4)``.
        bias: Whether the embeddings have biases.

    Raises:
        ValueError: If ``embedding_channels`` is below 1.
    """

    def __init__(
        self, channels: int, heads: int = 1, embedding_channels: int | None = None, bias: bool = False
    ) -> None:
        super().__init__(channels, heads, embedding_channels, bias, phi="exp")


class DotProduct(_Embedded):
    r"""Dot-product response, :math:`\sigma_{ij} = \log \varphi((W_1 x_i + b_1) \cdot (W_2 x_j + b_2))`.

    Args:
        channels: Number of channels :math:`C`.
        heads: Number of heads, each with its own embeddings.
        embedding_channels: Rows of :math:`W_1, W_2` per head; default ``max(1, channels // 4)``.
        bias: Whether the embeddings have biases.
        phi: ``"elu_plus_one"`` (default) or ``"softplus"``. The signed ``"elu"`` of the authors' released
            code and ``"identity"`` of the ordinary non-local block carry no certificate.

    Raises:
        ValueError: If ``embedding_channels`` is below 1.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        embedding_channels: int | None = None,
        bias: bool = False,
        *,
        phi: str = "elu_plus_one",
    ) -> None:
        super().__init__(channels, heads, embedding_channels, bias, phi)


class Concatenation(Response):
    r"""Concatenation response, :math:`\sigma_{ij} = \log \varphi(a \cdot x_i + b \cdot x_j + \beta)`.

    :math:`W_3 [W_1 x_i, W_2 x_j]` of the paper collapses to two vectors, :math:`a = W_1^\top w_{3a}` and
    :math:`b = W_2^\top w_{3b}`.

    Args:
        channels: Number of channels :math:`C`.
        heads: Number of heads, each with its own vectors.
        embedding_channels: Not used: the embedding collapses.
        bias: Whether there is a :math:`\beta`.
        phi: ``"elu_plus_one"`` (default) or ``"softplus"``; signed ``"elu"`` and ``"identity"`` carry no
            certificate.
    """

    combine = "sum"

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        embedding_channels: int | None = None,
        bias: bool = False,
        *,
        phi: str = "elu_plus_one",
    ) -> None:
        super().__init__()
        self.phi = phi
        self.query_weight = nn.Parameter(_uniform(heads, 1, channels))
        self.key_weight = nn.Parameter(_uniform(heads, 1, channels))
        self.bias = nn.Parameter(torch.zeros(heads, 1)) if bias else None

    def forward(self, tokens: Tokens, sources: Sources) -> tuple[PerHead, SourcesPerHead]:
        r"""Return :math:`a \cdot x_i + \beta` and :math:`b \cdot x_j`, one feature each."""
        return _embed(tokens, self.query_weight, self.bias), _embed(sources, self.key_weight, None)

    def query_matrix(self) -> Float[Tensor, "heads features channels"]:
        """:math:`a`."""
        return self.query_weight

    def score_bounds(self, radius: Tensor, normalization: Normalization, *norms: Tensor) -> ScoreBounds:
        r""":math:`\ell_q = \|a\|`, :math:`\ell_k = \|b\|` and the range of :math:`\log\varphi` over the ball.

        :math:`\log\varphi` is increasing and concave, so its range over an interval of given length is largest
        at the left end.
        """
        slope_q, slope_k = self._slopes()
        offset = 0.0 if self.bias is None else _working(self.bias).abs().squeeze(-1)
        moving, fixed = {
            "column": (slope_q * radius, slope_k * radius + offset),
            "row": (slope_k * radius, slope_q * radius + offset),
            "all": ((slope_q + slope_k) * radius, torch.zeros_like(slope_q) + offset),
        }[normalization]
        log_range = log_phi(moving - fixed, self.phi) - log_phi(-moving - fixed, self.phi)
        return ScoreBounds(query_slope=slope_q, key_slope=slope_k, log_range=log_range)

    @torch.no_grad()
    def rescale(self, radius: Tensor, normalization: Normalization, log_range: float = 1.0) -> None:
        r"""Scale both vectors by the same factor per head, taking :math:`\log\varphi` at its slope of one."""
        slope_q, slope_k = self._slopes()
        moving = {"column": slope_q, "row": slope_k, "all": slope_q + slope_k}[normalization]
        factor = (log_range / (2 * moving * radius).clamp_min(_TINY))[:, None, None]
        self.query_weight.mul_(factor)
        self.key_weight.mul_(factor)

    def _slopes(self) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm
        return norm(_working(self.query_weight), dim=(-2, -1)), norm(_working(self.key_weight), dim=(-2, -1))

    def transforms(self) -> tuple[str, ...]:
        """Both vectors."""
        return ("query_weight", "key_weight")


RESPONSES: dict[str, type[Response]] = {
    "gaussian": Gaussian,
    "embedded_gaussian": EmbeddedGaussian,
    "dot_product": DotProduct,
    "concatenation": Concatenation,
}


def make_response(
    response: str | Callable[..., Response],
    channels: int,
    heads: int,
    embedding_channels: int | None,
    bias: bool,
) -> Response:
    """Build a response from its name or from a factory such as ``partial(DotProduct, phi="softplus")``.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(response, str):
        if response not in RESPONSES:
            raise ValueError(f"response must be one of {', '.join(RESPONSES)}, got {response!r}")
        response = RESPONSES[response]
    return response(channels, heads=heads, embedding_channels=embedding_channels, bias=bias)


def is_positive(phi: str) -> bool:
    """Whether ``phi`` gives positive weights, as the certificate needs."""
    return phi in _POSITIVE


def name_of(response: str | Callable[..., Response]) -> str:
    """The name a response is registered under, or its class's name."""
    if isinstance(response, str):
        return response
    while isinstance(response, partial):
        response = response.func
    return next((name for name, kind in RESPONSES.items() if kind is response), response.__name__)


def _split_heads(tokens: Tokens, heads: int) -> PerHead:
    batch, n, channels = tokens.shape
    return tokens.reshape(batch, n, heads, channels // heads).transpose(1, 2)


def _embed(tokens: Tokens, weight: Float[Tensor, "heads features channels"], bias: Tensor | None) -> PerHead:
    heads, features, _ = weight.shape
    embedded = torch.nn.functional.linear(
        tokens,
        weight.to(tokens.dtype).flatten(0, 1),
        None if bias is None else bias.to(tokens.dtype).flatten(),
    )
    return embedded.unflatten(-1, (heads, features)).transpose(1, 2)


def _working(weight: Tensor) -> Tensor:
    """Return a weight in the precision bounds are computed in: in its own they would be wrong by a percent."""
    return weight.to(working_dtype(weight))


def _uniform(heads: int, features: int, channels: int) -> Tensor:
    limit = 1 / math.sqrt(channels)
    return torch.empty(heads, features, channels).uniform_(-limit, limit)
