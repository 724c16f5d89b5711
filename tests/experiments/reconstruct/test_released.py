from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invertible_attention.experiments.reconstruct.released import (
    INVERSE_STEPS,
    ReleasedAttention,
    ReleasedBranch,
)

RESPONSES = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")


@pytest.fixture(params=RESPONSES)
def branch(request: pytest.FixtureRequest) -> ReleasedBranch:
    branch = ReleasedBranch(12, request.param).double().eval()
    if request.param == "gaussian":
        torch.nn.init.constant_(branch.gate, 0.7)
    return branch


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 12, 3, 4, dtype=torch.float64) - 0.5


def elu(score: float) -> float:
    return score if score > 0 else torch.tensor(score, dtype=torch.float64).exp().item() - 1


def by_hand(branch: ReleasedBranch, tokens: Tensor) -> Tensor:
    """The released block, token by token and weight by weight."""
    n = len(tokens)
    values = branch.value(tokens)
    rows = []
    for j in range(n):
        weights = []
        for i in range(n):
            if branch.response == "gaussian":
                weights.append((tokens[i] @ tokens[j]).exp().item())
            elif branch.response == "concatenation":
                pair = torch.cat([branch.query(tokens[i]), branch.key(tokens[j])])
                weights.append(elu(branch.join(pair).item()))
            else:
                score = branch.query(tokens[i]) @ branch.key(tokens[j])
                weights.append(
                    score.exp().item() if branch.response == "embedded_gaussian" else elu(score.item())
                )
        total = sum(weights)
        received = sum(weight / (1.5 * total) * value for weight, value in zip(weights, values, strict=True))
        rows.append(branch.gate.tanh() * received if branch.response == "gaussian" else branch.out(received))
    return torch.stack(rows)


def test_matches_the_definition(branch: ReleasedBranch, x: Tensor) -> None:
    tokens = x.flatten(2).mT
    expected = torch.stack([by_hand(branch, sample) for sample in tokens])
    torch.testing.assert_close(branch(x).flatten(2).mT, expected)


def test_weights_received_by_a_token_sum_to_two_thirds(branch: ReleasedBranch, x: Tensor) -> None:
    with torch.no_grad():
        branch.value.parametrizations.weight.original.zero_()
        branch.value.bias.fill_(1.0)
        if branch.response != "gaussian":
            branch.out.parametrizations.weight.original.copy_(0.5 * torch.eye(12))
            branch.out.bias.zero_()
    gain = 0.5 if branch.response != "gaussian" else torch.tensor(0.7).tanh().item()
    torch.testing.assert_close(branch(x), torch.full_like(x, gain * 2 / 3), rtol=1e-6, atol=0)


def test_the_gaussian_starts_as_the_identity(x: Tensor) -> None:
    layer = ReleasedAttention(12, "gaussian").double()
    assert torch.equal(layer(x), x)
    assert not hasattr(layer.branch, "out")


@pytest.mark.parametrize(("response", "coefficient"), [("embedded_gaussian", 0.9), ("dot_product", 0.5)])
def test_constraints_of_the_linear_maps(response: str, coefficient: float) -> None:
    branch = ReleasedBranch(12, response)
    for name, limit in (("value", coefficient), ("out", 0.9), ("query", 0.9), ("key", 0.9)):
        layer = getattr(branch, name)
        with torch.no_grad():
            layer.parametrizations.weight.original.mul_(100)
        for _ in range(20):
            layer.weight  # noqa: B018 (an evaluation is a step of the power iteration)
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(limit, rel=0.02)
        with torch.no_grad():
            layer.parametrizations.weight.original.mul_(1e-6)
        small = layer.parametrizations.weight.original
        torch.testing.assert_close(layer.weight, small)


def test_signed_weights_only_with_elu(x: Tensor) -> None:
    tokens = 10 * x.flatten(2).mT
    for response in RESPONSES:
        weights, sums = ReleasedBranch(12, response).double().signed_weights(tokens)
        assert bool((weights < 0).any()) == (response in ("dot_product", "concatenation"))
        torch.testing.assert_close(sums, weights.sum(1))


def test_the_inverse_is_the_last_of_fifty_steps(branch: ReleasedBranch, x: Tensor) -> None:
    layer = ReleasedAttention(12, branch.response).double().eval()
    layer.load_state_dict({f"branch.{name}": value for name, value in branch.state_dict().items()})
    z = layer(x)
    iterate = z
    for _ in range(INVERSE_STEPS):
        iterate = z - branch(iterate)
    solution = layer.solve_inverse(z)
    torch.testing.assert_close(solution.value, iterate)
    assert solution.evaluations.tolist() == [50, 50]
    residual = (iterate + branch(iterate) - z).flatten(1).norm(dim=1) / (1 + z.flatten(1).norm(dim=1))
    torch.testing.assert_close(solution.residual, residual, rtol=1e-3, atol=1e-15)


def test_diverging_iteration_is_not_reported_as_converged(x: Tensor) -> None:
    layer = ReleasedAttention(12, "dot_product").double().eval()
    for name in ("value", "out"):
        torch.nn.utils.parametrize.remove_parametrizations(getattr(layer.branch, name), "weight")
        with torch.no_grad():
            getattr(layer.branch, name).weight.copy_(5 * torch.eye(12))
    solution = layer.solve_inverse(layer(x))
    assert not solution.converged.any()
    assert not (solution.residual < 1e-6).any()


def test_released_layer_has_no_certificate() -> None:
    layer = ReleasedAttention(12, "concatenation")
    assert layer.lipschitz_bound().item() == float("inf")
    with pytest.raises(ValueError, match="got 'softmax'"):
        ReleasedBranch(12, "softmax")
