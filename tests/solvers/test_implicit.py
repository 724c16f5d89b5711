from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invertible_attention.solvers import (
    Anderson,
    ConvergenceError,
    FixedPoint,
    NewtonKrylov,
    Solver,
    implicit_gradient,
    is_differentiated,
)

SOLVERS = [FixedPoint(), Anderson(), NewtonKrylov()]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)


def network(x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return torch.tanh(x @ weight + shift) / 2


def invert(solver: Solver, z: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    def branch(x: Tensor, shift: Tensor) -> Tensor:
        return network(x, weight, shift)

    value = solver.solve(branch, z, (shift,)).value
    return implicit_gradient(branch, value, z, (shift,), solver=solver)


def inputs(batch: int = 3, size: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, size, dtype=torch.float64, generator=generator)
    weight /= torch.linalg.matrix_norm(weight, 2)
    z = torch.randn(batch, size, dtype=torch.float64, generator=generator)
    shift = torch.randn(batch, 1, dtype=torch.float64, generator=generator)
    return z.requires_grad_(), weight.requires_grad_(), shift.requires_grad_()


@each_solver
def test_gradcheck_of_right_hand_side_parameters_and_arguments(solver: Solver):
    assert torch.autograd.gradcheck(lambda *tensors: invert(solver, *tensors), inputs())


@each_solver
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), batch=st.integers(1, 4), size=st.integers(1, 6))
def test_gradient_matches_the_dense_formula(solver: Solver, seed: int, batch: int, size: int):
    z, weight, shift = inputs(batch, size, seed)
    x = invert(solver, z, weight, shift)
    v = torch.randn_like(x)
    x.backward(v)
    point = x.detach()
    jacobian = torch.func.vmap(torch.func.jacrev(network), in_dims=(0, None, 0))(
        point, weight.detach(), shift.detach()
    )
    u = torch.linalg.solve((torch.eye(size, dtype=torch.float64) + jacobian).mT, v)
    torch.testing.assert_close(z.grad, u, rtol=1e-9, atol=1e-10)
    expected = torch.autograd.grad(network(point, weight, shift), (weight, shift), -u)
    torch.testing.assert_close((weight.grad, shift.grad), expected, rtol=1e-9, atol=1e-10)


def test_value_is_unchanged_and_detached_from_the_iteration():
    z, weight, shift = inputs()
    value = Anderson().solve(lambda x, s: network(x, weight, s), z, (shift,)).value
    x = invert(Anderson(), z, weight, shift)
    assert torch.equal(x, value)
    assert x.requires_grad


def test_is_differentiated_detects_both_modes():
    plain, trained = torch.ones(2), torch.ones(2, requires_grad=True)
    assert is_differentiated([None, plain, trained])
    assert not is_differentiated([None, plain])
    with torch.no_grad():
        assert not is_differentiated([trained])
        with torch.autograd.forward_ad.dual_level():
            assert is_differentiated([torch.autograd.forward_ad.make_dual(plain, plain)])


def test_no_graph_is_attached_without_requires_grad():
    z, weight, shift = (t.detach() for t in inputs())
    assert not invert(Anderson(), z, weight, shift).requires_grad
    with torch.no_grad():
        assert not invert(Anderson(), *inputs()).requires_grad


def test_none_as_an_argument():
    z = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)

    def branch(x, mask):
        return 0.5 * x

    x = implicit_gradient(branch, z.detach() / 1.5, z, (None,), solver=Anderson())
    x.sum().backward()
    torch.testing.assert_close(z.grad, torch.full_like(z, 1 / 1.5))


@pytest.mark.parametrize("trained", [True, False])
def test_branch_that_does_not_depend_on_its_input(trained: bool):
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=trained)
    z = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)

    def branch(x: Tensor) -> Tensor:
        return weight.expand_as(x)

    x = implicit_gradient(branch, z.detach() - 0.5, z, solver=Anderson())
    x.sum().backward()
    torch.testing.assert_close(z.grad, torch.ones_like(z))
    assert (weight.grad is None) != trained
    assert weight.grad is None or weight.grad.item() == -6


