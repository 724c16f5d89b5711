"""Contract of triangular layers: masks, contexts, precisions, transforms, storage, and refused arguments."""

from __future__ import annotations

import copy
import io
from functools import partial

import pytest
import torch
from torch import nn

import invertible_attention as ia
from invertible_attention.attention import CausalTransformer, TriangularBranch
from invertible_attention.interop import FixedInverse

from .cases import FORMS, ORDERS, RESPONSES, disturb, jacobian, make, noise

MASK = torch.tensor([[1, 1, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]], dtype=torch.bool).view(
    3, 2, 3
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ["raster", "reverse", "columns"])
@pytest.mark.parametrize("position", ["rotary", "relative", "none"])
def test_padding_is_ignored_and_returned_unchanged(position, order, form):
    layer = make(position=position, order=order, affine=FORMS[form])
    x = noise(3, 2, 3)
    z, logdet = layer.forward_and_logdet(x, mask=MASK)
    other = torch.where(MASK[:, None], x, torch.nan)
    z_other, logdet_other = layer.forward_and_logdet(other, mask=MASK)
    valid = MASK[:, None].expand_as(x)
    assert torch.equal(z[valid], z_other[valid])
    assert torch.equal(logdet, logdet_other)
    assert torch.equal(z[~valid], x[~valid])
    for block in (None, 1, 4):
        layer.solver = ia.Blockwise(block=block)
        assert (layer.inverse(z, mask=MASK) - x).abs().max() < 1e-10
    flat = jacobian(layer, x[:1], mask=MASK[:1]).permute(0, 2, 1, 3).reshape(24, 24)
    torch.testing.assert_close(logdet[0], torch.linalg.slogdet(flat).logabsdet)


def test_padded_sample_equals_the_shorter_sample():
    layer = make(affine=True)
    x = noise(2, 7)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 5:] = False
    z, logdet = layer.forward_and_logdet(x, mask=mask)
    short, logdet_short = layer.forward_and_logdet(x[..., :5])
    torch.testing.assert_close(z[..., :5], short)
    torch.testing.assert_close(logdet, logdet_short)


CONTEXTS = {"vector": (3,), "tokens": (3, 4), "masked_tokens": (4, 4)}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("kind", CONTEXTS)
def test_inverse_with_context(kind, response, masked):
    layer = make(response, affine=True, context_channels=3, context_kind=kind)
    x, context = noise(3, 2, 3), torch.randn(3, *CONTEXTS[kind], dtype=torch.float64)
    if kind == "masked_tokens":
        context[:, -1] = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    given = {"context": context, "mask": MASK} if masked else {"context": context}
    z, logdet = layer.forward_and_logdet(x, **given)
    assert (layer(x, **{**given, "context": context.roll(1, 0)}) - z).abs().amax((1, 2, 3)).min() > 1e-4
    assert (layer.inverse(z, **given) - x).abs().max() < 1e-10
    one = {name: value[:1] for name, value in given.items()}
    flat = jacobian(layer, x[:1], **one).permute(0, 2, 1, 3).reshape(24, 24)
    torch.testing.assert_close(logdet[0], torch.linalg.slogdet(flat).logabsdet)
    if kind != "masked_tokens":
        for block in (1, 4):
            layer.solver = ia.Blockwise(block=block)
            assert (layer.inverse(z, **given) - x).abs().max() < 1e-10


def test_padded_context_tokens_are_ignored():
    layer = make(context_channels=3, context_kind="masked_tokens", position="relative")
    x, context = noise(2, 5), torch.randn(2, 4, 4, dtype=torch.float64)
    context[:, -1] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    changed = context.clone()
    changed[:, :-1, 1::2] = torch.nan
    assert torch.equal(layer(x, context=context), layer(x, context=changed))


class Peeking(nn.Module):
    """Reads the token ``ahead`` places later, and the token before."""

    def __init__(self, ahead: int) -> None:
        super().__init__()
        self.ahead = ahead

    def forward(self, x):
        flat = x.flatten(2)
        before = nn.functional.pad(flat[..., :-1], (1, 0))
        return (before.sin() + 0.1 * flat.roll(-self.ahead, -1)).view(x.shape)


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_noncausal_module_is_refused_with_the_token(ahead):
    with pytest.raises(
        ValueError, match=r"not strictly causal in 'raster': its output at token \(\d+, \d+\) depends"
    ):
        TriangularBranch(Peeking(ahead), shape=(2, 3, 4))


def test_module_causal_in_another_order_is_refused():
    causal = CausalTransformer(2, 2, order="raster", width=8)

    class Wrapped(nn.Module):
        def forward(self, x):
            return causal(x)

    TriangularBranch(Wrapped(), shape=(2, 3, 4))
    with pytest.raises(ValueError, match="not strictly causal in 'columns'"):
        TriangularBranch(Wrapped(), shape=(2, 3, 4), order="columns")


