from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention._precision import working_dtype
from invertible_attention.solvers.batched import choose, inner_products, sample_norm, wide_dtype


@settings(deadline=None, max_examples=50)
@given(exponent=st.integers(-300, 300), features=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_norms_neither_overflow_nor_vanish(exponent: int, features: int, seed: int):
    x = torch.randn(3, features, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    scale = 10.0**exponent
    torch.testing.assert_close(
        sample_norm(x * scale) / scale, torch.linalg.vector_norm(x, dim=1), rtol=1e-13, atol=0
    )


def test_norms_of_float32_are_accumulated_in_float64():
    x = torch.full((1, 10_000), 1e-25)
    assert sample_norm(x).dtype == torch.float64
    assert sample_norm(x).item() == pytest.approx(1e-23, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_of_special_samples(dtype: torch.dtype):
    x = torch.tensor([[0.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0], [3.0, 4.0]], dtype=dtype)
    norm = sample_norm(x)
    assert norm[0] == 0
    assert norm[1].isnan()
    assert not norm[2].isfinite()
    assert norm[3] == 5
    assert sample_norm(torch.zeros(2, 0, dtype=dtype)).tolist() == [0, 0]


def test_dtypes_of_arithmetic():
    assert working_dtype(torch.bfloat16) == working_dtype(torch.float16) == torch.float32
    assert working_dtype(torch.float32) == torch.float32
    assert working_dtype(torch.float64) == torch.float64
    assert wide_dtype(torch.device("cpu")) == wide_dtype(torch.device("cuda")) == torch.float64
    assert wide_dtype(torch.device("mps")) == torch.float32  # it has no float64


@pytest.mark.parametrize("features", [0, 1, 7, 40_000])
def test_inner_products_are_those_of_float64(features: int):
    columns, vectors = torch.randn(2, 3, features), torch.randn(2, 2, features)
    expected = torch.einsum("bcf,bvf->bcv", columns.double(), vectors.double())
    products = inner_products(columns, vectors)
    assert products.dtype == torch.float64
    torch.testing.assert_close(products, expected, rtol=1e-12, atol=1e-10)


def test_choose_selects_whole_samples():
    chosen = choose(torch.tensor([True, False]), torch.ones(2, 3), torch.full((2, 3), torch.nan))
    assert chosen[0].tolist() == [1, 1, 1]
    assert chosen[1].isnan().all()
    assert choose(torch.tensor([True, False]), torch.ones(2, 3), 0.0).sum() == 3
