"""Bounds are never below the norm of the dense convolution matrix, estimates never above it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from invertible_attention.flows import LipschitzConvBranch
from invertible_attention.lipschitz import (
    convolution_norm_estimate,
    convolution_norm_upper_bound,
    convolution_power_iteration,
)
from invertible_attention.lipschitz.convolution import norm_upper_bounds
from invertible_attention.lipschitz.geometry import Geometry
from invertible_attention.lipschitz.symbols import Symbols

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def dense_norm(layer: nn.Module, channels: int, size: tuple[int, ...]) -> float:
    """The spectral norm of the layer's matrix, column by column."""
    inputs = torch.eye(channels * math.prod(size), dtype=torch.float64).reshape(-1, channels, *size)
    with torch.no_grad():
        return torch.linalg.matrix_norm(layer(inputs).flatten(1), 2).item()


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution of any layout, and the size of an input it takes."""
    axes = draw(st.integers(1, 3))
    sizes = st.integers(2, {1: 12, 2: 6, 3: 4}[axes])
    size = tuple(draw(st.lists(sizes, min_size=axes, max_size=axes)))
    kernel = tuple(draw(st.lists(st.integers(1, 4 if axes < 3 else 3), min_size=axes, max_size=axes)))
    dilation = tuple(draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes)))
    mode = draw(st.sampled_from(["zeros", "circular"]))
    extents = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    most = [e // 2 if mode == "circular" else e + 1 for e in extents]
    padding = tuple(draw(st.integers(0, p)) for p in most)
    if any(n + 2 * p < e + 1 for n, p, e in zip(size, padding, extents, strict=True)):
        padding = tuple(most)
    if mode == "circular":  # PyTorch does not wrap around more than once
        size = tuple(max(n, p, e + 1 - 2 * p) for n, p, e in zip(size, padding, extents, strict=True))
    else:
        size = tuple(max(n, e + 1 - 2 * p) for n, p, e in zip(size, padding, extents, strict=True))
    groups = draw(st.integers(1, 2))
    # Kernels that are four times as tall as wide, or the reverse, are looked at through their squares.
    channels = [groups * draw(st.sampled_from([1, 2, 5])) for _ in range(2)]
    layer = CONVOLUTIONS[axes - 1](
        *channels,
        kernel,
        stride=draw(st.integers(1, 2)),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=False,
        padding_mode=mode,
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    nn.init.normal_(layer.weight, std=10.0 ** draw(st.integers(-20, 20)), generator=generator)
    if draw(st.booleans()):  # all energy in the outermost entries: the worst case of a coarse grid
        layer.weight.data[(..., *(slice(1, -1) if k > 2 else slice(None) for k in kernel))] = 0
    return layer, size


@settings(deadline=None, max_examples=150)
@given(layers(), st.integers(0, 8), st.integers(1, 9))
def test_bound_is_never_below_the_dense_norm(layer_and_size, iterations, finer):
    layer, size = layer_and_size
    norm = dense_norm(layer.double(), layer.in_channels, size)
    grid_size = max(layer.kernel_size) - 1 + finer
    for weight in (layer.weight, layer.weight.float()):
        for at in (size, None):
            for options in ({"iterations": iterations}, {"grid_size": grid_size}):
                bound = convolution_norm_upper_bound(weight, at, geometry=Geometry.of(layer), **options)
                assert bound.item() >= norm * (1 - 1e-13)  # the dense norm is rounded too


@settings(deadline=None, max_examples=60)
@given(layers(), st.integers(0, 20))
def test_estimate_is_never_above_the_dense_norm(layer_and_size, iterations):
    layer, size = layer_and_size
    layer = layer.double()
    estimate = convolution_norm_estimate(layer.weight, size, iterations, geometry=Geometry.of(layer))
    assert estimate.item() <= dense_norm(layer, layer.in_channels, size) * (1 + 1e-12)


@pytest.mark.parametrize(("axes", "size"), [(1, (15,)), (2, (7, 8)), (3, (5, 4, 6))])
@pytest.mark.parametrize("dilation", [1, 2])
def test_circular_padding_is_tight_on_the_exact_grid(axes, size, dilation):
    torch.manual_seed(axes)
    layer = CONVOLUTIONS[axes - 1](
        4, 3, 3, padding=dilation, dilation=dilation, bias=False, padding_mode="circular"
    ).double()
    norm = dense_norm(layer, 4, size)
    bound = convolution_norm_upper_bound(layer.weight, size, geometry=Geometry.of(layer)).item()
    assert norm <= bound <= 1.01 * norm


def test_zero_padding_is_tight_on_large_inputs():
    torch.manual_seed(0)
    layer = nn.Conv1d(4, 4, 3, padding=1, bias=False).double()
    norm = dense_norm(layer, 4, (128,))
    exact = convolution_norm_upper_bound(layer.weight, (128,), grid_size=130).item()
    default = convolution_norm_upper_bound(layer.weight, (128,)).item()
    assert norm <= exact <= 1.01 * norm
    assert norm <= default <= 1.03 * norm


def test_bound_for_every_size_costs_what_is_documented():
    weight = torch.randn(3, 5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fine = convolution_norm_upper_bound(weight, grid_size=256)
    assert fine <= convolution_norm_upper_bound(weight) <= fine * 1.0195**2 * 1.005


def test_correction_of_a_coarse_grid_is_attained():
    # its symbol |sin ω| has its maximum, one, halfway between two of 4m + 2 frequencies
    kernel = torch.tensor([[[0.5, 0.0, -0.5]]], dtype=torch.float64)
    for grid_size in (6, 10, 14, 18):
        bound = convolution_norm_upper_bound(kernel, grid_size=grid_size).item()
        assert 1 <= bound <= 1 + 1e-13


def test_kernel_reshaped_to_a_matrix_is_not_the_norm():
    # cause of a widely reported bug: the norm of a box filter is its sum, not its root mean square
    box = torch.ones(1, 1, 3, 3)
    assert spectral_norm_of_reshaped(box) == pytest.approx(3)
    bound = convolution_norm_upper_bound(box, (16, 16), geometry=Geometry("circular"))
    assert bound.item() == pytest.approx(9, rel=1e-4)


def spectral_norm_of_reshaped(weight: torch.Tensor) -> float:
    return torch.linalg.matrix_norm(weight.flatten(1), 2).item()


def test_one_by_one_kernel_has_the_norm_of_its_matrix():
    weight = torch.randn(5, 4, 1, 1, dtype=torch.float64)
    norm = torch.linalg.matrix_norm(weight[..., 0, 0], 2)
    bound = convolution_norm_upper_bound(weight, iterations=12)
    assert norm <= bound <= norm * 1.0001


@settings(deadline=None, max_examples=20)
@given(st.floats(-37, 37), st.booleans())
def test_scale_does_not_matter(exponent, circular):
    weight = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    geometry = Geometry("circular" if circular else "zeros")
    bound = convolution_norm_upper_bound(weight, (9,), geometry=geometry)
    scaled = (weight * 10**exponent).float()
    ratio = convolution_norm_upper_bound(scaled, (9,), geometry=geometry).double() / 10**exponent / bound
    assert abs(ratio - 1) < 1e-4


def test_derivatives():
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def bound(weight: torch.Tensor) -> torch.Tensor:
        return convolution_norm_upper_bound(weight, (6, 6), geometry=Geometry(groups=3))

    assert torch.autograd.gradcheck(bound, weight.requires_grad_(), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(bound, weight, fast_mode=True)


@pytest.mark.parametrize("chunk", [1, 2**21])
def test_chunks_do_not_change_the_value(chunk, monkeypatch):
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = convolution_norm_upper_bound(weight)
    monkeypatch.setattr("invertible_attention.lipschitz.symbols._CHUNK", chunk)
    torch.testing.assert_close(convolution_norm_upper_bound(weight), expected)


def test_zero_kernel_has_zero_bound_and_zero_derivatives():
    weight = torch.zeros(3, 2, 3, 3, requires_grad=True)
    bound = convolution_norm_upper_bound(weight, (8, 8))
    (gradient,) = torch.autograd.grad(bound, weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), weight)
    for value in (bound, gradient, second):
        assert (value == 0).all()


def test_transforms_of_torch_func():
    weights = torch.randn(2, 3, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.stack([convolution_norm_upper_bound(weight) for weight in weights])
    torch.testing.assert_close(torch.func.vmap(convolution_norm_upper_bound)(weights), values)
    gradients = torch.func.vmap(torch.func.grad(convolution_norm_upper_bound))(weights)
    torch.testing.assert_close((gradients * weights).sum((1, 2, 3)), values)  # the bound is homogeneous
    _, tangent = torch.func.jvp(convolution_norm_upper_bound, (weights[0],), (weights[0],))
    torch.testing.assert_close(tangent, values[0])


@pytest.mark.parametrize("channels", [3, 40])
def test_compiles_without_graph_breaks(channels: int):
    weight = torch.randn(channels, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(convolution_norm_upper_bound, fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(weight, (8, 8), iterations=4), weight)
    (expected,) = torch.autograd.grad(convolution_norm_upper_bound(weight, (8, 8), iterations=4), weight)
    torch.testing.assert_close(gradient, expected)


def test_low_precision_is_computed_in_float32():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bound = convolution_norm_upper_bound(weight, (8, 8))
    assert bound.dtype == torch.float32
    exact = convolution_norm_upper_bound(weight.double(), (8, 8))
    assert exact * (1 - 1e-6) <= bound.double() <= exact * 1.001


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_estimate_converges_and_starts_warm(padding):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, padding=1, stride=2, bias=False, padding_mode=padding).double()
    geometry = Geometry(padding, stride=2)
    estimate, vector = convolution_power_iteration(layer.weight, (8, 8), 1000, geometry=geometry)
    norm = dense_norm(layer, 3, (8, 8))
    assert estimate.item() == pytest.approx(norm, rel=1e-6)
    again, _ = convolution_power_iteration(layer.weight, (8, 8), 0, vector=vector, geometry=geometry)
    torch.testing.assert_close(again, estimate)


def test_convolution_defaults_match_torch():
    layer = nn.Conv2d(2, 3, 3, padding=1, bias=False).double()
    norm = dense_norm(layer, 2, (5, 6))
    generator = torch.Generator().manual_seed(0)
    estimates = [
        convolution_norm_estimate(layer.weight, (5, 6), 300, generator=generator),
        convolution_power_iteration(layer.weight, (5, 6), 300, generator=generator)[0],
    ]
    for estimate in estimates:
        assert estimate.item() == pytest.approx(norm, rel=1e-6)
    geometry = Geometry("zeros", stride=1, dilation=1, groups=1)
    bound = convolution_norm_upper_bound(layer.weight, (5, 6))
    assert bound == convolution_norm_upper_bound(layer.weight, (5, 6), geometry=geometry)
    assert bound >= norm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(2, 2)}, r"\(2, 2\)"),
        ({"weight": torch.ones(2, 0, 3)}, r"\(2, 0, 3\)"),
        ({"weight": torch.ones(2, 2, 3, dtype=torch.int64)}, "int64"),
        ({"geometry": Geometry("reflect")}, "reflect"),
        ({"geometry": Geometry(groups=3)}, "3"),
        ({"geometry": Geometry(dilation=(1, 2))}, r"\(1, 2\)"),
        ({"geometry": Geometry(stride=0)}, "stride.*0"),
        ({"input_size": (8, 8)}, r"\(8, 8\)"),
        ({"input_size": (0,)}, r"\(0,\)"),
        ({"grid_size": 2}, "2"),
        ({"iterations": -1}, "-1"),
    ],
)
def test_bad_input_error_shows_the_value(change, message):
    options = {"weight": torch.ones(2, 2, 3), "input_size": (8,)} | change
    with pytest.raises(ValueError, match=message):
        convolution_norm_upper_bound(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": -1}, "-1"),
        ({"vector": torch.ones(1, 2, 7)}, r"\(1, 2, 7\)"),
        ({"geometry": Geometry("replicate")}, "replicate"),
    ],
)
def test_bad_estimate_input_error_shows_the_value(change, message):
    with pytest.raises(ValueError, match=message):
        convolution_norm_estimate(**({"weight": torch.ones(2, 2, 3), "input_size": (8,)} | change))


def test_loose_geometry_arguments_warn():
    weight = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    parts = {"padding": "circular", "dilation": 2, "groups": 2}
    for function in (convolution_norm_upper_bound, convolution_norm_estimate):
        start = {} if function is convolution_norm_upper_bound else {"vector": torch.ones(1, 4, 9)}
        with pytest.warns(
            DeprecationWarning, match=r"geometry=Geometry\(padding='circular', dilation=2, groups=2\)"
        ):
            found = function(weight, (9,), **parts, **start)
        assert found == function(weight, (9,), geometry=Geometry(**parts), **start)


WIDE = [(64, 2, (3,), 1), (2, 64, (3, 2), 1), (48, 1, (2, 2, 3), 1), (64, 2, (3, 3), 2), (1, 60, (5,), 1)]


@pytest.mark.parametrize(("out", "into", "kernel", "groups"), WIDE)
@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("kind", ["random", "huge", "tiny", "one tap", "rank one", "alternating"])
@pytest.mark.parametrize("iterations", [0, 1, 2, 7])
def test_squares_of_symbols_bound_as_the_symbols_do(
    out: int, into: int, kernel: tuple[int, ...], groups: int, padding: str, kind: str, iterations: int
):
    generator = torch.Generator().manual_seed(out + into)
    weight = torch.randn(out, into, *kernel, generator=generator)
    if kind in ("huge", "tiny"):
        weight = weight * (1e30 if kind == "huge" else 1e-30)
    elif kind == "one tap":
        weight.flatten(2)[:, :, 1:] *= 1e-12
    elif kind == "rank one":
        weight = torch.ones_like(weight)
    elif kind == "alternating":
        weight = weight.abs() * (-1.0) ** torch.arange(math.prod(kernel)).reshape(kernel)
    geometry = Geometry(padding, groups=groups)
    size = (6,) * len(kernel)

    def bound(weight: torch.Tensor) -> torch.Tensor:
        return convolution_norm_upper_bound(weight, size, geometry=geometry, iterations=iterations)

    symbols = Symbols.of(weight[None], size, geometry, None)
    assert symbols.squares is not None
    without = norm_upper_bounds([replace(symbols, squares=None)], iterations=iterations)[0][0]
    assert bound(weight).item() == pytest.approx(without.item(), rel=1e-3)
    # In float64 both are far from rounding; float32 must not be below.
    exact = bound(weight.double()).item()
    assert exact * (1 - 1e-9) <= bound(weight).item() <= exact * (1 + 1e-4)
    # Training and evaluation compute with the same weights.
    assert bound(weight.requires_grad_()).item() == bound(weight.detach()).item()


def test_gradient_through_squares_is_that_of_the_symbol():
    weight = torch.randn(40, 1, 3, dtype=torch.float64, requires_grad=True)
    assert Symbols.of(weight.detach()[None], (8,), Geometry(), None).squares is not None
    assert torch.autograd.gradcheck(lambda w: convolution_norm_upper_bound(w, (8,)), [weight])
    assert torch.autograd.gradgradcheck(lambda w: convolution_norm_upper_bound(w, (8,)), [weight])


@pytest.mark.parametrize(
    ("channels", "hidden", "side"), [(1, 16, 8), (3, 8, 8), (4, 12, 8), (12, 32, 8), (12, 64, 5)]
)
def test_training_and_evaluation_compute_with_the_same_weights(channels: int, hidden: int, side: int):
    branch, x = LipschitzConvBranch(channels, hidden, (side, side)), torch.randn(2, channels, side, side)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.mul_(20)
        value = branch(x)
    assert torch.equal(branch(x), value)
