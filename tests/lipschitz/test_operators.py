"""Cost of a certificate: operators of a forward pass, most of which compute norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import invertible_attention as ia
from invertible_attention import flows
from invertible_attention.lipschitz import bind as module_under_test
from invertible_attention.solvers import Solver


class Count(TorchDispatchMode):
    """Counts the operators that are dispatched."""

    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return function(*args, **(kwargs or {}))


def operators(action: Callable[[], object]) -> int:
    with Count() as count:
        action()
    return count.number


@pytest.mark.parametrize("response", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
def test_operators_of_certified_attention(response: str):
    layer, x = ia.InvertibleAttention(12, response), torch.randn(2, 12, 8, 8)
    layer.initialize(x)
    with torch.no_grad():
        assert operators(lambda: layer(x)) <= 250


def test_operators_of_a_convolution_block():
    block, x = flows.Residual(flows.LipschitzConvBranch(12, 32, (8, 8))), torch.randn(2, 12, 8, 8)
    with torch.no_grad():
        assert operators(lambda: block(x)) <= 150


def test_operators_of_a_training_step():
    flow = flows.i_resnet(blocks=(16, 16, 16), hidden_channels=4)
    x = torch.randint(0, 256, (2, 3, 32, 32))
    flow.initialize(x)
    assert operators(lambda: flow.bits_per_dim(x).mean().backward()) <= 7_930


@pytest.mark.parametrize(
    ("solver", "most"), [(ia.Anderson(), 65), (ia.FixedPoint(), 34), (ia.NewtonKrylov(), 180)], ids=str
)
def test_operators_of_a_solver_per_evaluation(solver: Solver, most: int):
    matrix = torch.randn(20, 20)
    matrix = 0.8 * matrix / torch.linalg.matrix_norm(matrix, 2)
    z = torch.randn(8, 20)
    solutions = []
    with torch.no_grad():
        count = operators(
            lambda: solutions.append(solver.solve(lambda x: torch.tanh(x @ matrix), z, lipschitz=0.9))
        )
    assert count / solutions[0].evaluations.max() <= most


def test_operators_of_the_inverse_of_a_flow():
    flow = flows.Sequential(*(flows.Residual(flows.LipschitzLinearBranch(2, 64)) for _ in range(4)))
    x = torch.randn(16, 2)
    with torch.no_grad():
        z = flow(x)
        assert operators(lambda: flow.inverse(z)) <= 1_500


def test_operators_of_norms_do_not_grow_with_the_number_of_blocks():
    def norms(blocks: int) -> int:
        branches = [flows.LipschitzConvBranch(12, 16, (8, 8)) for _ in range(blocks)]
        return operators(lambda: module_under_test.bind_together(branches))

    # Only one view of each of the three weights is added, into and out of the stack.
    assert norms(16) - norms(2) <= 14 * 3 * 3


def test_norms_of_a_flow_are_computed_once_in_a_pass(monkeypatch: pytest.MonkeyPatch):
    calls = []
    plain = module_under_test.norm_upper_bounds

    def counting(found: Any, **settings: Any) -> Any:
        calls.append(len(found))
        return plain(found, **settings)

    monkeypatch.setattr(module_under_test, "norm_upper_bounds", counting)
    flow = flows.i_resnet((2, 8, 8), levels=4, blocks=(3, 2), hidden_channels=6)
    x = torch.randint(0, 4, (2, 2, 8, 8))
    flow.initialize(x)
    for action in (
        lambda: flow.log_prob(x).sum().backward(),
        lambda: flow.sample(2),
        lambda: flow.transform(x),
    ):
        calls.clear()
        action()
        # Kernels of 3×3 and of 1×1, on two scales.
        assert calls == [4]
