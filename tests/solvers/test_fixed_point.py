from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention.solvers import FixedPoint


@settings(deadline=None, max_examples=20)
@given(data=st.data(), c=st.floats(0.1, 0.95), size=st.integers(1, 10), seed=st.integers(0, 2**31))
def test_residual_shrinks_at_the_banach_rate(contractions, data, c: float, size: int, seed: int):
    branch = contractions[data.draw(st.sampled_from(list(contractions)))](c, size, seed)
    z = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    trace = FixedPoint().solve(branch, z).trace
    assert trace is not None
    # Down to where rounding of the branch, up to a thousand times z, takes over.
    ratio = (trace[1:] - 1e-11) / trace[:-1]
    assert (ratio[~ratio.isnan()] <= c * (1 + 1e-9)).all()


def test_iterates_match_algorithm_1():
    weight = torch.randn(4, 4, dtype=torch.float64) / 10
    z = torch.randn(3, 4, dtype=torch.float64)
    x = z
    for _ in range(6):
        x = z - torch.tanh(x @ weight)
    solution = FixedPoint(max_evaluations=7, tolerance=0.0).solve(lambda x: torch.tanh(x @ weight), z)
    torch.testing.assert_close(solution.value, x, rtol=0, atol=1e-15)


def test_paper_uses_100_iterations():
    assert FixedPoint().max_evaluations == 100
    assert FixedPoint(50).max_evaluations == 50


def test_divergence_to_infinity_ends_early():
    solution = FixedPoint(max_evaluations=100_000).solve(lambda x: 10 * x, torch.ones(2, 3))
    assert not solution.converged.any()
    assert (solution.evaluations < 50).all()
    torch.testing.assert_close(solution.value, torch.ones(2, 3))
