"""Choice of the implementation, the table that describes it, and errors for wrong calls."""

from __future__ import annotations

import pytest
import torch

from invertible_attention.attention.functional import IMPLEMENTATIONS, attend
from invertible_attention.attention.functional.form import Form
from invertible_attention.attention.functional.implementations import Problem, choose

from .cases import FORMS, problem, run


def described(form: Form, tokens: int, batch: int = 1, device: str = "cpu", **facts: bool) -> Problem:
    return Problem(form, batch, tokens, tokens, torch.device(device), **facts)


@pytest.mark.parametrize(
    ("form", "tokens", "expected"),
    [
        (Form("sum", "exp", "column"), 4, "closed_form"),
        (Form("product", "identity", "count"), 10_000, "closed_form"),
        (Form("sum", "elu_plus_one", "column"), 64, "reference"),
        (Form("sum", "elu_plus_one", "column"), 9701, "sorted"),
        (Form("sum", "softplus", "column"), 9701, "sorted"),
        (Form("product", "exp", "column"), 256, "reference"),
        (Form("product", "exp", "column"), 9701, "flash"),
        (Form("product", "exp", "row"), 9701, "flash"),
        (Form("product", "elu_plus_one", "column"), 9701, "blocked"),
    ],
)
def test_implementation_chosen_per_call(form: Form, tokens: int, expected: str):
    assert choose(described(form, tokens)).name == expected


@pytest.mark.parametrize("fact", ["has_prior", "has_mask"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_implementations_that_take_priors_and_masks_are_chosen(form: Form, fact: str):
    assert choose(described(form, 10, **{fact: True})).name == "reference"
    assert choose(described(form, 10_000, **{fact: True})).name == "blocked"


def test_large_batch_of_small_sets_counts_as_large():
    form = Form("product", "exp", "column")
    assert choose(described(form, 256, batch=1)).name == "reference"
    assert choose(described(form, 256, batch=64)).name == "flash"


def test_other_devices_use_their_kernels():
    form = Form("product", "exp", "column")
    assert choose(described(form, 9701, device="cuda")).name == "flash"
    with pytest.raises(ValueError, match="all pairs on cuda"):
        choose(described(Form("product", "exp", "all"), 9701, device="cuda"), "flash")
    with pytest.raises(ValueError, match="float64"):
        choose(described(Form("sum", "elu_plus_one", "row"), 9701, device="mps"), "sorted")


def test_every_implementation_is_in_the_table():
    names = [implementation.name for implementation in IMPLEMENTATIONS]
    assert len(set(names)) == len(names)
    assert {"reference", "blocked"} <= set(names)
    assert all(implementation.reason and implementation.cost for implementation in IMPLEMENTATIONS)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("tokens", [1, 100, 10_000])
def test_every_form_has_an_implementation(form: Form, tokens: int):
    chosen = choose(described(form, tokens))
    assert chosen.refuses(described(form, tokens)) is None


@pytest.mark.parametrize(
    ("form", "name", "reason"),
    [
        (Form("product", "elu_plus_one", "column"), "sorted", "only sums can be sorted"),
        (Form("product", "exp", "column"), "closed_form", "do not come apart"),
        (Form("product", "softplus", "column"), "flash", "compute a softmax"),
        (Form("product", "elu", "row"), "flex", "positive phi"),
        (Form("product", "exp", "row"), "fastest", "must be one of"),
    ],
)
def test_forcing_an_inapplicable_implementation_is_refused(form: Form, name: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        run(form, name, *problem(form))


@pytest.mark.parametrize("keyword", ["log_prior", "mask"])
def test_forcing_an_implementation_without_prior_or_mask_support_is_refused(keyword: str):
    form = Form("product", "exp", "row")
    given = {"log_prior": torch.zeros(8, 8), "mask": torch.ones(2, 8, dtype=torch.bool)}[keyword]
    with pytest.raises(ValueError, match="neither log_prior nor mask"):
        run(form, "flash", *problem(form, queries=8, keys=8), **{keyword: given})


def test_auto_matches_the_reported_implementation():
    form = Form("sum", "elu_plus_one", "column")
    tensors = problem(form, queries=500, keys=600)
    torch.testing.assert_close(run(form, "auto", *tensors), run(form, "sorted", *tensors), rtol=0, atol=0)


X = torch.zeros(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": X[0]}, r"query must be \(batch, heads, tokens, features\), got shape \(3, 4, 5\)"),
        ({"value": X.long()}, "value must be real and floating-point, got torch.int64"),
        ({"key": X[:1]}, "must agree in batch and heads"),
        ({"key": X[..., :2]}, "must agree in features, got 5 and 2"),
        ({"value": X[:, :, :3]}, "one value per key, got 3 and 4"),
        ({"query": X[:, :, :0]}, "at least one token, got 0 queries"),
        ({"combine": "sum"}, "one number per token, got 5 features"),
        ({"combine": "concatenate"}, "combine must be one of 'product', 'sum', got 'concatenate'"),
        ({"phi": "relu"}, "got 'relu'"),
        ({"normalization": "rows"}, "got 'rows'"),
        ({"log_prior": torch.zeros(4, 5)}, r"log_prior must be .*got \(4, 5\)"),
        ({"log_prior": torch.zeros(4, 4), "phi": "elu"}, "'elu' may be negative"),
        ({"mask": torch.ones(2, 4)}, "mask must be boolean.*got torch.float32"),
        ({"mask": torch.ones(4, 2, dtype=torch.bool)}, r"= \(2, 4\), got \(4, 2\)"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool), "query": X[:, :, :2]}, "2 queries and 4 keys"),
    ],
)
def test_bad_arguments_are_refused(change: dict, message: str):
    arguments = {"query": X, "key": X, "value": X, "combine": "product", "phi": "exp", "normalization": "row"}
    with pytest.raises(ValueError, match=message):
        attend(**(arguments | change))
