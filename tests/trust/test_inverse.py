"""Inverses are never reported wrongly: neither their convergence nor their error bound."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import invertible_attention as ia
from invertible_attention.experiments.audit.blocks import exact_branch

RESPONSES = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
SOLVERS = {
    "anderson": lambda: ia.Anderson(),
    "picard": lambda: ia.FixedPoint(),
    "newton": lambda: ia.NewtonKrylov(),
    "few": lambda: ia.Anderson(max_evaluations=4),
    "loose": lambda: ia.Anderson(tolerance=1e-3),
}
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}
ordinary = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])


class Folding(nn.Module):
    """``a sin x``, for ``a > 1`` not injective: many inputs have one output."""

    def __init__(self, amplitude: float) -> None:
        super().__init__()
        self.amplitude = nn.Parameter(torch.tensor(amplitude))

    def forward(self, x: Tensor) -> Tensor:
        return self.amplitude * x.sin()


class Flattening(nn.Module):
    """``−x`` inside of a box: every input in it is sent to zero."""

    def __init__(self, reach: float) -> None:
        super().__init__()
        self.reach = nn.Parameter(torch.tensor(reach))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.maximum(torch.minimum(x, self.reach.abs()), -self.reach.abs())


class Singular(nn.Module):
    """``x + Wx`` has the given smallest singular value, down to zero and beyond."""

    def __init__(self, smallest: float) -> None:
        super().__init__()
        basis = torch.linalg.qr(torch.randn(6, 6))[0]
        self.weight = nn.Parameter(basis @ torch.diag(torch.tensor([smallest, 1, 1, 2, 2, 3.0])) @ basis.T)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight - torch.eye(6).to(x)).T


def relaxed(scale: float, seed: int, dtype: torch.dtype) -> ia.Residual:
    response = RESPONSES[seed % 4]
    normalization = ("column", "row", "all")[seed % 3]
    layer = ia.InvertibleAttention(4, response, constraint=ia.Relaxed(0.99), normalization=normalization)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return layer.to(dtype)


def residual_in_float64(layer: ia.Residual, value: Tensor, z: Tensor) -> Tensor:
    """Return the relative residual of the map that the layer's weights define, evaluated in float64."""
    exact = layer.double()
    residual = value.double() + exact.branch(value.double()) - z.double()
    return residual.flatten(1).norm(dim=1) / (1 + z.double().flatten(1).norm(dim=1))


def rounding(layer: ia.Residual, value: Tensor, z: Tensor) -> Tensor:
    """Return how far the branch in its own precision is from itself in float64, relative as residuals are."""
    low = layer.branch(value).double()
    error = (low - layer.double().branch(value.double())).flatten(1).norm(dim=1)
    layer.to(value.dtype)
    return error / (1 + z.double().flatten(1).norm(dim=1))


def check_honest(layer: ia.Residual, z: Tensor) -> ia.Solution:
    """Solve and compare the reported values with the true ones; return the solution."""
    with torch.no_grad():
        solution = layer.solve_inverse(z)
        tolerance = layer.solver.tolerance or TOLERANCES[z.dtype]
        slack = rounding(layer, solution.value, z)
        true = residual_in_float64(layer, solution.value, z)
        layer.to(z.dtype)
        said = solution.converged
        # In float64 rounding is about 1e-16, far below the tolerance; in float32 it is the quantity measured.
        assert (true[said] <= tolerance * (1 + 1e-3) + slack[said]).all()
        assert (solution.residual[said] <= tolerance).all()
        if not said.all():
            with pytest.raises(ia.ConvergenceError):
                layer.inverse(z)
    return solution


@ordinary
@given(
    log_scale=st.floats(-1, 2),
    log_input=st.floats(-3, 3),
    solver=st.sampled_from(sorted(SOLVERS)),
    dtype=st.sampled_from(sorted(TOLERANCES, key=str)),
    seed=st.integers(0, 2**31),
)
def test_relaxed_layers_at_any_scale(log_scale, log_input, solver, dtype, seed):
    torch.manual_seed(seed)
    layer = relaxed(10**log_scale, seed, dtype)
    layer.solver = SOLVERS[solver]()
    z = 10**log_input * torch.randn(3, 4, 5, dtype=dtype)
    solution = check_honest(layer, z)
    assert solution.error_bound.isinf().all()  # no certificate, so no finite bound


