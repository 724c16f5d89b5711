"""Check that a module is strictly causal, on images that differ from some token on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from invertible_attention._mode import evaluation_mode
from invertible_attention.attention.triangular.order import Order, permutation

__all__ = ["check_strictly_causal"]

# Images at once, and how much of a change counts as rounding, in units of the precision's root.
_IMAGES = 64
_ROUNDING = 0.1


@torch.no_grad()
def check_strictly_causal(
    module: nn.Module, order: Order, shape: tuple[int, ...], outputs: int, context: Tensor | None = None
) -> None:
    """Replace tokens from each one on, and see that no output changes at it or before it.

    Args:
        module: Maps ``(B, C, *spatial)`` to ``(B, outputs * C, *spatial)``. It is tried in evaluation mode.
        order: Of the tokens.
        shape: Of an image, ``(C, *spatial)``.
        outputs: Outputs for each channel.
        context: A context ``(1, ...)``, where the module uses one.

    Raises:
        ValueError: Naming the token whose output depends on itself or a later one.
    """
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise ValueError(f"expected a shape (C, *spatial) with 1 to 3 spatial axes, got {shape}")
    channels, *spatial = shape
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    first, other = (
        torch.randn(1, *shape, generator=generator, dtype=torch.float64).to(like) for _ in range(2)
    )
    index = permutation(order, spatial, like.device)
    rank = torch.argsort(index)
    with evaluation_mode(module):
        expected = module(first, *_repeated(context, 1))
        if expected.shape != (1, outputs * channels, *spatial):
            raise ValueError(
                f"expected the module to return shape {(1, outputs * channels, *spatial)}, got {tuple(expected.shape)}"
            )
        expected = expected.flatten(2)
        scale = 1 + expected.abs().amax()
        for start in torch.arange(len(index), device=like.device).split(_IMAGES):
            later = (rank >= start[:, None]).view(len(start), 1, *spatial)
            changed = module(torch.where(later, other, first), *_repeated(context, len(start))).flatten(2)
            difference = ((changed - expected).abs() / scale).amax(1)
            leak = (difference > _ROUNDING * torch.finfo(like.dtype).eps ** 0.5) & (rank <= start[:, None])
            leak |= difference.isnan() & (rank <= start[:, None])
            if bool(leak.any()):
                _refuse(leak, start, index, spatial, order)


def _repeated(context: Tensor | None, batch: int) -> tuple[Tensor, ...]:
    return () if context is None else (context.expand(batch, *context.shape[1:]),)


def _refuse(leak: Tensor, start: Tensor, index: Tensor, spatial: list[int], order: Order) -> None:
    row, token = (int(i) for i in leak.nonzero()[0])
    changed = int(index[start[row]])
    name = "order" if isinstance(order, tuple) else repr(order)
    raise ValueError(
        f"the module is not strictly causal in {name}: its output at token {_place(token, spatial)} depends on token "
        f"{_place(changed, spatial)} or one after it"
    )


def _place(token: int, spatial: list[int]) -> tuple[int, ...]:
    place = []
    for size in reversed(spatial):
        token, rest = divmod(token, size)
        place.append(rest)
    return tuple(reversed(place))
