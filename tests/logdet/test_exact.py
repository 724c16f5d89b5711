from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from invertible_attention.logdet import Exact


@pytest.mark.parametrize("chunk_size", [1, 3, 32])
def test_equals_slogdet_of_the_jacobian(block, jacobian, chunk_size):
    branch, sample = block
    x = torch.cat([sample, sample.roll(1, -1), 2 * sample])
    value, logdet = Exact(chunk_size=chunk_size)(branch, x)
    torch.testing.assert_close(value, branch(x))
    for i in range(3):
        full = jacobian(branch, x[i : i + 1])
        expected = torch.linalg.slogdet(torch.eye(full.shape[0], dtype=full.dtype) + full).logabsdet
        torch.testing.assert_close(logdet[i], expected)


def test_gradients_reach_input_parameters_and_arguments(block):
    branch, sample = block
    x = torch.cat([sample, 2 * sample]).requires_grad_()
    gain = torch.tensor([0.5, 0.7], dtype=torch.float64, requires_grad=True)

    def scaled(x, gain):
        return branch(x) * gain.view(-1, *[1] * (x.ndim - 1))

    def logdet(x, gain):
        return Exact()(scaled, x, (gain,))[1]

    torch.autograd.gradcheck(logdet, (x, gain))
    torch.autograd.gradgradcheck(logdet, (x[:1].detach().requires_grad_(), gain[:1]))
    grads = torch.autograd.grad(logdet(x, gain).sum(), list(branch.parameters()), allow_unused=True)
    reached = [grad is not None and bool(grad.abs().max() > 0) for grad in grads]
    # the last bias shifts the branch, which no Jacobian sees
    assert [name for (name, _), ok in zip(branch.named_parameters(), reached, strict=True) if not ok] in (
        [],
        ["second.bias"],
    )


def test_absolute_value_of_a_negative_determinant():
    _, logdet = Exact()(lambda x: -3 * x, torch.zeros(1, 3, dtype=torch.float64))
    assert logdet.item() == pytest.approx(3 * math.log(2))


def test_argument_computed_from_the_input_is_held_fixed():
    # log det of the partial derivative, 1 + c, not of the total one, which would be 1 + 2c
    x = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    _, logdet = Exact()(lambda x, c: c * x, x, (x * 1.0,))
    assert logdet.item() == pytest.approx(math.log(1.3))


def test_autocast_does_not_lower_the_precision():
    torch.manual_seed(0)
    linear = nn.Linear(8, 8)
    x = torch.randn(4, 8)
    expected = Exact()(linear, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, logdet = Exact()(linear, x)
        _, raised = Exact()(linear, x.bfloat16())
    torch.testing.assert_close((value, logdet), expected)
    assert raised.dtype == torch.float32


def test_half_precision_module_is_evaluated_in_single_precision():
    linear, x = nn.Linear(8, 8).bfloat16(), torch.randn(2, 8, dtype=torch.bfloat16)
    value, logdet = Exact()(linear, x)
    reference = nn.Linear(8, 8)
    reference.load_state_dict(linear.state_dict())
    expected = Exact()(reference, x.float())
    torch.testing.assert_close((value, logdet), expected)


def test_functional_transforms_give_the_same_gradient(block):
    branch, sample = block
    parameters = dict(branch.named_parameters())

    def loss(parameters, x):
        return Exact()(lambda x: torch.func.functional_call(branch, parameters, (x,)), x)[1].sum()

    found = torch.func.grad(loss)(parameters, sample)
    expected = torch.autograd.grad(loss(parameters, sample), list(parameters.values()), allow_unused=True)
    for value, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(value, torch.zeros_like(value) if other is None else other)


def test_without_gradients_the_results_are_constants():
    linear = nn.Linear(3, 3)
    with torch.no_grad():
        value, logdet = Exact()(linear, torch.randn(2, 3))
    assert not value.requires_grad
    assert not logdet.requires_grad


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Exact(chunk_size=0), "chunk_size must be at least 1, got 0"),
        (lambda: Exact()(lambda x: x[:, :2], torch.zeros(2, 3)), r"shape \(2, 3\) to \(2, 2\)"),
        (lambda: Exact()(lambda x: x, torch.zeros(2, 3, dtype=torch.int64)), "torch.int64"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
