"""Positional priors and padding masks: their definition, and agreement of every implementation that takes them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invertible_attention.attention.functional.form import Form

from .cases import FORMS, problem, run

pytestmark = pytest.mark.usefixtures("small_strips")
POSITIVE = [form for form in FORMS if form.positive]


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        out.sin().sum(), inputs, create_graph=True, allow_unused=True, materialize_grads=True
    )


@pytest.mark.parametrize("name", ["reference", "blocked"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_masking_equals_removing_the_tokens(form: Form, name: str):
    """Padded tokens have no effect for any content; the others see a shorter set."""
    query, key, value = problem(form, batch=2, queries=8, keys=8)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    short = run(form, "reference", *(tensor[:1][:, :, mask[0]] for tensor in (query, key, value)))
    whole = run(form, "reference", *(tensor[1:] for tensor in (query, key, value)))
    for tensor in (query, key, value):
        tensor[0, :, ~mask[0]] = torch.nan
    found = run(form, name, query, key, value, mask=mask)
    torch.testing.assert_close(found[:1][:, :, mask[0]], short, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found[1:], whole, rtol=1e-11, atol=1e-12)
    assert (found[0, :, ~mask[0]] == 0).all()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("with_prior", [False, True])
def test_blocked_matches_reference(form: Form, with_prior: bool):
    if with_prior and not form.positive:
        pytest.skip("a prior multiplies positive weights")
    tensors = [tensor.requires_grad_() for tensor in problem(form, queries=8, keys=8)]
    mask = torch.rand(2, 8, generator=torch.Generator().manual_seed(2)) > 0.3
    keywords = {"mask": mask}
    inputs = list(tensors)
    if with_prior:
        keywords["log_prior"] = torch.randn(2, 8, 8, dtype=torch.float64, requires_grad=True)
        inputs.append(keywords["log_prior"])
    found, expected = (run(form, name, *tensors, **keywords) for name in ("blocked", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    mine, truth = gradients(found, inputs), gradients(expected, inputs)
    torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-11)
    second = [
        gradients(sum((g.sin().sum() for g in first), torch.zeros(())), inputs) for first in (mine, truth)
    ]
    torch.testing.assert_close(*second, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("moving", [(0, 1, 2, 3), (0,), (1,), (2,), (3,)])
def test_forward_mode_under_masks(form: Form, moving: tuple[int, ...]):
    """Forward mode, with some arguments moving and others not."""
    given = [*problem(form, queries=8, keys=8)]
    mask = torch.rand(2, 8, generator=torch.Generator().manual_seed(2)) > 0.3
    if form.positive:
        given.append(torch.randn(2, 8, 8, dtype=torch.float64))
    moving = tuple(index for index in moving if index < len(given))
    if not moving:
        pytest.skip("a prior multiplies positive weights")

    def result(name: str, *moved: Tensor) -> Tensor:
        filled = list(given)
        for index, tensor in zip(moving, moved, strict=True):
            filled[index] = tensor
        keywords = {"mask": mask} | ({"log_prior": filled[3]} if form.positive else {})
        return run(form, name, *filled[:3], **keywords)

    primals = tuple(given[index] for index in moving)
    tangents = tuple(tensor.cos() for tensor in primals)
    found, expected = (
        torch.func.jvp(lambda *moved, name=name: result(name, *moved), primals, tangents)
        for name in ("blocked", "reference")
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["reference", "blocked"])
@pytest.mark.parametrize("form", POSITIVE, ids=str)
def test_prior_multiplies_weights(form: Form, name: str):
    query, key, value = problem(form, queries=5, keys=6)
    prior = torch.rand(2, 5, 6, dtype=torch.float64) + 0.1
    score = query @ key.mT if form.combine == "product" else query + key.mT
    weight = (
        prior
        * {
            "exp": score.exp(),
            "elu_plus_one": torch.where(score > 0, 1 + score, score.exp()),
            "softplus": (1 + score.exp()).log(),
        }[form.phi]
    )
    dim = {"column": (-2,), "row": (-1,), "all": (-2, -1), "count": None}[form.normalization]
    total = 6 if dim is None else weight.sum(dim, keepdim=True)
    found = run(form, name, query, key, value, log_prior=prior.log())
    torch.testing.assert_close(found, weight / total @ value, rtol=1e-12, atol=1e-12)
    shared = run(form, name, query, key, value, log_prior=prior[0].log())
    torch.testing.assert_close(shared[:, 0], found[:, 0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["reference", "blocked", "flash", "flex"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", [form for form in POSITIVE if form.normalization != "count"], ids=str)
def test_factored_prior_equals_its_product(form: Form, masked: bool, name: str):
    tensors = [tensor.requires_grad_() for tensor in problem(form, queries=8, keys=8)]
    generator = torch.Generator().manual_seed(3)
    factors = tuple(
        torch.randn(heads, 8, 2, dtype=torch.float64, generator=generator).requires_grad_()
        for heads in (2, 1)
    )
    mask = torch.rand(2, 8, generator=generator) > 0.3 if masked else None
    if name in ("flash", "flex") and (masked or (form.combine, form.phi) != ("product", "exp")):
        with pytest.raises(ValueError, match=f"implementation='{name}'"):
            run(form, name, *tensors, prior=factors, mask=mask)
        return
    inputs = [*tensors, *factors]
    found = run(form, name, *tensors, prior=factors, mask=mask)
    expected = run(form, "reference", *tensors, log_prior=factors[0] @ factors[1].mT, mask=mask)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    mine, truth = gradients(found, inputs), gradients(expected, inputs)
    torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-11)
    second = [
        gradients(sum((g.sin().sum() for g in first), torch.zeros(())), inputs) for first in (mine, truth)
    ]
    torch.testing.assert_close(*second, rtol=1e-9, atol=1e-10)
    tangents = tuple(tensor.detach().cos() for tensor in inputs)
    pushed = [
        torch.func.jvp(function, tuple(tensor.detach() for tensor in inputs), tangents)
        for function in (
            lambda q, k, v, a, b: run(form, name, q, k, v, prior=(a, b), mask=mask),
            lambda q, k, v, a, b: run(form, "reference", q, k, v, log_prior=a @ b.mT, mask=mask),
        )
    ]
    torch.testing.assert_close(*pushed, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("form", [Form("product", "exp", "count"), Form("product", "elu", "row")], ids=str)
def test_factored_prior_is_refused_if_its_constant_matters(form: Form):
    factor = torch.zeros(7, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="a prior known up to a constant"):
        run(form, "auto", *problem(form, keys=7), prior=(factor, factor))


def test_prior_factor_of_wrong_shape_is_refused():
    form = Form("product", "exp", "row")
    factor = torch.zeros(7, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"factor of the prior must be .*, got \(7, 2\)"):
        run(form, "auto", *problem(form), prior=(factor, factor))


@pytest.mark.parametrize("name", ["reference", "blocked"])
@given(form=st.sampled_from(POSITIVE), tokens=st.integers(1, 12), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_causal_prior(name: str, form: Form, tokens: int, seed: int):
    """With a causal prior earlier tokens do not depend on later ones."""
    if form.normalization in ("column", "all"):
        return  # the normalizer itself depends on later tokens
    query, key, value = problem(form, queries=tokens, keys=tokens, seed=seed)
    causal = torch.zeros(tokens, tokens, dtype=torch.float64).masked_fill(
        torch.ones(tokens, tokens).triu(1).bool(), -torch.inf
    )
    found = run(form, name, query, key, value, log_prior=causal)
    key[:, :, -1], value[:, :, -1] = 100.0, 100.0
    changed = run(form, name, query, key, value, log_prior=causal)
    torch.testing.assert_close(found[:, :, :-1], changed[:, :, :-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["reference", "blocked"])
@pytest.mark.parametrize("form", POSITIVE, ids=str)
def test_fully_masked_output_is_zero(form: Form, name: str):
    tensors = [tensor.requires_grad_() for tensor in problem(form, queries=4, keys=4)]
    forbidden = torch.full((4, 4), -torch.inf, dtype=torch.float64)
    mask = torch.tensor([[False] * 4, [True] * 4])
    for keywords in ({"log_prior": forbidden}, {"mask": mask}):
        found = run(form, name, *tensors, **keywords)
        assert (found[0] == 0).all()
        assert all(gradient.isfinite().all() for gradient in gradients(found, tensors))