@each_solver
def test_small_gradients_are_as_accurate_as_large_ones(solver: Solver):
    # The tolerance is relative to 1 + ‖v‖: unscaled, a small enough gradient would count as its own solution.
    z, weight, shift = inputs()
    grads = []
    for scale in (1.0, 1e-30):
        x = invert(solver, z, weight, shift)
        grads.append(torch.autograd.grad((x * scale).sum(), z)[0] / scale)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-12)


@each_solver
def test_samples_without_upstream_gradient_get_none(solver: Solver):
    z, weight, shift = inputs()
    invert(solver, z, weight, shift)[1].sum().backward()
    assert z.grad is not None
    assert (z.grad[[0, 2]] == 0).all()
    assert (z.grad[1] != 0).all()


def test_failure_of_the_adjoint_is_raised():
    z = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)

    def branch(x):
        return -x + x.detach() * 0  # I + J = 0: the gradient does not exist

    x = implicit_gradient(branch, z.detach(), z, solver=Anderson())
    with pytest.raises(ConvergenceError, match="adjoint system"):
        x.sum().backward()


def test_bad_upstream_gradients_stay_in_their_samples():
    z, weight, shift = inputs()
    x = invert(Anderson(), z, weight, shift)
    upstream = torch.ones_like(x)
    upstream[1, 0] = torch.nan
    (gradient,) = torch.autograd.grad(x, z, upstream)
    (clean,) = torch.autograd.grad(invert(Anderson(), z, weight, shift), z, torch.ones_like(x))
    assert gradient[1].isnan().all()
    torch.testing.assert_close(gradient[[0, 2]], clean[[0, 2]], rtol=1e-10, atol=1e-10)


def test_sample_without_a_value_has_no_gradient():
    z, weight, shift = inputs()
    with torch.no_grad():
        z[1, 0] = torch.inf
    (gradient,) = torch.autograd.grad(invert(Anderson(), z, weight, shift).sum(), z)
    assert gradient[1].isnan().all()
    assert gradient[[0, 2]].isfinite().all()


# Second derivatives

PAIRS = [(a, b) for a in range(3) for b in range(3)]


