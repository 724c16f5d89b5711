"""A doubly stochastic prior weights attention by position and keeps the certificate."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import invertible_attention as ia
from invertible_attention.experiments.audit.attack import attack_layer, jacobian_norm

GRIDS = {1: (7,), 2: (3, 4), 3: (2, 3, 2)}


@settings(deadline=None, max_examples=40)
@given(
    axes=st.sampled_from((1, 2, 3)),
    heads=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    scale=st.floats(0, 5),
)
def test_rows_and_columns_sum_to_one(axes, heads, seed, scale):
    torch.manual_seed(seed)
    prior = ia.TorusPrior(axes, heads).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    pi = prior(GRIDS[axes]).exp()
    ones = torch.ones(heads, pi.shape[-1], dtype=torch.float64)
    torch.testing.assert_close(pi.sum(-1), ones, rtol=1e-12, atol=0)
    torch.testing.assert_close(pi.sum(-2), ones, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sharp_kernels_sum_to_one_in_low_precision(dtype):
    prior = ia.TorusPrior(1, 1)
    with torch.no_grad():
        prior.log_concentration.fill_(9.0)
        prior.offset.fill_(2.5 * torch.pi * 2 / 7)  # between two positions, where the kernel is steepest
    pi = prior.to(dtype)((7,)).double().exp()
    ones = torch.ones(1, 7, dtype=torch.float64)
    torch.testing.assert_close(pi.sum(-1), ones, rtol=1e-6, atol=0)
    torch.testing.assert_close(pi.sum(-2), ones, rtol=1e-6, atol=0)


def test_the_kernel_depends_on_the_difference_of_positions_and_wraps_around():
    prior = ia.TorusPrior(2, 1, width=0.5, reference=4).double()
    with torch.no_grad():
        prior.offset.copy_(torch.tensor([[torch.pi / 2, 0.0]]))  # one row of a grid of four
    pi = prior((4, 4)).exp().reshape(4, 4, 4, 4)
    for row in range(4):
        for column in range(4):
            # Position i attends to the j with i - j = (1, 0).
            source = pi[row, column].flatten().argmax().item()
            assert divmod(source, 4) == ((row - 1) % 4, column)
    torch.testing.assert_close(pi.roll((1, 1, 1, 1), (0, 1, 2, 3)), pi)


@settings(deadline=None, max_examples=40)
@given(axes=st.sampled_from((1, 2, 3)), heads=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_factor_product_is_the_kernel_up_to_a_constant(axes, heads, seed):
    torch.manual_seed(seed)
    prior = ia.TorusPrior(axes, heads).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter))
    query, key = prior.factors(GRIDS[axes])
    torch.testing.assert_close(
        (query @ key.mT).log_softmax(-1),
        prior(GRIDS[axes]),
        rtol=1e-11,
        atol=1e-11 * query.abs().max().item(),
    )


@settings(deadline=None, max_examples=60)
@given(axes=st.sampled_from((1, 2, 3)), log_concentration=st.floats(-2, 9), seed=st.integers(0, 2**31))
def test_the_bound_allows_for_the_rounding_of_the_factors(axes, log_concentration, seed):
    """Normalized by rows, columns sum to one up to what the bound is raised by."""
    torch.manual_seed(seed)
    prior = ia.TorusPrior(axes, 2)
    with torch.no_grad():
        prior.log_concentration.fill_(log_concentration)
        prior.offset.uniform_(0, 2 * torch.pi)
    query, key = prior.factors(GRIDS[axes])
    pi = (query @ key.mT).double().softmax(-1)
    assert ((pi.sum(-2).log().abs().amax(-1)) <= prior.log_rounding()).all()


def test_prior_allocates_no_pairwise_matrix():
    class Factored(ia.TorusPrior):
        def forward(self, spatial):
            raise AssertionError("the matrix of all pairs was asked for")

    layer = ia.InvertibleAttention(4, "dot_product", position_prior=Factored(2))
    x = torch.randn(1, 4, 16, 16)
    layer.initialize(x)
    assert layer.forward_and_logdet(x)[1].isfinite().all()
    assert layer.inverse(layer(x)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("response", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize("normalization", ["column", "row", "all"])
def test_gradient_ascent_on_the_prior_stays_below_the_bound(response, normalization):
    torch.manual_seed(5)
    layer = ia.InvertibleAttention(
        4,
        response,
        constraint=ia.Certified(0.9, radius=1.0),
        normalization=normalization,
        heads=2,
        bias=True,
        position_prior=ia.TorusPrior(1, 2, width=0.3, reference=5),
    ).double()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "prior" not in name:
                parameter.copy_(torch.randn_like(parameter))
    attack = attack_layer(layer, torch.randn(3, 4, 5, dtype=torch.float64), steps=60)
    assert 0.6 < attack.worst_ratio <= 1 + 1e-12


def test_inverse_and_training_of_the_prior():
    layer = ia.InvertibleAttention(
        4, "embedded_gaussian", heads=2, position_prior=ia.TorusPrior(2, 2)
    ).double()
    x = torch.randn(3, 4, 3, 5, dtype=torch.float64)
    z = layer(x)
    assert (layer.inverse(z) - x).abs().max() < 1e-10
    z.square().sum().backward()
    for name, parameter in layer.branch.position_prior.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_bad_argument_error_shows_the_value():
    with pytest.raises(ValueError, match="0"):
        ia.TorusPrior(0)
    with pytest.raises(ValueError, match=r"-1"):
        ia.TorusPrior(2, width=-1)
    with pytest.raises(ValueError, match=r"\(7,\)"):
        ia.TorusPrior(2)((7,))


class Seen(nn.Module):
    """A layer with a partially masked prior; mask and context are the same for every sample."""

    def __init__(self, layer, mask=None, context=None):
        super().__init__()
        self.layer = layer
        self.register_buffer("mask", mask)
        self.context = None if context is None else nn.Parameter(context)

    def branch(self, x):
        mask = None if self.mask is None else self.mask.expand(len(x), -1)
        context = None if self.context is None else self.context.expand(len(x), -1, -1)
        return self.layer.branch(x, context, mask)

    def lipschitz_bound(self):
        return self.layer.lipschitz_bound()


PARTS = {
    "mask": {"mask": torch.tensor([[True, False, True, True, False]])},
    "causal": {"causal": True},
    "causal-mask": {"causal": True, "mask": torch.tensor([[True, True, False, True, False]])},
    "sources": {"sources": 4},
    "sources-mask": {"sources": 3, "mask": torch.tensor([[True, True, False, False, False]])},
    "causal-sources": {"sources": 2, "causal": True},
}
PARTLY_SEEN = [
    (normalization, part)
    for normalization in ("column", "row", "all")
    for part in PARTS
    if not (normalization == "column" and "causal" in part)
]


def partly_seen(response, normalization, part, *, heads=2, width=0.7, prior_scale=0.0, scale=1.0):
    case = PARTS[part]
    more = {"context_channels": 2, "context_kind": "tokens"} if "sources" in case else {}
    layer = ia.InvertibleAttention(
        4,
        response,
        constraint=ia.Certified(0.9, radius=1.0),
        normalization=normalization,
        heads=heads,
        bias=True,
        causal=case.get("causal", False),
        position_prior=ia.TorusPrior(1, heads, width=width, reference=5),
        logdet=ia.Exact(),
        **more,
    ).double()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "prior" in name:
                parameter.add_(prior_scale * torch.randn_like(parameter))
            else:
                parameter.copy_(scale * torch.randn_like(parameter))
    context = torch.randn(1, 2, case["sources"], dtype=torch.float64) if "sources" in case else None
    return layer, case.get("mask"), context


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(PARTLY_SEEN)))
def test_gradient_ascent_with_a_partial_mask_stays_below_the_bound(case):
    torch.manual_seed(6)
    response = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")[case % 4]
    layer, mask, context = partly_seen(response, *PARTLY_SEEN[case], heads=1)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    attack = attack_layer(Seen(layer, mask, context), x, steps=25)
    assert 0.35 < attack.worst_ratio <= 1 + 1e-12


@settings(deadline=None, max_examples=30)
@given(
    response=st.sampled_from(["gaussian", "embedded_gaussian", "dot_product", "concatenation"]),
    case=st.sampled_from(PARTLY_SEEN),
    width=st.floats(0.05, 5),
    prior_scale=st.sampled_from((0.0, 3.0)),
    scale=st.sampled_from((1e-2, 1.0, 5.0)),
    seed=st.integers(0, 2**31),
)
def test_partially_masked_prior_stays_below_the_bound(response, case, width, prior_scale, scale, seed):
    torch.manual_seed(seed)
    layer, mask, context = partly_seen(response, *case, width=width, prior_scale=prior_scale, scale=scale)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    attack = attack_layer(Seen(layer, mask, context), x, steps=2)
    assert attack.worst_ratio <= 1 + 1e-12
    assert attack.bound <= 0.9 * (1 + 1e-12)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("normalization", ["column", "row", "all"])
def test_uniform_prior_equals_no_prior(normalization, part):
    """If the certificate without a prior equals that of the sums, the two layers are the same map."""
    if normalization == "column" and "causal" in part:
        pytest.skip("refused without a certificate for every number of tokens")
    torch.manual_seed(7)
    layer, mask, context = partly_seen("embedded_gaussian", normalization, part, width=1e9)
    plain, _, _ = partly_seen("embedded_gaussian", normalization, part)
    plain.branch.position_prior = None
    with torch.no_grad():
        layer.branch.out_bias.zero_()  # which is not scaled
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if "prior" not in k})
    x = torch.randn(1, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        update, expected = layer.branch(x, context, mask), plain.branch(x, context, mask)
        ratio = update.norm() / expected.norm()
        torch.testing.assert_close(update, ratio * expected)  # the same map up to the scale
    if "causal" not in part or (normalization == "all" and "sources" not in part):
        torch.testing.assert_close(ratio, torch.ones_like(ratio))


@pytest.mark.parametrize(("normalization", "part"), PARTLY_SEEN)
def test_padding_with_a_prior_is_ignored_and_inverts(normalization, part):
    torch.manual_seed(8)
    layer, mask, context = partly_seen("embedded_gaussian", normalization, part)
    x = torch.randn(1, 4, 5, dtype=torch.float64)
    z, logdet = layer.forward_and_logdet(x, context=context, mask=mask)
    torch.testing.assert_close(layer.inverse(z, context=context, mask=mask), x, atol=1e-9, rtol=0)
    jacobian = torch.autograd.functional.jacobian(lambda s: layer(s, context=context, mask=mask), x)
    torch.testing.assert_close(logdet[0], torch.linalg.slogdet(jacobian.reshape(20, 20)).logabsdet)
    if mask is not None:
        other = layer(x.masked_fill(~mask[:, None], torch.nan), context=context, mask=mask)
        torch.testing.assert_close(other.mT[mask], z.mT[mask])


def test_scale_depends_on_the_samples_own_mask():
    torch.manual_seed(9)
    layer, _, _ = partly_seen("embedded_gaussian", "column", "mask")
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 1]]).bool()
    z = layer(x, mask=mask)
    for i in range(3):
        torch.testing.assert_close(layer(x[i : i + 1], mask=mask[i : i + 1])[0], z[i])
    torch.testing.assert_close(layer(x[:1]), z[:1])  # a mask without padding has no effect


def test_prior_with_vanishing_sums_has_a_finite_bound():
    """A prior so sharp that its masked sums underflow: they are bounded instead of divided by."""
    layer, mask, _ = partly_seen("gaussian", "row", "causal-mask", width=1e-3)
    x = torch.randn(2, 4, 5)
    layer = layer.float()
    update = layer.branch(x, None, mask.expand(2, -1))
    assert update.isfinite().all()
    assert jacobian_norm(Seen(layer.double(), mask), x.double()).max() <= 0.9


@pytest.mark.parametrize(("axes", "view"), [(2, (3, 4)), (1, (3, 2, 2))])
def test_prior_for_other_axes_is_refused_with_the_expected_axes(axes, view):
    layer = ia.InvertibleAttention(3, position_prior=ia.TorusPrior(axes=axes))
    found = len(view) - 1
    with pytest.raises(ValueError, match=rf"TorusPrior\(axes={axes}\).*use TorusPrior\(axes={found}\)"):
        ia.interop.FlattenedBijection(layer, view)(torch.randn(2, 12))
