from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from invertible_attention.solvers.problem import Problem, Progress, select


def make_problem(
    branch, z: Tensor, *args: Tensor | None, event_shape: tuple[int, ...] | None = None
) -> Problem:
    return Problem(branch, z, args, event_shape or tuple(z.shape[1:]), None, 1e-12)


def test_residual_is_x_plus_g_minus_z():
    z, x = torch.randn(4, 6), torch.randn(4, 6)
    residual, distance = make_problem(torch.sin, z).residual(x)
    torch.testing.assert_close(residual, x + x.sin() - z)
    torch.testing.assert_close(distance, (x - z).double().norm(dim=1))


def test_branch_sees_the_shape_of_the_event():
    def branch(x: Tensor) -> Tensor:
        assert x.shape == (4, 3, 2)
        return x.flip(1)

    x = torch.randn(4, 6)
    output = make_problem(branch, torch.zeros(4, 6), event_shape=(3, 2)).evaluate(x)
    torch.testing.assert_close(output, x.reshape(4, 3, 2).flip(1).reshape(4, 6))


def test_branch_output_is_cast_back():
    assert (
        make_problem(lambda x: x.bfloat16(), torch.zeros(2, 3)).evaluate(torch.ones(2, 3)).dtype
        == torch.float32
    )


@pytest.mark.parametrize("wrong", [lambda x: x[:, :1], lambda x: x.sum(), lambda x: x[None]])
def test_branch_that_changes_the_shape_is_refused(wrong):
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        make_problem(wrong, torch.zeros(2, 3)).evaluate(torch.ones(2, 3))


def test_arguments_follow_the_samples():
    args = (torch.arange(4.0)[:, None], None)
    problem = make_problem(lambda x, a, none: x * a, torch.zeros(4, 2), *args).select(torch.tensor([3, 1]))
    assert problem.evaluate(torch.ones(2, 2)).tolist() == [[3, 3], [1, 1]]
    assert problem.evaluate(torch.ones(1, 2), torch.tensor([1])).tolist() == [[1, 1]]


def test_select_indexes_tensors_and_keeps_other_arguments():
    @dataclass(frozen=True)
    class State:
        a: Tensor
        n: int

    chosen = select(State(torch.arange(5), 7), torch.tensor([4, 0]))
    assert chosen.a.tolist() == [4, 0]
    assert chosen.n == 7


def test_progress_keeps_the_best_of_each_sample():
    progress = Progress.start(torch.zeros(3, 1))
    for residuals in ([1.0, 5.0, torch.nan], [2.0, 4.0, 3.0], [0.5, torch.inf, 3.0]):
        residual = torch.tensor(residuals)[:, None]
        progress = progress.advance(residual * 10, residual)
    assert progress.best_norm.tolist() == [0.5, 4.0, 3.0]
    assert progress.best_x.flatten().tolist() == [5.0, 40.0, 30.0]
    assert progress.norm.tolist() == [0.5, torch.inf, 3.0]
    assert progress.stalled.tolist() == [0, 1, 1]