class MaskedConvolution(nn.Conv2d):
    """Reads the rows above and the tokens to the left."""

    def forward(self, x):
        size = self.kernel_size[0] // 2
        mask = torch.ones_like(self.weight)
        mask[:, :, size, size:] = 0
        mask[:, :, size + 1 :] = 0
        return nn.functional.conv2d(x, mask * self.weight, self.bias, padding=size).sin()


@pytest.mark.parametrize("form", FORMS)
def test_user_module_becomes_a_bijection(form):
    outputs = 4 if FORMS[form] else 2
    branch = TriangularBranch(MaskedConvolution(2, outputs, 3), affine=FORMS[form], shape=(2, 4, 4))
    layer = ia.flows.Residual(branch).double()
    disturb(layer, 0.5)
    x = noise(3, 4, 4, channels=2)
    z, logdet = layer.forward_and_logdet(x)
    solution = layer.solve_inverse(z)
    assert solution.converged.all()
    assert (solution.evaluations <= 16).all()
    assert (solution.value - x).abs().max() < 1e-10
    flat = jacobian(layer, x[:1]).permute(0, 2, 1, 3).reshape(32, 32)
    torch.testing.assert_close(logdet[0], torch.linalg.slogdet(flat).logabsdet)
    with pytest.raises(ValueError, match="block=2 needs a CausalTransformer"):
        ia.flows.Residual(branch, solver=ia.Blockwise(block=2)).inverse(z.float())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"normalization": "column"}, "only normalization='row' keeps to an order, got 'column'"),
        ({"normalization": "all"}, "got 'all'"),
        ({"causal": True}, "causal=True"),
        ({"position_prior": ia.TorusPrior()}, "position_prior is for a certificate"),
        ({"solver": ia.NewtonKrylov()}, "got NewtonKrylov"),
        ({"solver": ia.Anderson()}, "solved by Blockwise or FixedPoint, got Anderson"),
        ({"logdet": ia.PowerSeries(terms=3)}, "nothing to estimate, got PowerSeries"),
        ({"heads": 3}, "divide width=16, got 3"),
    ],
)
def test_inapplicable_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ia.InvertibleAttention(4, "gaussian", constraint=ia.Triangular(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"order": "spiral"}, "got 'spiral'"),
        ({"order": (0, 2)}, "permutation of 0 … 1, got"),
        ({"depth": 0}, "depth must be an integer of at least 1, got 0"),
        ({"width": True}, "got True"),
        ({"feed_forward": -1.0}, "got -1.0"),
        ({"position": "sine"}, "got 'sine'"),
        ({"max_log_scale": 0.0}, "got 0.0"),
    ],
)
def test_a_constraint_out_of_range_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ia.Triangular(**arguments)


def test_non_integer_order_is_refused():
    with pytest.raises(TypeError, match="float"):
        ia.Triangular((0.2, 1.7))
    assert ia.Triangular(torch.tensor([1, 0])).order == (1, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 0}, "depth must be an integer of at least 1, got 0"),
        ({"feed_forward": -1.0}, "got -1.0"),
        ({"position": "sine"}, "got 'sine'"),
        ({"order": "spiral"}, "got 'spiral'"),
    ],
)
def test_transformer_settings_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        CausalTransformer(2, 2, **arguments)


def test_an_order_for_another_size_is_refused():
    with pytest.raises(ValueError, match="order is for 12 tokens, got 6"):
        make(order=ORDERS[-1])(noise(1, 2, 3))


@pytest.mark.parametrize("solver", [ia.FixedPoint(), ia.Blockwise(block=3)])
def test_order_aware_solvers_agree(solver):
    layer = make(affine=True, solver=solver)
    x = noise(2, 3, 4)
    solution = layer.solve_inverse(layer(x))
    assert solution.converged.all()
    assert (solution.evaluations <= 12).all()
    assert (solution.value - x).abs().max() < 1e-10


@pytest.mark.parametrize("batch", [2, 16])
def test_automatic_block_size_finds_the_inverse(batch):
    layer = make(affine=True)
    x = noise(batch, 5)
    solution = layer.solve_inverse(layer(x))
    assert solution.converged.all()
    assert (solution.value - x).abs().max() < 1e-10


def test_exhausted_budget_is_reported():
    layer = make(size=0.5, solver=ia.FixedPoint(max_evaluations=2))
    z = layer(noise(2, 3, 4))
    solution = layer.solve_inverse(z)
    assert not solution.converged.any()
    assert (solution.evaluations == 2).all()
    with pytest.raises(ia.ConvergenceError):
        layer.inverse(z)


def test_single_token_is_an_affine_map():
    layer = make(affine=True)
    x = noise(2, 1)
    solution = layer.solve_inverse(layer(x))
    assert (solution.evaluations == 1).all()
    torch.testing.assert_close(solution.value, x)


def test_blockwise_refuses_branches_without_an_order():
    layer = ia.InvertibleAttention(4, solver=ia.Blockwise())
    with pytest.raises(ValueError, match="invertible by order only"):
        layer.inverse(torch.randn(2, 4, 3))


