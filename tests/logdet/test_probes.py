from __future__ import annotations

import pytest
import torch

from invertible_attention.logdet.probes import draw_probe, inner_product

DISTRIBUTIONS = ("gaussian", "rademacher")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_probes_match_shape_and_dtype(distribution, dtype):
    probe = draw_probe(torch.zeros(2, 3, 4, dtype=dtype), distribution, None)
    assert probe.dtype == dtype
    assert probe.shape == (2, 3, 4)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_second_moments_are_the_identity(distribution):
    torch.manual_seed(0)
    probes = draw_probe(torch.zeros(100_000, 3, dtype=torch.float64), distribution, None)
    moments = probes.mT @ probes / len(probes)
    # Products have a variance of at most 2: 4 standard errors.
    torch.testing.assert_close(
        moments, torch.eye(3, dtype=torch.float64), rtol=0, atol=4 * (2 / 100_000) ** 0.5
    )
    assert probes.mean(0).abs().max() < 4 / 100_000**0.5
    if distribution == "rademacher":
        assert set(probes.flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_generator_is_the_only_source_of_randomness(distribution):
    x = torch.zeros(5, 7)
    state = torch.get_rng_state()
    one, two, other = (draw_probe(x, distribution, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 5), (0, 4)])
def test_inner_products_are_summed_per_sample_in_single_precision_or_better(shape):
    a, b = torch.randn(2, *shape, dtype=torch.float64)
    torch.testing.assert_close(inner_product(a, b), torch.einsum("bi,bi->b", a.flatten(1), b.flatten(1)))
    # 4096 ones and a quarter each: in bfloat16 the sum would stop at 256.
    many = torch.ones(2, 4096, dtype=torch.bfloat16)
    found = inner_product(many, many / 4)
    assert found.dtype == torch.float32
    assert found.tolist() == [1024.0, 1024.0]
