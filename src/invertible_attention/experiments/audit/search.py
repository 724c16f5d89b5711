"""Searching one group of layers: measure all of them, then ascend from those closest to their bound."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from ...attention import AttentionBranch, InvertibleAttention
from .configurations import DTYPES, Structure, draw_population, draw_structure
from .settings import Campaign

__all__ = ["ALLOWANCE", "EDGES", "RANGES", "Group", "Measure", "histogram", "search_group"]

ALLOWANCE = 1e-12
"""Relative excess put down to rounding of the Jacobian and its norm, which are computed in float64 throughout."""

EDGES = (0.0, 1e-3, 1e-2, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
"""Edges of the histogram of ratios; below the first two are zero and tiny ones."""

RANGES = (0.1, 1.0, 5.0)
"""Limits between ranges of scores: equal weights, nearly equal, as trained layers have them, and sharp."""

Parameters = dict[str, Tensor]


@dataclass
class Group:
    """What was found in a group.

    Attributes:
        group: its number.
        structure: what its layers share.
        configurations: how many layers there were.
        histogram: of the ratios at the random inputs, counted between :data:`EDGES`.
        tightest: largest ratio of all in each part of :data:`RANGES`.
        random: largest ratio at the random inputs.
        ascended: largest ratio of all, after ascent.
        constant, bound: the local Lipschitz constant and the bound there.
        member: which layer that was.
        violations: ratios above ``1 + ALLOWANCE``, with the layer's number.
        not_finite: layers whose bound or Jacobian is not a finite number.
        worst: parameters and input of the largest ratio; not part of :meth:`to_json`.
    """

    group: int
    structure: Structure
    configurations: int
    histogram: list[int]
    tightest: list[float]
    random: float
    ascended: float
    constant: float
    bound: float
    member: int
    violations: list[tuple[int, float]]
    not_finite: int
    worst: Parameters = field(default_factory=dict, repr=False)

    def note(
        self,
        members: Tensor,
        ratios: Tensor,
        ranges: Tensor,
        constants: Tensor,
        limits: Tensor,
        state: Parameters,
    ) -> None:
        """Remember the largest ratio, the largest of each range of scores, and all that are too large."""
        parts = torch.bucketize(ranges, torch.tensor(RANGES, dtype=ranges.dtype)).tolist()
        known = dict(self.violations)
        for member, part, ratio in zip(members.tolist(), parts, ratios.tolist(), strict=True):
            self.tightest[part] = max(self.tightest[part], ratio)
            if ratio > 1 + ALLOWANCE:
                known[member] = max(ratio, known.get(member, 0.0))
        self.violations = sorted(known.items())
        index = int(ratios.argmax())
        if float(ratios[index]) > self.ascended:
            self.ascended, self.member = float(ratios[index]), int(members[index])
            self.constant, self.bound = float(constants[index]), float(limits[index])
            self.worst = {name: value[index].clone() for name, value in state.items()}

    def to_json(self) -> dict[str, Any]:
        """Return everything but the tensors as JSON values."""
        values = {name: value for name, value in vars(self).items() if name != "worst"}
        return values | {
            "structure": self.structure.to_json(),
            "violations": [list(item) for item in self.violations],
        }


class _Measured(nn.Module):
    """A layer as one function for ``functional_call``: its branch, its bound, and the range of its scores."""

    def __init__(self, layer: InvertibleAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, what: str, x: Tensor) -> Tensor:
        if what == "branch":
            return self.layer.branch(x)
        if what == "bound":
            return self.layer.lipschitz_bound()
        branch = self.layer.branch
        assert isinstance(branch, AttentionBranch)
        assert branch.radius is not None
        radius = branch.radius.to(torch.promote_types(branch.radius.dtype, torch.float32))
        normalization: Any = branch.normalization
        return branch.response.score_bounds(radius, normalization).log_range.amax()


class Measure:
    """The layers of a structure as functions of their parameters.

    Weights are rounded to the structure's dtype, and the bound and the factor that keeps it are computed from the
    rounded ones in the precision such a layer uses. The branch itself is evaluated in float64: what is compared
    with the bound is the map those weights define, not the rounding of one evaluation.

    Args:
        structure: of the layers.
    """

    def __init__(self, structure: Structure) -> None:
        self._dtype = DTYPES[structure.dtype]
        self._module = _Measured(structure.build())

    def constants(self, parameters: Parameters, x: Tensor) -> Float[Tensor, " layers"]:
        """Return the exact local Lipschitz constant of every layer at its input, differentiably."""

        def jacobian(parameters: Parameters, x: Tensor) -> Tensor:
            return jacrev(lambda sample: self._call(parameters, "branch", sample[None])[0].flatten())(x)

        return _norms(vmap(jacobian)(parameters, x).flatten(2))

    def bounds(self, parameters: Parameters) -> Float[Tensor, " layers"]:
        """Return what every layer promises, differentiably."""
        return self._each("bound", parameters)

    @torch.no_grad()
    def score_ranges(self, parameters: Parameters) -> Float[Tensor, " layers"]:
        """Return the range of every layer's scores over the ball."""
        return self._each("range", parameters)

    def _each(self, what: str, parameters: Parameters) -> Tensor:
        return vmap(lambda own: self._call(own, what, torch.empty(0)).double())(parameters)

    def _call(self, parameters: Parameters, what: str, x: Tensor) -> Tensor:
        rounded = {name: value.to(self._dtype) for name, value in parameters.items()}
        return functional_call(self._module, rounded, (what, x))


