"""A density: a bijection and a base distribution."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from invertible_attention._mask import count_valid
from invertible_attention.bijection import Bijection, given
from invertible_attention.flows.base import Base

__all__ = ["Flow"]

Mask = Bool[Tensor, "batch *valid"] | None


class Flow(nn.Module):
    r"""A normalizing flow: a density of data, by a bijection to a vector whose density is known.

    .. math:: \log p(x) = \log p_{\text{base}}(f(x)) + \log|\det \partial f / \partial x|

    Calling it returns the log-density, so that it can be wrapped by
    :class:`torch.nn.parallel.DistributedDataParallel`. Where a part of the transform estimates its
    log-determinant, the log-density is an estimate with the same bias or lack of it.

    Args:
        transform: From data to a vector ``(B, D)``; images need a transform that ends in
            :class:`~invertible_attention.flows.Flatten` or :class:`~invertible_attention.flows.Split`.
        base: Distribution of the vector.

    Examples:
        >>> import torch
        >>> from invertible_attention.flows import ActNorm, DiagonalGaussian
        >>> flow = Flow(ActNorm(2), DiagonalGaussian(2))
        >>> flow.log_prob(torch.randn(5, 2)).shape
        torch.Size([5])
        >>> flow.sample(3).shape
        torch.Size([3, 2])
    """

    def __init__(self, transform: Bijection, base: Base) -> None:
        super().__init__()
        self.transform = transform
        self.base = base

    def forward(
        self, x: Shaped[Tensor, "batch *event"], *, context: Tensor | None = None, mask: Mask = None
    ) -> Float[Tensor, " batch"]:
        """Return :meth:`log_prob`."""
        return self.log_prob(x, context=context, mask=mask)

    def log_prob(
        self, x: Shaped[Tensor, "batch *event"], *, context: Tensor | None = None, mask: Mask = None
    ) -> Float[Tensor, " batch"]:
        """Return the log-density of each sample in nats.

        Where the transform begins with :class:`~invertible_attention.flows.Dequantize` it is a lower bound of
        the log-probability of an integer image (in expectation over the noise).

        Args:
            x: Samples.
            context: One entry per sample, where the transform uses one.
            mask: True where a sample is valid, for samples of unequal length: the density is that of the valid
                values.

        Raises:
            ValueError: If no part of the transform uses a context, or a part of it takes no mask.
        """
        z, logdet = self.transform.forward_and_logdet(x, **given(self.transform, context=context, mask=mask))
        if mask is None:
            return self.base.log_prob(z) + logdet
        return self.base.log_prob(z, mask=self.transform.output_mask(mask)) + logdet

    def bits_per_dim(
        self, x: Shaped[Tensor, "batch *event"], *, context: Tensor | None = None, mask: Mask = None
    ) -> Float[Tensor, " batch"]:
        r"""Return :math:`-\log_2 p(x) / d` per sample, :math:`d` being the number of its (valid) values.

        For integer images and a transform that begins with :class:`~invertible_attention.flows.Dequantize`
        this is the field's bits per dimension. Nothing is added: for data scaled to the unit interval
        beforehand it is smaller by :math:`\log_2` of the number of levels.
        """
        count = math.prod(x.shape[1:]) if mask is None else count_valid(mask, x).clamp_min(1)
        return self.log_prob(x, context=context, mask=mask) / (-math.log(2) * count)

    @torch.no_grad()
    def sample(
        self, n: int, *, context: Tensor | None = None, mask: Mask = None, temperature: float = 1.0
    ) -> Float[Tensor, "n *event"]:
        """Draw ``n`` samples.

        Args:
            n: How many.
            context: For each sample, where the transform uses one.
            mask: True where a sample is to be valid; it is zero elsewhere.
            temperature: Factor on the base's spread.

        Raises:
            ConvergenceError: If a block cannot be inverted at a latent that was drawn.
        """
        arguments = given(self.transform, context=context, mask=mask)
        z = self.base.sample(n, temperature=temperature)
        if mask is not None:
            z = z.masked_fill(~self.transform.output_mask(mask), 0.0)
        return self.transform.inverse(z, **arguments)

    def initialize(
        self, x: Shaped[Tensor, "batch *event"], *, context: Tensor | None = None, mask: Mask = None
    ) -> None:
        """Let every part that is set from data and is not set yet do so from ``x``, where it is valid.

        See :meth:`.Bijection.initialize`.
        """
        self.transform.initialize(x, **given(self.transform, context=context, mask=mask))
