"""Bounds are never below the exact norm, estimates never above it."""

from __future__ import annotations

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention.lipschitz import (
    log_spectral_norm_upper_bound,
    power_iteration,
    spectral_norm_estimate,
    spectral_norm_upper_bound,
)
from invertible_attention.lipschitz.gram import gram_bound

# forward-mode differentiation and the compiler of PyTorch still use TorchScript
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def matrix(kind: str, m: int, n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(m, n, dtype=torch.float64, generator=generator)
    if kind == "orthogonal":
        u, _, v = torch.linalg.svd(W, full_matrices=False)
        return u @ v
    if kind == "rank one":
        return W[:, :1] @ W[:1]
    if kind == "spike":
        return 0.03 * W + W[:, :1] @ W[:1]
    if kind == "sparse":
        return W * (torch.rand(m, n, generator=generator) < 0.2)
    return W


def exact(W: torch.Tensor) -> torch.Tensor:
    """The norm in float64, of matrices scaled so that nothing under- or overflows there."""
    return torch.linalg.matrix_norm(W.double(), 2)


kinds = st.sampled_from(["gaussian", "orthogonal", "rank one", "spike", "sparse"])
sizes = st.sampled_from([1, 2, 3, 8, 17, 64, 130])
seeds = st.integers(0, 2**31)


@settings(deadline=None, max_examples=150)
@given(kinds, sizes, sizes, seeds, st.floats(-30, 30), st.integers(0, 10))
def test_bound_is_never_below_the_norm_in_float32(kind, m, n, seed, exponent, iterations):
    W = (matrix(kind, m, n, seed) * 10**exponent).float()
    bound = spectral_norm_upper_bound(W, iterations)
    assert bound.dtype == torch.float32
    assert bound.double() >= exact(W)


@settings(deadline=None, max_examples=40)
@given(kinds, st.integers(1, 5), st.integers(1, 5), seeds, st.sampled_from([0, -200, 200]))
def test_bound_is_never_below_the_norm_in_float64(kind, m, n, seed, exponent):
    W = matrix(kind, m, n, seed) * 10.0**exponent
    with mpmath.workdps(50):
        norm = max(mpmath.svd_r(mpmath.matrix(W.tolist()), compute_uv=False))
        assert mpmath.mpf(spectral_norm_upper_bound(W).item()) >= norm


@pytest.mark.parametrize("rows", [100, 300, 1_000, 10_000, 100_000])
@pytest.mark.parametrize("iterations", [0, 7])
def test_rounding_of_long_sums_is_covered(rows, iterations):
    # equal summands are rounded in the same direction, the worst case of rounding
    for entry in torch.linspace(0.05, 1, 20).tolist():
        W = torch.ones(rows, 2)
        W[:, 1], W[0, 0] = entry, 1.7
        bound = spectral_norm_upper_bound(W, iterations).double()
        assert exact(W) <= bound
        assert iterations == 0 or bound <= 1.001 * exact(W)


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-38])
def test_subnormal_weights_are_bounded(scale):
    W = (matrix("gaussian", 4, 4, 0) * scale).float()
    bound = spectral_norm_upper_bound(W).double()
    assert exact(W) <= bound <= 1.001 * exact(W) + 3e-45


@settings(deadline=None, max_examples=40)
@given(kinds, sizes, sizes, seeds, st.sampled_from([torch.bfloat16, torch.float16]))
def test_low_precision_is_computed_in_float32(kind, m, n, seed, dtype):
    W = matrix(kind, m, n, seed).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bound = spectral_norm_upper_bound(W)
    assert bound.dtype == torch.float32
    assert exact(W) <= bound.double() <= 1.03 * exact(W) + 1e-30


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_rounded_float32_products_are_avoided(precision):
    W = matrix("rank one", 64, 64, 0).float()
    torch.set_float32_matmul_precision(precision)
    try:
        bound = spectral_norm_upper_bound(W)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert bound.dtype == torch.float64
    assert exact(W) <= bound <= (1 + 1e-12) * exact(W)