def _norms(jacobians: Float[Tensor, "layers rows columns"]) -> Float[Tensor, " layers"]:
    # Half of the layers have constants whose squares vanish: scaled, none of them is lost.
    finite = jacobians.isfinite().all(-1).all(-1)
    scale = jacobians.detach().abs().amax((-2, -1))
    safe = torch.where(finite & (scale > 0), scale, 1.0)
    scaled = torch.where(finite[:, None, None], jacobians, 0.0) / safe[:, None, None]
    norms = torch.linalg.matrix_norm(scaled, ord=2) * safe
    return torch.where(finite, norms, torch.nan)


def search_group(campaign: Campaign, group: int) -> Group:
    """Draw a group, measure every layer, ascend from the most promising, and return what was found.

    Args:
        campaign: the search's seed, and what is spent on a group.
        group: number of the group; the same seed and number give the same group.
    """
    seed, size = campaign.seed, campaign.group_size
    structure = draw_structure(seed, group)
    population = draw_population(structure, seed, group, size=size, inputs=campaign.inputs)
    measure = Measure(structure)
    with torch.no_grad():
        limits = measure.bounds(population.parameters)
        measured = [measure.constants(population.parameters, x) for x in population.inputs.unbind(1)]
    constants, at = torch.stack(measured, 1).max(1)  # NaN counts as largest
    finite = constants.isfinite() & limits.isfinite()
    ratios = torch.where(finite, _ratios(constants, limits), -1.0)
    ranges = measure.score_ranges(population.parameters)
    found = Group(
        group,
        structure,
        configurations=size,
        histogram=histogram(ratios[finite]),
        tightest=[0.0] * (len(RANGES) + 1),
        random=float(ratios.max()),
        ascended=-1.0,
        constant=0.0,
        bound=0.0,
        member=0,
        violations=[],
        not_finite=int((~finite).sum()),
    )
    start = population.inputs[torch.arange(size), at]
    found.note(torch.arange(size), ratios, ranges, constants, limits, population.parameters | {"x": start})
    chosen = _choose(ratios, ranges, campaign.ascents)
    if len(chosen):
        origin = {name: value[chosen] for name, value in population.parameters.items()} | {"x": start[chosen]}
        _ascend(found, measure, chosen, origin, ranges[chosen], campaign)
    return found


def _choose(ratios: Tensor, ranges: Tensor, ascents: int) -> Tensor:
    """Return the layers closest to their bound, as many of each part of the ranges."""
    part = torch.bucketize(ranges, torch.tensor(RANGES, dtype=ranges.dtype))
    chosen = []
    for index in range(len(RANGES) + 1):
        here = torch.where((part == index) & (ratios > 0), ratios, -1.0)
        best = here.topk(min(len(here), ascents // (len(RANGES) + 1)))
        chosen.append(best.indices[best.values > 0])
    return torch.cat(chosen)


def _ratios(constants: Tensor, limits: Tensor) -> Tensor:
    """Return constant over bound; a bound of zero is kept by a constant of zero."""
    return torch.where((constants == 0) & (limits >= 0), 0.0, constants / limits)


def _ascend(
    found: Group, measure: Measure, members: Tensor, origin: Parameters, ranges: Tensor, campaign: Campaign
) -> None:
    """Ascend the logarithm of the ratio in input and parameters, and note what is met in ``found``.

    Equal weights are where the bound is tightest, and where every ascent would end. Layers whose scores have a
    range of their own keep it: response and radius stay as they are.
    """
    scale = {name: _scale(name, value, origin) for name, value in origin.items()}
    keep = ranges > RANGES[1]
    for name, value in scale.items():
        if "response" in name or name.endswith("log_radius"):
            value[keep] = 0.0
    # Relative steps: scales are from 1e-6 to 1e6.
    change = {name: torch.zeros_like(value, requires_grad=True) for name, value in origin.items()}
    optimizer = torch.optim.Adam(change.values(), lr=campaign.learning_rate)
    for step in range(campaign.steps + 1):
        state = {name: origin[name] + scale[name] * change[name] for name in origin}
        parameters = {name: value for name, value in state.items() if name != "x"}
        constants, limits = measure.constants(parameters, state["x"]), measure.bounds(parameters)
        alive = constants.isfinite() & limits.isfinite() & (constants > 0) & (limits > 0)
        with torch.no_grad():
            ratios = torch.where(alive, _ratios(constants, limits), -1.0)
            found.note(
                members, ratios, measure.score_ranges(parameters), constants.detach(), limits.detach(), state
            )
        if step == campaign.steps or not bool(alive.any()):
            break
        optimizer.zero_grad()
        (limits[alive].log() - constants[alive].log()).sum().backward()
        for tensor in change.values():
            if tensor.grad is not None:
                tensor.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()


def _scale(name: str, value: Tensor, origin: Parameters) -> Tensor:
    """Return the size of a step of 1, per layer."""
    if name.endswith(("log_radius", "log_concentration", "offset")):
        return torch.ones_like(value)
    if name == "x":
        norms = value.norm(dim=1).flatten(1).amax(1)
        radius = origin["layer.branch.log_radius"].exp()
        sizes = torch.minimum(norms, radius) / value.shape[1] ** 0.5
    else:
        sizes = value.flatten(1).square().mean(1).sqrt()
    return sizes.reshape(-1, *(1,) * (value.ndim - 1)).clamp_min(1e-30)


def histogram(ratios: Tensor) -> list[int]:
    """Count ratios between the edges, below the first two together with zero, and last those above 1."""
    places = torch.bucketize(ratios, torch.tensor(EDGES[1:], dtype=ratios.dtype))
    return torch.bincount(places, minlength=len(EDGES)).tolist()