@ordinary
@given(
    kind=st.sampled_from(("folding", "flattening", "singular")),
    strength=st.floats(0, 3),
    reachable=st.booleans(),
    solver=st.sampled_from(sorted(SOLVERS)),
    dtype=st.sampled_from(sorted(TOLERANCES, key=str)),
    seed=st.integers(0, 2**31),
)
def test_non_invertible_maps_are_reported(kind, strength, reachable, solver, dtype, seed):
    torch.manual_seed(seed)
    branch = {
        "folding": lambda: Folding(strength),
        "flattening": lambda: Flattening(strength),
        "singular": lambda: Singular(strength - 1.5),
    }[kind]()
    layer = ia.Residual(branch, solver=SOLVERS[solver]()).to(dtype)
    x = 3 * torch.randn(4, 6, dtype=dtype)
    z = layer(x).detach() if reachable else x
    solution = check_honest(layer, z)
    assert solution.error_bound.isinf().all()


def test_both_outcomes_occur():
    """If a layer always or never failed, the tests above would be vacuous."""
    outcomes = {"converged": 0, "failed": 0, "elsewhere": 0}
    for seed in range(12):
        torch.manual_seed(seed)
        solver = ia.Anderson(max_evaluations=100 if seed % 2 else 6)
        layer = ia.Residual(Folding(0.5 + 0.2 * seed), solver=solver).double()
        x = 3 * torch.randn(4, 6, dtype=torch.float64)
        solution = check_honest(layer, layer(x).detach())
        near = (solution.value - x).norm(dim=1) < 1e-6
        outcomes["converged"] += int((solution.converged & near).sum())
        outcomes["elsewhere"] += int((solution.converged & ~near).sum())
        outcomes["failed"] += int((~solution.converged).sum())
    assert all(outcomes.values()), outcomes


def certified(kind: str, coefficient: float, log_scale: float, seed: int) -> ia.Residual:
    scale = 10**log_scale
    if kind == "convolution":
        branch = ia.flows.LipschitzConvBranch(4, 5, (5,), coefficient=coefficient)
        layer = ia.Residual(branch)
    elif kind == "linear":
        layer = ia.Residual(ia.flows.LipschitzLinearBranch(20, 9, coefficient=coefficient))
    else:
        normalization = ("column", "row", "all")[seed % 3]
        constraint = ia.Certified(coefficient, radius=scale)
        layer = ia.InvertibleAttention(4, kind, constraint=constraint, normalization=normalization, bias=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(2 * torch.randn_like(parameter))
        if isinstance(layer, ia.InvertibleAttention):
            layer.branch._rescale_response()
    return layer


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from((*RESPONSES, "convolution", "linear")),
    coefficient=st.sampled_from((0.1, 0.9, 0.99, 0.999)),
    log_scale=st.floats(-3, 3),
    solver=st.sampled_from(("anderson", "picard", "few", "loose")),
    dtype=st.sampled_from(sorted(TOLERANCES, key=str)),
    seed=st.integers(0, 2**31),
)
def test_the_error_bound_is_never_below_the_true_error(kind, coefficient, log_scale, solver, dtype, seed):
    torch.manual_seed(seed)
    layer = certified(kind, coefficient, log_scale, seed).to(dtype)
    layer.solver = SOLVERS[solver]()
    z = 10**log_scale * torch.randn(3, 4, 5, dtype=dtype)
    with torch.no_grad():
        solution = layer.solve_inverse(z)
        assert solution.error_bound.isfinite().all()
        # The exact solution for the same numbers, in float64 and far below the tolerance.
        truth = ia.FixedPoint(max_evaluations=60_000, tolerance=1e-15).solve(
            exact_branch(layer), z.double(), lipschitz=layer.lipschitz_bound()
        )
        error = (solution.value.double() - truth.value).flatten(1).norm(dim=1)
    assert (error <= solution.error_bound.double() + truth.error_bound).all()


def test_error_bound_is_informative():
    layer = ia.InvertibleAttention(4, solver=ia.Anderson(tolerance=1e-4)).double()
    x = torch.randn(8, 4, 5, dtype=torch.float64)
    solution = layer.solve_inverse(layer(x))
    error = (solution.value - x).flatten(1).norm(dim=1)
    assert (solution.error_bound < 1e-2).all()
    assert (solution.error_bound < 1e4 * error).all()