@pytest.mark.parametrize("upstream", ["constant", "dependent"])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_second_derivatives_are_refused_and_never_wrong(first: int, second: int, upstream: str):
    tensors = inputs()
    x = invert(Anderson(), *tensors)
    loss = x.sum() if upstream == "constant" else (x**2).sum()
    (gradient,) = torch.autograd.grad(loss, tensors[first], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(gradient.sum(), tensors[second])


def test_first_derivatives_with_create_graph_are_right():
    tensors = inputs()
    plain = torch.autograd.grad(invert(Anderson(), *tensors).sum(), tensors)
    graphed = torch.autograd.grad(invert(Anderson(), *tensors).sum(), tensors, create_graph=True)
    torch.testing.assert_close(plain, graphed)


# Transforms


def test_reverse_transforms_give_the_same_gradients():
    tensors = tuple(t.detach() for t in inputs())

    def loss(*tensors: Tensor) -> Tensor:
        return invert(Anderson(), *tensors).square().sum()

    attached = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(loss(*attached), attached)
    torch.testing.assert_close(torch.func.grad(loss, (0, 1, 2))(*tensors), expected, rtol=1e-10, atol=1e-10)
    value, pull = torch.func.vjp(loss, *tensors)
    torch.testing.assert_close(pull(torch.ones_like(value)), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("which", range(3))
def test_forward_mode_is_refused_and_never_zero(which: int):
    tensors = [t.detach() for t in inputs()]

    def along(t: Tensor) -> Tensor:
        return invert(Anderson(), *tensors[:which], t, *tensors[which + 1 :])

    tangent = torch.ones_like(tensors[which])
    with pytest.raises(RuntimeError, match="no forward mode"):
        torch.func.jvp(along, (tensors[which],), (tangent,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward mode"):
        along(torch.autograd.forward_ad.make_dual(tensors[which], tangent))


def test_nested_transforms_are_refused():
    z, weight, shift = (t.detach() for t in inputs())

    def solve(z: Tensor) -> Tensor:
        return invert(Anderson(), z, weight, shift)

    def gradient(z: Tensor) -> Tensor:
        return torch.func.grad(lambda z: solve(z).square().sum())(z)

    def directional(z: Tensor) -> Tensor:
        return torch.func.jvp(solve, (z,), (torch.ones_like(z),))[1]

    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.func.grad(lambda z: gradient(z).sum())(z)
    with pytest.raises(RuntimeError, match="no forward mode"):
        torch.func.grad(lambda z: directional(z).sum())(z)
    with pytest.raises(RuntimeError):
        torch.func.jvp(gradient, (z,), (torch.ones_like(z),))
    _, pull = torch.func.vjp(solve, z)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.func.jvp(pull, (torch.ones_like(z),), (torch.ones_like(z),))


def test_mapped_solves_and_their_gradients():
    z, weight, shift = (t.detach() for t in inputs())
    many = torch.stack([z, 2 * z])

    def loss(z: Tensor, weight: Tensor) -> Tensor:
        return invert(Anderson(), z, weight, shift).square().sum()

    torch.testing.assert_close(
        torch.func.vmap(lambda z: invert(Anderson(), z, weight, shift))(many),
        torch.stack([invert(Anderson(), batch, weight, shift) for batch in many]),
    )
    gradient = torch.func.grad(loss, argnums=(0, 1))
    mapped = torch.func.vmap(gradient, in_dims=(0, None))(many, weight)
    for found, *expected in zip(mapped, *(gradient(batch, weight) for batch in many), strict=True):
        torch.testing.assert_close(found, torch.stack(expected))


# Memory, dtypes, batches


def test_memory_does_not_grow_with_the_iterations():
    z, weight, shift = inputs()
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        invert(FixedPoint(max_evaluations=5), z, weight, shift)
        few = sum(saved)
        saved.clear()
        invert(FixedPoint(max_evaluations=500, tolerance=0.0), z, weight, shift)
    assert few > 0
    assert sum(saved) == few


def test_graph_is_freed_with_the_result():
    z, weight, shift = inputs()
    x = invert(Anderson(), z, weight, shift)
    x.sum().backward()
    gone = weakref.ref(x)
    del x
    gc.collect()
    assert gone() is None


def test_finished_samples_leave_the_adjoint_batch():
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor([[0.0], [0.9], [0.1], [0.5]], dtype=torch.float64)
    shapes = []

    def branch(x: Tensor, rate: Tensor) -> Tensor:
        shapes.append(x.shape[0])
        assert rate.shape[0] == x.shape[0]
        return rate * x.sin()

    value = FixedPoint(max_evaluations=500).solve(branch, z, (rate,)).value
    x = implicit_gradient(branch, value, z, (rate,), solver=FixedPoint(max_evaluations=500))
    shapes.clear()
    x.sum().backward()
    assert shapes == [4, 3, 2, 1]  # the graph is built again only when a sample leaves
    torch.testing.assert_close(z.grad, 1 / (1 + rate * value.cos()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lower_precisions(dtype: torch.dtype):
    weight = torch.tensor(0.5, requires_grad=True)
    z = torch.ones(2, 3, dtype=dtype, requires_grad=True)

    def branch(x):
        return weight * x

    value = Anderson().solve(branch, z).value
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = implicit_gradient(branch, value, z, solver=Anderson())
    assert x.dtype == dtype
    x.sum().backward()
    assert z.grad is not None
    assert z.grad.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(z.grad.double(), torch.full((2, 3), 1 / 1.5).double(), rtol=tolerance, atol=0)
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(-6 / 1.5**2, rel=tolerance)


def test_bound_weights_carry_their_gradients():
    # As in a layer: constrained weights are computed once and used by every evaluation.
    raw = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    z = torch.randn(2, 3, dtype=torch.float64)

    def solve(raw: Tensor) -> Tensor:
        weight = 0.9 * raw / torch.linalg.matrix_norm(raw)

        def branch(x):
            return (x @ weight).sin()

        return implicit_gradient(branch, Anderson().solve(branch, z).value, z, solver=Anderson())

    assert torch.autograd.gradcheck(solve, (raw,))


def test_training_through_the_inverse_works():
    layer = torch.nn.Linear(4, 4, bias=False).double()
    with torch.no_grad():
        layer.weight.mul_(0.5)
    z, target = torch.randn(8, 4, dtype=torch.float64), torch.randn(8, 4, dtype=torch.float64)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    losses = []
    for _ in range(30):

        def branch(x):
            return layer(x).tanh() / 2

        x = implicit_gradient(branch, Anderson().solve(branch, z).check().value, z, solver=Anderson())
        loss = (x - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
