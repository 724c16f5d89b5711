from __future__ import annotations

import math

import pytest
import torch

import invertible_attention as ia
from invertible_attention.logdet import Exact, Series


def remainder(tolerance: float, layer, x) -> torch.Tensor:
    """Difference from the value at a far smaller tolerance with the same probes."""
    values = []
    for chosen in (tolerance, 1e-9):
        layer.logdet = Series(tolerance=chosen)
        with torch.no_grad():
            values.append(layer.eval().forward_and_logdet(x)[1])
    return (values[0] - values[1]).abs().max()


@pytest.mark.parametrize("tolerance", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize(
    "prior", [None, ia.TorusPrior(width=0.7, reference=4)], ids=["average", "convolution"]
)
def test_the_remainder_is_below_the_tolerance_for_attention(tolerance: float, prior):
    torch.manual_seed(0)
    layer = ia.InvertibleAttention(6, "embedded_gaussian", position_prior=prior).double()
    x = torch.randn(8, 6, 4, 4, dtype=torch.float64)
    layer.initialize(x)
    assert remainder(tolerance, layer, x) <= tolerance


@pytest.mark.parametrize("tolerance", [1.0, 1e-2, 1e-4])
def test_the_remainder_is_below_the_tolerance_for_convolutions(tolerance: float):
    torch.manual_seed(0)
    branch = ia.flows.LipschitzConvBranch(2, 8, spatial=(4, 4), coefficient=0.97)
    x = torch.randn(8, 2, 4, 4, dtype=torch.float64)
    assert remainder(tolerance, ia.flows.Residual(branch).double(), x) <= tolerance


@pytest.mark.parametrize("factor", [0.9, -0.9])
def test_poor_linear_part_keeps_the_tolerance(factor: float):
    """The short series diverges, and the certified one takes over."""

    class Part:
        def apply(self, v, *, transposed=False):
            return -factor * v

        def solve(self, r, *, transposed=False):
            return r / (1 - factor)

        def log_determinant(self):
            return torch.full((1,), 5 * math.log(1 - factor), dtype=torch.float64)

    class Scaled:
        def __call__(self, x):
            return factor * x

        def linear_part(self, x):
            return Part()

    x = torch.zeros(2, 5, dtype=torch.float64)
    found = Series(tolerance=1e-6)(Scaled(), x, lipschitz=0.9)[1]
    torch.testing.assert_close(found, torch.full_like(found, 5 * math.log1p(factor)), rtol=0, atol=1e-6)


def test_unbiased_over_probes_in_training():
    torch.manual_seed(0)
    layer = ia.InvertibleAttention(4, "gaussian", logdet=Series(tolerance=1e-3)).double()
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    layer.initialize(x)
    truth = Exact()(layer.branch.bind(), x)[1].item()
    with torch.no_grad():
        draws = layer.train().forward_and_logdet(x.expand(4000, -1, -1, -1))[1]
    assert abs(draws.mean().item() - truth) < 4 * draws.std().item() / math.sqrt(4000) + 1e-3


def test_evaluation_is_deterministic():
    torch.manual_seed(0)
    layer = ia.InvertibleAttention(4, logdet=Series()).eval()
    layer.initialize(x := torch.randn(3, 4, 5, 5))
    with torch.no_grad():
        answers = [layer.forward_and_logdet(x)[1] for _ in range(2)]
        state = torch.get_rng_state()
        layer.logdet = Series(seed=1)
        other = layer.forward_and_logdet(x)[1]
        assert torch.equal(state, torch.get_rng_state())
        trained = [layer.train().forward_and_logdet(x)[1] for _ in range(2)]
    assert torch.equal(*answers)
    assert not torch.equal(answers[0], other)
    assert not torch.equal(*trained)


@pytest.mark.parametrize("lipschitz", [None, 1.0, math.inf, torch.tensor(1.5)])
def test_a_branch_without_a_certificate_is_refused(lipschitz):
    with pytest.raises(ValueError, match="below 1, got"):
        Series()(lambda x: 0.5 * x, torch.zeros(1, 2), lipschitz=lipschitz)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.inf, math.nan])
def test_bad_tolerance(tolerance: float):
    with pytest.raises(ValueError, match=f"got {tolerance}"):
        Series(tolerance=tolerance)


def test_nonfinite_input_terminates():
    value, logdet = Series()(lambda x: 0.5 * x, torch.full((1, 2), math.nan), lipschitz=0.5)
    assert value.isnan().all()
    assert logdet.isfinite().all()  # from the linear part
    assert Series()(lambda x: x * math.nan, torch.ones(1, 2), lipschitz=0.5)[1].isnan().all()
