"""An attention branch without constraints: what they computed is baked into ordinary weights."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invertible_attention.attention.branch import AttentionBranch
from invertible_attention.attention.constraints import Unconstrained
from invertible_attention.attention.context import ContextTokens
from invertible_attention.attention.evaluation import Evaluation, Weights

__all__ = ["PlainAttentionBranch", "bake_parametrizations"]

Module = TypeVar("Module", bound=nn.Module)


class PlainAttentionBranch(nn.Module):
    """The function of an :class:`AttentionBranch` as it is now, with weights that are used as they are stored.

    Nothing is normed, bounded or scaled at run time. Changing the weights afterwards may break the contraction;
    nothing would notice.

    Args:
        branch: The branch; it is left as it is.

    Raises:
        ValueError: If the branch's scale depends on the number of tokens (``normalization="all"``, or context
            tokens with column normalization), or it has not been initialized.
    """

    radius: Tensor | None
    uses_mask = True

    def __init__(self, branch: AttentionBranch) -> None:
        super().__init__()
        if not bool(branch.initialized):
            raise ValueError("call the layer once on data first: its radius is not set")
        tokens = isinstance(branch.context, ContextTokens) and branch.normalization == "column"
        if branch.log_radius is not None and (tokens or branch.normalization == "all"):
            raise ValueError(
                f"the scale of normalization={branch.normalization!r}"
                f"{' with context tokens' if tokens else ''} depends on the number of tokens: no fixed weights"
            )
        with torch.no_grad():
            weights = branch.bind().weights
            self.value_weight = nn.Parameter(weights.value.clone())
            self.value_bias = None if weights.value_bias is None else nn.Parameter(weights.value_bias.clone())
            gain = branch.constraint.gain(weights.log_bound)
            self.out_weight = nn.Parameter((weights.out * gain).clone())
            self.out_bias = None if weights.out_bias is None else nn.Parameter(weights.out_bias.clone())
            self.register_buffer("radius", None if weights.radius is None else weights.radius.clone())
        self.response = bake_parametrizations(copy.deepcopy(branch.response))
        self.position_prior = copy.deepcopy(branch.position_prior)
        self.context = copy.deepcopy(branch.context)
        self.normalization, self.heads, self.causal = branch.normalization, branch.heads, branch.causal
        self.implementation = branch.implementation

    @property
    def uses_context(self) -> bool:
        """Whether the branch is called with a context."""
        return self.context is not None

    def bind(self) -> Evaluation:
        """Return the branch as a function of ``x``."""
        weights = Weights(
            value=self.value_weight,
            value_bias=self.value_bias,
            out=self.out_weight,
            out_bias=self.out_bias,
            radius=self.radius,
            norms=None,
            log_bound=torch.zeros((), device=self.out_weight.device),
        )
        return Evaluation(
            weights,
            self.response,
            Unconstrained(),
            self.normalization,
            self.heads,
            self.position_prior,
            self.context,
            self.causal,
            self.implementation,
        )

    def forward(
        self,
        x: Float[Tensor, "batch channels *spatial"],
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Return ``g(x)``."""
        return self.bind()(x, context, mask)


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
