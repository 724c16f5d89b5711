"""An attention branch for export: its constraints are evaluated once, into ordinary weights."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invertible_attention.attention.branch import AttentionBranch
from invertible_attention.attention.constraints import Unconstrained
from invertible_attention.attention.context import ContextTokens
from invertible_attention.attention.evaluation import Evaluation, Norms, Scale
from invertible_attention.lipschitz.certificate import Normalization, ScoreBounds

__all__ = ["FrozenAttentionBranch", "bake_parametrizations"]

Module = TypeVar("Module", bound=nn.Module)


class FrozenAttentionBranch(Evaluation):
    """The current function of an :class:`AttentionBranch`, with its constrained weights stored as they are used.

    No weight is normed at run time. Changing the weights afterwards may break the contraction; nothing would notice.

    The scale of a certified branch is part of the weights too, unless it depends on how many tokens there are or
    which are seen: with ``normalization="all"``, with context tokens and column normalization, and with a position
    prior. Then the norms it is computed from are kept as numbers.

    Args:
        branch: The branch; it is left as it is.

    Raises:
        ValueError: If the branch has not been initialized.
    """

    radius: Tensor | None
    norms: Tensor | None

    def __init__(self, branch: AttentionBranch) -> None:
        super().__init__()
        if not bool(branch.initialized):
            raise ValueError("the radius is not set: call the layer once on data, or initialize(x), first")
        vars(self).update(vars(bake_parametrizations(copy.deepcopy(branch))))
        del self.log_radius, self.initialized
        with torch.no_grad():
            bound = branch.bind()
            scale = bound.scale
            norms = scale.norms if _scale_depends_on_what_is_seen(branch) else None
            if norms is None:
                self.constraint = Unconstrained()
                self.out_weight = nn.Parameter(bound.out_weight * branch.constraint.gain(scale.log_bound))
            self.register_buffer("norms", None if norms is None else _pack(norms))
            self.register_buffer("radius", None if scale.radius is None else scale.radius.clone())

    def compute_scale(self) -> Scale:
        """Return the scale that depends on the input: none, or that of the stored norms."""
        norms = None if self.norms is None else self._unpack(self.norms)
        device = self.out_weight.device
        return Scale(
            radius=self.radius,
            norms=norms,
            log_bound=torch.zeros((), device=device) if norms is None else norms.log_bound(),
            lipschitz_bound=torch.full((), torch.inf, device=device),
        )

    def forward(
        self,
        x: Float[Tensor, "batch channels *spatial"],
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Return ``g(x)``."""
        return self.bind().evaluate(x, context, mask)

    def _unpack(self, packed: Float[Tensor, "6 heads"]) -> Norms:
        assert self.radius is not None
        query_slope, key_slope, log_range, value, value_bias, log_out = packed
        return Norms(
            scores=ScoreBounds(query_slope, key_slope, log_range),
            value=value,
            value_bias=value_bias,
            radius=self.radius,
            log_out=log_out[0],
            normalization=cast(Normalization, self.normalization),
            causal=self.causal and self.position_prior is None,
        )


def _pack(norms: Norms) -> Float[Tensor, "6 heads"]:
    scores = norms.scores
    parts = (
        scores.query_slope,
        scores.key_slope,
        scores.log_range,
        norms.value,
        norms.value_bias,
        norms.log_out,
    )
    return torch.stack([part.expand_as(norms.value) for part in parts])


def _scale_depends_on_what_is_seen(branch: AttentionBranch) -> bool:
    tokens = isinstance(branch.context, ContextTokens) and branch.normalization == "column"
    return tokens or branch.normalization == "all" or branch.position_prior is not None


def bake_parametrizations(module: Module) -> Module:
    """Replace every parametrized tensor inside a module by its present value, in place."""
    for part in list(module.modules()):
        if not parametrize.is_parametrized(part):
            continue
        # torch's remove_parametrizations changes the class, which a copy shares with what it was copied from.
        with torch.no_grad():
            values = {name: getattr(part, name).clone() for name in part._modules["parametrizations"]}  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
        del part._modules["parametrizations"]
        part.__class__ = type(part).__bases__[0]
        for name, value in values.items():
            part.register_parameter(name, nn.Parameter(value))
    return module
