from __future__ import annotations

import pytest
import torch
from torch import nn

from invertible_attention.logdet.linearization import Linearization, promote

HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_tensors_are_promoted(half: torch.dtype, autocast: bool):
    x, mask = torch.ones(2, 3, dtype=half), torch.ones(2, dtype=torch.bool)
    args = (torch.ones(2, dtype=half), None, mask, torch.ones(2, dtype=torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        _, raised, others = promote(torch.sin, x, args)
        _, kept, _ = promote(torch.sin, x.double(), ())
    assert raised.dtype == torch.float32
    assert kept.dtype == torch.float64
    assert others[0].dtype == torch.float32
    assert others[1] is None
    assert others[2] is mask
    assert others[3].dtype == torch.float64


@pytest.mark.parametrize("half", HALVES)
def test_half_precision_module_computes_in_single_precision(half: torch.dtype):
    module = nn.Linear(3, 3).to(half)
    x = torch.randn(2, 3, dtype=half)
    branch, raised, _ = promote(module, x, ())
    expected = raised @ module.weight.float().mT + module.bias.float()
    torch.testing.assert_close(branch(raised), expected, rtol=1e-6, atol=1e-6)
    (grad,) = torch.autograd.grad(branch(raised).sum(), module.weight)
    assert grad.dtype == half
    same, _, _ = promote(module.float(), raised, ())
    assert same is module


def test_unbatched_and_non_floating_input_is_refused():
    for x in (torch.ones(()), torch.ones(2), torch.ones(2, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"expected a batch \(B, ...\) of a floating point type"):
            promote(torch.sin, x, ())


@pytest.mark.parametrize("attached", [True, False])
def test_products_match_the_jacobian(attached: bool):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 4, dtype=torch.float64)
    linear = Linearization(lambda x: torch.sin(x @ weight), x, (), attached=attached)
    cotangent = torch.randn(3, 4, dtype=torch.float64)
    expected = (cotangent * torch.cos(x @ weight)) @ weight.T
    for _ in range(2):
        torch.testing.assert_close(linear.vjp(cotangent), expected.detach())
    product = linear.vjp(cotangent, differentiable=True)
    torch.testing.assert_close(product, expected)
    if attached:
        (found,) = torch.autograd.grad(product.sum(), x)
        (wanted,) = torch.autograd.grad(expected.sum(), x)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "branch", [lambda x: torch.ones_like(x), lambda x: x.detach() + torch.zeros(1, requires_grad=True)]
)
def test_a_branch_that_does_not_depend_on_its_input_has_no_jacobian(branch):
    x = torch.randn(2, 3)
    assert torch.equal(Linearization(branch, x, (), attached=False).vjp(torch.ones(2, 3)), torch.zeros(2, 3))