@pytest.mark.parametrize(("m", "n"), [(3, 3), (12, 12), (64, 64), (512, 12), (256, 256), (512, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bound_is_tight_for_generic_matrices(m, n, dtype):
    W = matrix("gaussian", m, n, 1).to(dtype)
    assert exact(W) <= spectral_norm_upper_bound(W).double() <= 1.01 * exact(W)


def test_excess_matches_theory_for_equal_singular_values():
    W = matrix("orthogonal", 48, 16, 0)
    for iterations in range(10):
        bound = spectral_norm_upper_bound(W, iterations)
        torch.testing.assert_close(bound, torch.tensor(16.0 ** (0.5 ** (iterations + 1))).double())


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, seeds, st.integers(0, 8))
def test_complex_matrices_have_a_bound(m, n, seed, iterations):
    real, imag = matrix("gaussian", m, n, seed), matrix("spike", m, n, seed + 1)
    norm = torch.linalg.matrix_norm(torch.complex(real, imag), 2)
    assert gram_bound(real.float(), imag.float(), iterations=iterations).double() >= norm * (1 - 1e-7)
    bound = gram_bound(real, imag, iterations=iterations)
    largest = min(m, n) ** (0.5 ** (iterations + 1))
    assert norm * (1 - 1e-14) <= bound <= norm * largest * (1 + 1e-9)


@settings(deadline=None, max_examples=100)
@given(kinds, sizes, sizes, seeds, st.integers(0, 8), st.booleans())
def test_the_allowance_for_rounding_is_the_documented_one(kind, m, n, seed, iterations, is_complex):
    W = matrix(kind, m, n, seed).float()
    imag = matrix("gaussian", m, n, seed + 1).float() if is_complex else None
    values = torch.linalg.svdvals(W.double() if imag is None else torch.complex(W.double(), imag.double()))
    if values[0] == 0:
        return
    power = 2.0 ** (iterations + 1)
    schatten = values[0] * (values / values[0]).pow(power).sum() ** (1 / power)
    bound = gram_bound(W, imag, iterations=iterations).double()
    inner, size, unit = max(m, n), min(m, n), 2.0**-24
    # γ_k ‖G‖²_F / ‖G‖²_2, for a block and the sum of blocks, halves with every product
    first = 2 * (inner if inner <= 128 else 128 + inner / 128)
    products = (4 if is_complex else 1) * (first + 2 * size + 40) * size
    # worst-case loss of the first product; half of it is far above the actual loss
    spread = values.square().sum() ** 2 / values.pow(4).sum()
    least = (2.0 if is_complex else 0.5) * min(inner, 128) * spread if iterations else 0.5 * inner
    assert schatten * (1 + unit * (least - 8)) <= bound
    assert bound <= schatten * (1 + unit * (16 + inner + size + (products if iterations else 0)))


def test_batched_matrices_are_bounded_individually():
    W = torch.stack([s * matrix("gaussian", 4, 3, i) for i, s in enumerate([1e-200, 0.0, 1e200])])
    bounds = spectral_norm_upper_bound(W.reshape(3, 1, 4, 3))
    assert bounds.shape == (3, 1)
    for W_i, bound in zip(W, bounds[:, 0], strict=True):
        assert bound == spectral_norm_upper_bound(W_i)
    assert bounds[1] == 0


def test_zero_matrix_has_zero_bound_and_zero_derivatives():
    W = torch.zeros(2, 4, 3, requires_grad=True)
    bound = spectral_norm_upper_bound(W)
    (gradient,) = torch.autograd.grad(bound.sum(), W, create_graph=True)
    (second,) = torch.autograd.grad((gradient * torch.randn_like(W)).sum(), W)
    for value in (bound, gradient, second):
        assert (value == 0).all()


def test_derivatives_are_right_and_point_along_the_singular_vectors():
    W = matrix("gaussian", 5, 3, 0).requires_grad_()
    assert torch.autograd.gradcheck(spectral_norm_upper_bound, W, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(spectral_norm_upper_bound, W)
    (gradient,) = torch.autograd.grad(spectral_norm_upper_bound(W, 12), W)
    u, _, v = torch.linalg.svd(W.detach(), full_matrices=False)
    torch.testing.assert_close(gradient, torch.outer(u[:, 0], v[0]))


@pytest.mark.parametrize("kind", ["orthogonal", "rank one", "sparse"])
def test_derivatives_are_finite_for_repeated_singular_values(kind):
    W = matrix(kind, 6, 6, 0).float().requires_grad_()
    (gradient,) = torch.autograd.grad(spectral_norm_upper_bound(W), W, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), W)
    assert gradient.isfinite().all()
    assert second.isfinite().all()


def test_transforms_of_torch_func():
    W = torch.stack([matrix("gaussian", 4, 3, seed) for seed in range(3)])
    gradients = torch.func.vmap(torch.func.grad(spectral_norm_upper_bound))(W)
    values, tangents = torch.func.jvp(spectral_norm_upper_bound, (W,), (W,))
    torch.testing.assert_close(values, spectral_norm_upper_bound(W))
    torch.testing.assert_close(tangents, values)  # the bound is homogeneous
    torch.testing.assert_close((gradients * W).sum((1, 2)), values)
    hessian = torch.func.hessian(spectral_norm_upper_bound)(W[0])
    torch.testing.assert_close(torch.einsum("ijkl,kl->ij", hessian, W[0]), torch.zeros(4, 3).double())


def test_compiles_without_graph_breaks():
    compiled = torch.compile(spectral_norm_upper_bound, fullgraph=True, backend="aot_eager")
    W = matrix("gaussian", 4, 3, 0).requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(W), W)
    (expected,) = torch.autograd.grad(spectral_norm_upper_bound(W), W)
    torch.testing.assert_close(gradient, expected)


def test_device_without_autocast():
    assert spectral_norm_upper_bound(torch.empty(2, 3, 3, device="meta")).shape == (2,)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nonfinite_values_stay_in_their_matrix(value):
    W = torch.ones(2, 3, 3)
    W[0, 1, 1] = value
    bound = spectral_norm_upper_bound(W)
    assert not bound[0].isfinite()
    torch.testing.assert_close(bound[1], torch.tensor(3.0), rtol=1e-5, atol=0)


@settings(deadline=None, max_examples=40)
@given(kinds, sizes, sizes, seeds, st.floats(-30, 30))
def test_log_bound_is_never_below_the_log_norm(kind, m, n, seed, exponent):
    W = (matrix(kind, m, n, seed) * 10**exponent).float()
    log = log_spectral_norm_upper_bound(W)
    assert log.double() >= exact(W).log()
    if exact(W) > 0:
        assert log.double() <= exact(W).log() + 0.04


def test_logarithm_of_zero():
    W = torch.zeros(3, 3, requires_grad=True)
    log = log_spectral_norm_upper_bound(W)
    (gradient,) = torch.autograd.grad(log, W)
    assert log == -torch.inf
    assert (gradient == 0).all()


@settings(deadline=None, max_examples=60)
@given(kinds, sizes, sizes, seeds, st.integers(0, 20), st.floats(-150, 150))
def test_estimate_is_never_above_the_norm(kind, m, n, seed, iterations, exponent):
    W = matrix(kind, m, n, seed) * 10**exponent
    generator = torch.Generator().manual_seed(seed)
    estimate = spectral_norm_estimate(W, iterations, generator=generator)
    assert estimate <= exact(W) * (1 + 1e-13)


def test_estimate_converges_and_starts_warm():
    W = torch.stack([matrix("gaussian", 6, 4, seed) for seed in range(3)])
    estimate, vector = power_iteration(W, 500, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimate, exact(W))
    again, _ = power_iteration(W, 0, vector=vector)
    torch.testing.assert_close(again, estimate)


def test_estimates_of_a_batch_do_not_share_a_scale():
    W = torch.stack([s * matrix("gaussian", 4, 3, i) for i, s in enumerate([1e-200, 1.0, 1e200])])
    estimates = spectral_norm_estimate(W, 200, generator=torch.Generator().manual_seed(0))
    for W_i, estimate, scale in zip(W, estimates, [1e-200, 1.0, 1e200], strict=True):
        assert estimate.item() == pytest.approx(scale * exact(W_i / scale).item(), rel=1e-6)


def test_the_start_of_an_estimate_comes_from_its_generator():
    W = matrix("gaussian", 6, 4, 0)
    state = torch.get_rng_state()
    same = [spectral_norm_estimate(W, 1, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert same[0] == same[1]
    assert same[0] != spectral_norm_estimate(W, 1, generator=torch.Generator().manual_seed(4))


def test_estimate_of_a_start_in_the_kernel_is_zero_not_nan():
    W = torch.diag(torch.tensor([1.0, 0.0]))
    assert spectral_norm_estimate(W, vector=torch.tensor([0.0, 1.0])) == 0


def test_estimate_has_the_gradient_of_the_norm_at_its_vector():
    W = matrix("gaussian", 4, 3, 0).requires_grad_()
    estimate, v = power_iteration(W, 300)
    (gradient,) = torch.autograd.grad(estimate, W)
    torch.testing.assert_close(gradient, torch.outer((W @ v).detach() / estimate.detach(), v))


@pytest.mark.parametrize("function", [spectral_norm_upper_bound, spectral_norm_estimate])
def test_bad_input_error_shows_the_value(function):
    with pytest.raises(ValueError, match=r"\(3,\)"):
        function(torch.ones(3))
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        function(torch.ones(0, 3))
    with pytest.raises(ValueError, match="-1"):
        function(torch.ones(3, 3), -1)
    with pytest.raises(ValueError, match="int64"):
        function(torch.ones(3, 3, dtype=torch.int64))


def test_start_of_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(4,\)"):
        spectral_norm_estimate(torch.ones(4, 3), vector=torch.ones(4))


@pytest.mark.parametrize("iterations", [7, 30])
def test_derivative_of_many_iterations_is_finite(iterations: int):
    weight = torch.eye(64, requires_grad=True)
    (gradient,) = torch.autograd.grad(gram_bound(weight, iterations=iterations), weight)
    # All singular values are equal: each has the same share of a gradient of norm 1 along the matrix.
    torch.testing.assert_close(gradient, torch.eye(64) / 64, rtol=0.1, atol=1e-6)