def test_nonfinite_samples_do_not_affect_others():
    layer = make()
    z = layer(noise(3, 3, 4))
    bad = z.clone()
    bad[1, 0, 0, 0] = torch.nan
    solution = layer.solve_inverse(bad)
    assert solution.converged.tolist() == [True, False, True]
    assert solution.value[1].isnan().all()
    torch.testing.assert_close(solution.value[[0, 2]], layer.inverse(z[[0, 2]]))


def test_reported_residual_matches_the_returned_value():
    layer = make(affine=True)
    z = layer(noise(3, 3, 4)).float()
    for block in (None, 1, 5):
        layer.float().solver = ia.Blockwise(block=block)
        solution = layer.solve_inverse(z)
        true = (layer(solution.value).double() - z).flatten(1).norm(dim=1) / (
            1 + z.double().flatten(1).norm(dim=1)
        )
        torch.testing.assert_close(solution.residual, true, atol=3e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_layers_and_inputs(dtype):
    layer = make(affine=True).to(dtype)
    x = noise(2, 3, 4).to(dtype)
    z, logdet = layer.forward_and_logdet(x)
    assert (z.dtype, logdet.dtype) == (dtype, torch.float32)
    assert (layer.inverse(z) - x).abs().max() < 30 * torch.finfo(dtype).eps * x.abs().max()


def test_autocast_does_not_change_what_is_inverted():
    layer = make(affine=True).float()
    x = noise(2, 3, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(x)
    assert torch.equal(z, layer(x))


@pytest.mark.compiles
@pytest.mark.parametrize("form", FORMS)
def test_compiles(form):
    layer = make(affine=FORMS[form], implementation="flash").float()
    x = noise(2, 3, 4).float()
    compiled = torch.compile(layer.forward_and_logdet, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer.forward_and_logdet(x), atol=1e-5, rtol=1e-5)


def test_exports():
    layer = make(affine=True)
    x = noise(2, 3, 4)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


def test_copies_and_saved_files_reproduce_the_layer():
    layer = make(order=ORDERS[-1], affine=True)
    x = noise(2, 3, 4)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), layer(x))
        assert torch.equal(other.inverse(x), layer.inverse(x))


def test_hub_keeps_order_and_form(tmp_path):
    from invertible_attention import hub

    constraint = ia.Triangular((1, 0, 2), affine=True, width=8)
    layer = hub.InvertibleAttention(4, "gaussian", constraint=constraint, solver=ia.Blockwise(block=2))
    disturb(layer, 0.2)
    layer.save_pretrained(tmp_path)
    other = hub.InvertibleAttention.from_pretrained(tmp_path)
    x = noise(2, 3).float()
    assert other.branch.constraint == constraint
    assert other.solver == layer.solver
    assert torch.equal(other(x), layer(x))


def test_audit_reports_invertibility_by_order():
    report = ia.audit(make(affine=True), noise(2, 3, 4))
    assert report.passed
    assert report.certified
    assert not report.searched
    assert report.verdict()[0].startswith("Invertible by order")
    flow = ia.flows.Sequential(ia.InvertibleAttention(4, logdet=ia.Exact()), make().float())
    flow(noise(2, 3, 4).float())
    mixed = ia.audit(flow, noise(2, 3, 4).float())
    assert mixed.certified
    assert mixed.certificate < 1
    unsafe = ia.flows.Sequential(ia.InvertibleAttention(4, constraint=ia.Relaxed()), make().float())
    assert not ia.audit(unsafe, noise(2, 3, 4).float(), search=False).certified


@pytest.mark.parametrize("form", FORMS)
def test_inverse_of_a_fixed_number_of_steps_is_exact_after_one_per_token(form):
    layer = make(affine=FORMS[form])
    x = noise(2, 2, 3)
    torch.testing.assert_close(FixedInverse(layer)(layer(x)), x, atol=1e-10, rtol=0)


def test_gradients_reach_every_parameter_of_every_response():
    for response in RESPONSES:
        layer = make(response, affine=True, bias=True, context_channels=2)
        x, context = noise(2, 3, 4), torch.randn(2, 2, dtype=torch.float64)
        z, logdet = layer.forward_and_logdet(x, context=context)
        (z.square().sum() + logdet.sum()).backward()
        missing = [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.any()]
        assert not missing, (response, missing)


@pytest.mark.parametrize("make_flow", [ia.flows.i_resnet, ia.flows.residual_flow])
def test_presets_accept_it_at_any_position(make_flow):
    attention = partial(ia.InvertibleAttention, response="gaussian", constraint=ia.Triangular(affine=True))
    flow = make_flow(
        (1, 8, 8),
        levels=17,
        blocks=(1, 1),
        hidden_channels=8,
        attention=attention,
        attention_after=((0, 0), (1, 0)),
    )
    images = torch.randint(0, 17, (16, 1, 8, 8))
    flow.initialize(images)
    assert flow.log_prob(images).isfinite().all()
    assert flow.sample(2).shape == (2, 1, 8, 8)
