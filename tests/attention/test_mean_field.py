"""The preconditioner is the inverse where all attention weights are equal, and saves evaluations elsewhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import invertible_attention as ia
from invertible_attention.attention.evaluation import Evaluation
from invertible_attention.attention.mean_field import invert_mean_field

CONSTRAINTS = [ia.Certified(0.9), ia.Relaxed(0.9, column_sum=0.8)]


@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 6),
    channels=st.integers(1, 5),
    masked=st.booleans(),
    per_sample=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=50)
def test_is_the_dense_inverse(
    batch: int, tokens: int, channels: int, masked: bool, per_sample: bool, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    real = {"generator": generator, "dtype": torch.float64}
    residual, weight = torch.randn(batch, tokens, channels, **real), torch.randn(channels, channels, **real)
    weight /= torch.linalg.matrix_norm(weight, 2)
    gain = 0.95 * torch.rand((batch,) if per_sample else (), **real)
    mask = torch.rand(batch, tokens, generator=generator) < 0.7 if masked else None
    found = invert_mean_field(residual, weight, gain, mask)
    for sample in range(batch):
        valid = torch.ones(tokens, dtype=torch.float64) if mask is None else mask[sample].double()
        average = torch.outer(valid, valid) / valid.sum().clamp_min(1)
        dense = torch.eye(tokens * channels, dtype=torch.float64)
        dense += torch.kron(average, (gain[sample] if per_sample else gain) * weight)
        expected = torch.linalg.solve(dense, residual[sample].flatten()).view(tokens, channels)
        torch.testing.assert_close(found[sample], expected)


def layer(**arguments) -> ia.InvertibleAttention:
    built = ia.InvertibleAttention(6, **arguments).double()
    built.branch.initialize(torch.randn(4, 6, 3, 3, dtype=torch.float64))
    return built


def with_equal_weights(built: ia.InvertibleAttention) -> ia.InvertibleAttention:
    with torch.no_grad():
        for parameter in built.branch.response.parameters():
            parameter.zero_()
    return built


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=["certified", "relaxed"])
@pytest.mark.parametrize("normalization", ["column", "row", "all"])
@pytest.mark.parametrize("response", ["embedded_gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize(("heads", "masked"), [(1, False), (2, True)])
def test_is_the_inverse_at_equal_weights(response, normalization, constraint, heads: int, masked: bool):
    built = with_equal_weights(
        layer(response=response, normalization=normalization, constraint=constraint, heads=heads)
    )
    x = 0.1 * torch.randn(2, 6, 3, 3, dtype=torch.float64)
    mask = torch.rand(2, 3, 3) < 0.6 if masked else None
    branch = built.branch.bind()
    with torch.no_grad():
        jacobians = [
            _jacobian(branch, x[i : i + 1], None if mask is None else mask[i : i + 1]) for i in range(2)
        ]
        residual = torch.randn_like(x)
        for transposed in (False, True):
            found = branch.precondition(residual, None, mask, transposed=transposed)
            for sample, jacobian in enumerate(jacobians):
                matrix = torch.eye(54, dtype=torch.float64) + (jacobian.mT if transposed else jacobian)
                expected = torch.linalg.solve(matrix, residual[sample].flatten())
                torch.testing.assert_close(found[sample].flatten(), expected)


def _jacobian(branch: Evaluation, x: Tensor, mask: Tensor | None) -> Tensor:
    def flat(v: Tensor) -> Tensor:
        return branch(v.view_as(x), None, mask).flatten()

    return torch.autograd.functional.jacobian(flat, x.flatten())


def test_where_weights_cannot_be_equal_nothing_is_changed():
    residual = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    context = torch.randn(2, 5, 4, dtype=torch.float64)
    causal = layer(normalization="row", causal=True).branch.bind()
    tokens = ia.InvertibleAttention(
        6, normalization="row", context_channels=5, context_kind="tokens"
    ).double()
    assert torch.equal(causal.precondition(residual), residual)
    assert torch.equal(tokens.branch.bind().precondition(residual, context), residual)


def like_trained(constraint: ia.Certified | ia.Relaxed, response: str, solver: ia.Solver):
    """What training on images does: the whole budget against the mean, little of it on the scores."""
    built = layer(response=response, constraint=constraint, solver=solver)
    with torch.no_grad():
        value, out = torch.diag(torch.linspace(0.2, 1.0, 6)).double(), -20 * torch.eye(6).double()
        if isinstance(constraint, ia.Certified):
            built.branch.value_weight.copy_(value)
            built.branch.out_weight.copy_(out)
        else:
            built.branch.value_weight, built.branch.out_weight = value, out
        for parameter in built.branch.response.parameters():
            parameter.mul_(0.1)
    return built


@pytest.mark.parametrize("response", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize("solver", [ia.Anderson(), ia.NewtonKrylov()], ids=["anderson", "newton-krylov"])
@pytest.mark.parametrize("constraint", [ia.Certified(0.95), ia.Relaxed(0.95)], ids=["certified", "relaxed"])
def test_saves_evaluations_in_both_directions(
    response: str, solver: ia.Solver, constraint, monkeypatch: pytest.MonkeyPatch
):
    built = like_trained(constraint, response, solver)
    x = 0.3 * torch.rand(8, 6, 8, 8, dtype=torch.float64)
    z = built(x).detach().requires_grad_()
    with_it = built.solve_inverse(z)
    (gradient,) = torch.autograd.grad(with_it.value.square().sum(), z)
    monkeypatch.delattr(Evaluation, "precondition")
    without = built.solve_inverse(z)
    (same,) = torch.autograd.grad(without.value.square().sum(), z)
    assert with_it.converged.all()
    assert with_it.evaluations.sum() < 0.75 * without.evaluations.sum()
    torch.testing.assert_close(with_it.value, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient, same, rtol=1e-8, atol=1e-8)
