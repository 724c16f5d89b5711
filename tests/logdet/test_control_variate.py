"""Estimates with the linear part as control variate match the exact log-determinant with less noise."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import invertible_attention as ia
from invertible_attention.attention.branch import AttentionBranch
from invertible_attention.logdet import LogDetEstimator, PowerSeries, RussianRoulette, remainder, series
from invertible_attention.logdet.linearization import Linearization

RESPONSES = ["gaussian", "embedded_gaussian", "dot_product", "concatenation"]
# On a quarter of the batch, so that few calls tell something; TestOnAPartOfTheBatch has the law for every choice.
ROULETTE = RussianRoulette(exact_dimensions=0, subsample=0.25)
CHANNELS, SIZE, BATCH = 4, 3, 64


def make(
    response: str,
    normalization: str = "column",
    *,
    heads: int = 1,
    prior: bool = False,
    kind: str = "initial",
):
    """A layer as initialized, like a trained one, or with adversarially sharp weights."""
    torch.manual_seed(0)
    layer = ia.InvertibleAttention(
        CHANNELS,
        response,
        normalization=normalization,
        heads=heads,
        position_prior=ia.TorusPrior(heads=heads, width=0.7, reference=SIZE) if prior else None,
    ).double()
    x = torch.randn(1, CHANNELS, SIZE, SIZE, dtype=torch.float64)
    layer.initialize(x)
    with torch.no_grad():
        if kind != "initial":
            # The budget spent against the mean, as in densities of images, and tokens outside the ball.
            layer.branch.out_weight.copy_(-layer.branch.value_weight.mT)
            layer.branch.log_radius.sub_(0.3)
        if kind == "sharp":
            for parameter in layer.branch.response.parameters():
                parameter.mul_(3)
    return layer.train(), x


def value_and_gradient(
    layer: ia.InvertibleAttention, x: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The mean over the batch of the log-determinant, and its gradient by the point and every parameter."""
    x = x.clone().requires_grad_()
    logdet = layer.forward_and_logdet(x, mask=mask)[1].mean()
    gradients = torch.autograd.grad(
        logdet, [x, *layer.parameters()], allow_unused=True, materialize_grads=True
    )
    return logdet.detach(), torch.cat([gradients[0].sum(0).flatten(), *[g.flatten() for g in gradients[1:]]])


@pytest.fixture
def frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimate the remainder every other time: unbiased for any probability, and visible in a test."""
    monkeypatch.setattr(remainder, "_RAREST", 0.5)


def assert_unbiased(
    layer, x: Tensor, estimator: LogDetEstimator, mask: Tensor | None = None, calls: int = 32
):
    """Within 4 standard errors of the exact value, and of the gradient along itself and random directions."""
    layer.logdet = ia.Exact()
    truth, gradient = value_and_gradient(layer, x, mask)
    layer.logdet = estimator
    torch.manual_seed(1)
    many = x.expand(BATCH, *x.shape[1:])
    mask = None if mask is None else mask.expand(BATCH, *mask.shape[1:])
    draws = [value_and_gradient(layer, many, mask) for _ in range(calls)]
    values, gradients = (torch.stack(column) for column in zip(*draws, strict=True))
    directions = torch.cat([gradient[None], torch.randn(5, len(gradient), dtype=torch.float64)])
    directions /= torch.linalg.vector_norm(directions, dim=1, keepdim=True)
    found = torch.cat([values[:, None], gradients @ directions.mT], 1)
    expected = torch.cat([truth[None], directions @ gradient])
    error = found.std(0) / math.sqrt(calls)
    assert error[0] < 0.05 * truth.abs() + 1e-3
    assert error[1] < 0.1 * expected[1]
    distance = (found.mean(0) - expected).abs() / (error + 1e-9)
    assert distance.max() < 4


FORMS = [(1, False, False), (2, False, True), (1, True, False), (2, True, True)]
NORMALIZATIONS = ["column", "row", "all"]
KINDS = ["initial", "trained", "sharp"]
GRID = list(product(range(len(FORMS)), range(len(RESPONSES)), range(len(NORMALIZATIONS)), range(len(KINDS))))
# Every three of the four settings meet in each of their combinations.
TRIPLES = [indices for indices in GRID if sum(indices[:3]) % len(KINDS) == indices[3]]


def make_indexed(form: int, response: int, normalization: int, kind: int):
    """The layer of an entry of the grid, its input and its mask."""
    heads, prior, masked = FORMS[form]
    layer, x = make(
        RESPONSES[response], NORMALIZATIONS[normalization], heads=heads, prior=prior, kind=KINDS[kind]
    )
    mask = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1, 1]).bool().view(1, SIZE, SIZE) if masked else None
    return layer, x, mask


def title(indices: tuple[int, int, int, int]) -> str:
    form, response, normalization, kind = indices
    heads, prior, masked = FORMS[form]
    words = [f"{heads} heads", "prior" * prior, "mask" * masked]
    words += [RESPONSES[response], NORMALIZATIONS[normalization], KINDS[kind]]
    return "-".join(word for word in words if word)


@pytest.mark.parametrize("indices", GRID, ids=title)
def test_value_is_unbiased_where_the_remainder_is_all(indices):
    """Without exact terms: what is left after some is too small for a wrong one to be seen in a thousand samples."""
    layer, x, mask = make_indexed(*indices)
    estimator, batch = replace(ROULETTE, exact_terms=0), 32
    torch.manual_seed(1)
    many, mask = x.expand(batch, -1, -1, -1), None if mask is None else mask.expand(batch, -1, -1)
    with torch.no_grad():
        layer.logdet = ia.Exact()
        truth = layer.forward_and_logdet(many[:1], mask=None if mask is None else mask[:1])[1].item()
        layer.logdet = estimator
        # The samples of a call share what is drawn for the remainder.
        values = torch.stack([layer.forward_and_logdet(many, mask=mask)[1].mean() for _ in range(16)])
    error = values.std().item() / math.sqrt(len(values))
    assert error < 0.05 * abs(truth) + 1e-3
    assert abs(values.mean().item() - truth) < 4 * (error + 1e-9)


@pytest.mark.parametrize("indices", TRIPLES, ids=title)
@pytest.mark.slow
@pytest.mark.usefixtures("frequent")
def test_value_and_gradient_are_unbiased_in_training(indices):
    layer, x, mask = make_indexed(*indices)
    assert_unbiased(layer, x, ROULETTE, mask)


ESTIMATORS = {
    "no exact terms": replace(ROULETTE, exact_terms=0),
    "poisson": replace(ROULETTE, exact_terms=1, tail="poisson"),
    "rademacher": replace(ROULETTE, distribution="rademacher", probes=2),
    "graph kept": replace(ROULETTE, memory_saving=False),
    "autograd": replace(ROULETTE, gradient="autograd"),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("prior", [False, True], ids=["average", "convolution"])
@pytest.mark.usefixtures("frequent")
def test_every_estimator_form_is_unbiased(estimator, prior: bool):
    layer, x = make("embedded_gaussian", heads=2, prior=prior, kind="sharp")
    assert_unbiased(layer, x, ESTIMATORS[estimator])


@pytest.mark.parametrize("context", ["vector", "tokens", "masked_tokens"])
def test_unbiased_with_context(context):
    torch.manual_seed(0)
    layer = ia.InvertibleAttention(
        4, "dot_product", normalization="row", context_channels=3, context_kind=context
    )
    layer = layer.double()
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    given = torch.randn(1, *{"vector": (3,), "tokens": (3, 5), "masked_tokens": (4, 5)}[context]).double()
    layer.initialize(x)
    layer.logdet = ia.Exact()
    truth = layer.forward_and_logdet(x, context=given)[1].item()
    layer.logdet = ROULETTE
    many, given = x.expand(1000, -1, -1, -1), given.expand(1000, *given.shape[1:])
    with torch.no_grad():
        draws = layer.forward_and_logdet(many, context=given)[1]
    assert abs(draws.mean().item() - truth) < 4 * draws.std().item() / math.sqrt(1000)


@pytest.mark.parametrize("gradient", ["autograd", "neumann"])
def test_control_variate_reduces_the_bias_of_the_truncated_series(gradient):
    """The truncation error of five terms is that of a small remainder, in value and gradient."""
    layer, x = make("embedded_gaussian", kind="trained")
    layer.logdet = ia.Exact()
    truth, slope = value_and_gradient(layer, x, None)
    many = x.expand(4000, -1, -1, -1)

    def error(control_variate: bool) -> tuple[float, float]:
        torch.manual_seed(2)
        layer.logdet = PowerSeries(gradient=gradient, control_variate=control_variate)
        value, found = value_and_gradient(layer, many, None)
        return (value - truth).abs().item(), torch.linalg.vector_norm(found - slope).item()

    with_it, without = error(True), error(False)
    assert with_it[0] < 0.1 * without[0]
    assert with_it[1] < 0.3 * without[1]


@pytest.mark.parametrize("response", RESPONSES)
def test_less_noise_for_fewer_products(response):
    layer, x = make(response, kind="trained")
    many = x.expand(2000, -1, -1, -1)

    def deviation(control_variate: bool) -> float:
        torch.manual_seed(3)
        layer.logdet = replace(ROULETTE, control_variate=control_variate)
        with torch.no_grad():
            return layer.eval().forward_and_logdet(many)[1].std().item()

    assert deviation(True) < 0.25 * deviation(False)


def test_uniform_weights_are_exact_for_any_probe():
    layer, x = make("embedded_gaussian", kind="trained")
    with torch.no_grad():
        for parameter in layer.branch.response.parameters():
            parameter.zero_()
    found = []
    for estimator in (ia.Exact(), ROULETTE, PowerSeries()):
        layer.logdet = estimator
        found.append(value_and_gradient(layer, x, None))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2][0], found[0][0])


def test_functional_call_and_vmap_see_the_linear_part_of_their_own_weights():
    layer, x = make("embedded_gaussian", kind="trained")
    layer.logdet = replace(ROULETTE, probes=1)
    weights = {name: 0.7 * value.detach() for name, value in layer.named_parameters()}
    x = x.expand(500, -1, -1, -1)

    class Logdet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer.forward_and_logdet(x)[1].mean()

    given = {f"layer.{name}": value.clone().requires_grad_() for name, value in weights.items()}
    torch.manual_seed(4)
    value = torch.func.functional_call(Logdet(), given, (x,))
    gradient = torch.autograd.grad(value, list(given.values()), allow_unused=True, materialize_grads=True)
    torch.manual_seed(4)
    functional = torch.func.grad(lambda w: torch.func.functional_call(Logdet(), w, (x,)))(
        {name: tensor.detach() for name, tensor in given.items()}
    )
    for name, found in zip(given, gradient, strict=True):
        torch.testing.assert_close(found, functional[name])


class Multiples(torch.nn.Module):
    """Each sample times its own number, and one number for all as the linear part."""

    def __init__(self, *numbers: float, reference: float) -> None:
        super().__init__()
        self.numbers, self.reference = torch.tensor(numbers, dtype=torch.float64), reference

    def forward(self, x: Tensor) -> Tensor:
        return self.numbers[:, None] * x

    def linear_part(self, x: Tensor) -> Multiples:
        return self

    def apply(self, v: Tensor, *, transposed: bool = False) -> Tensor:
        return self.reference * v

    def solve(self, r: Tensor, *, transposed: bool = False) -> Tensor:
        return r / (1 + self.reference)

    def log_determinant(self) -> Tensor:
        return torch.full((1,), DIM * math.log1p(self.reference), dtype=torch.float64)


DIM = 64


@pytest.mark.parametrize("training", [False, True])
def test_poor_linear_part_for_one_sample_keeps_both_estimates_finite(training):
    """As when most tokens are projected on the ball: the series of the remainder would grow."""
    torch.manual_seed(0)
    branch, x = Multiples(-0.89, 0.1, reference=-0.9), torch.ones(2, DIM, dtype=torch.float64)
    with torch.no_grad():
        draws = torch.stack(
            [RussianRoulette()(branch, x, lipschitz=0.9, training=training)[1] for _ in range(500)]
        )
    truth = DIM * branch.numbers.log1p()
    assert ((draws.mean(0) - truth).abs() <= 4 * draws.std(0) / len(draws) ** 0.5).all()
    # nats; the truth is -141 and 6
    assert draws.std(0)[0] < 5
    assert draws.std(0)[1] < 300


class TestOnAPartOfTheBatch:
    """The series on some samples of a batch, each weighted by :math:`B/b`."""

    @staticmethod
    def estimate(layer, x: Tensor, rows: list[int] | None, mask: Tensor | None = None, **settings):
        """With terms and probes that are functions of the sample: what differs between calls is the choice."""
        branch = layer._bind()
        terms = [1.0, 0.7, 0.2]
        return series.estimate(
            branch,
            x,
            () if mask is None else (None, mask),
            tuple(branch.parameters()),
            lambda like: torch.sin(100 * like.detach()),
            [series.TruncatedSeries(series.Terms(terms, terms))],
            choose=None if rows is None else lambda x: torch.tensor(rows),
            **({"gradient": "neumann", "memory_saving": True} | settings),
        )

    def gradients(self, layer, x: Tensor, rows: list[int] | None, mask: Tensor | None = None, **settings):
        x = x.clone().requires_grad_()
        value, logdet = self.estimate(layer, x, rows, mask, **settings)
        total = (logdet * torch.arange(1, len(x) + 1)).sum() + value.square().sum()
        gradients = torch.autograd.grad(
            total, [x, *layer.parameters()], allow_unused=True, materialize_grads=True
        )
        return [value.detach(), logdet.detach(), *gradients]

    @pytest.mark.parametrize("settings", [{}, {"memory_saving": False}, {"gradient": "autograd"}], ids=str)
    @pytest.mark.parametrize("masked", [False, True], ids=["complete", "masked"])
    @pytest.mark.parametrize("prior", [False, True], ids=["", "prior"])
    def test_choices_average_to_the_whole(self, settings, masked, prior):
        layer, _ = make("embedded_gaussian", heads=2, prior=prior, kind="sharp")
        x = torch.randn(4, CHANNELS, SIZE, SIZE, dtype=torch.float64)
        mask = torch.rand(4, SIZE, SIZE) < 0.7 if masked else None
        whole = self.gradients(layer, x, None, mask, **settings)
        choices = [
            self.gradients(layer, x, list(rows), mask, **settings) for rows in combinations(range(4), 2)
        ]
        for expected, *found in zip(whole, *choices, strict=True):
            torch.testing.assert_close(sum(found) / len(found), expected, rtol=1e-9, atol=1e-9)
        # They are not all the same, so the average says something.
        assert not torch.allclose(choices[0][1], choices[-1][1])

    def test_forms_of_the_gradient_agree(self):
        layer, _ = make("gaussian", kind="sharp")
        x = torch.randn(4, CHANNELS, SIZE, SIZE, dtype=torch.float64)
        kept = self.gradients(layer, x, [3, 1], memory_saving=False)
        for recomputed, stored in zip(self.gradients(layer, x, [3, 1]), kept, strict=True):
            torch.testing.assert_close(recomputed, stored, rtol=1e-9, atol=1e-9)

    def test_a_share_of_a_batch_in_training_only(self, monkeypatch):
        layer, x = make("dot_product")
        sizes = []
        vjp = Linearization.vjp

        def counted(self, cotangent, **arguments):
            sizes.append(len(cotangent))
            return vjp(self, cotangent, **arguments)

        monkeypatch.setattr(Linearization, "vjp", counted)
        for training, subsample, batch, expected in [
            (True, 0.125, 64, 8),
            (True, 0.125, 16, 2),
            (True, 0.125, 2, 2),
            (True, 0.0625, 33, 3),
            (True, 1.0, 64, 64),
            (False, 0.125, 64, 64),
        ]:
            sizes.clear()
            layer.logdet = replace(ROULETTE, subsample=subsample)
            value = layer.train(training).forward_and_logdet(x.expand(batch, *x.shape[1:]))[1]
            value.sum().backward()
            assert set(sizes) == {expected}

    def test_small_batches_are_taken_whole_unless_a_share_is_asked_for(self):
        small, large = torch.zeros(32, 512), torch.zeros(32, 513)
        assert RussianRoulette()._choose(small) is None
        rows = RussianRoulette()._choose(large)
        assert rows is not None
        assert len(rows) == 2
        rows = RussianRoulette(subsample=0.125)._choose(small)
        assert rows is not None
        assert len(rows) == 4

    @pytest.mark.parametrize("subsample", [0.0, -0.1, 1.1, math.nan])
    def test_no_share_is_refused(self, subsample):
        with pytest.raises(ValueError, match=f"at most 1, got {subsample}"):
            RussianRoulette(subsample=subsample)

    @pytest.mark.parametrize("output", [0, 1], ids=["value", "log-determinant"])
    def test_a_change_of_weights_before_backward_is_refused(self, output):
        layer, _ = make("dot_product")
        layer.logdet = replace(ROULETTE, memory_saving=True)
        x = torch.randn(16, CHANNELS, SIZE, SIZE, dtype=torch.float64)
        outputs = layer.forward_and_logdet(x)
        layer.branch.out_weight.data.mul_(1.5)
        with pytest.raises(RuntimeError, match="not what it was in the forward pass"):
            outputs[output].sum().backward()

    def test_every_sample_is_chosen_alike(self):
        torch.manual_seed(0)
        x = torch.empty(12, 1)
        estimator = RussianRoulette(subsample=0.2)
        rows = torch.stack([estimator._choose(x) for _ in range(2000)])
        assert rows.shape[1] == 3
        assert bool((rows.sort(1).values.diff(dim=1) > 0).all())
        share = rows.flatten().bincount(minlength=12) / len(rows)
        error = math.sqrt(0.25 * 0.75 / len(rows))
        assert ((share - 0.25).abs() < 4 * error).all()

    def test_the_mean_of_each_of_different_samples_is_its_own(self):
        layer, _ = make("embedded_gaussian", kind="sharp")
        x = torch.randn(6, CHANNELS, SIZE, SIZE, dtype=torch.float64)
        layer.logdet = ia.Exact()
        truth = layer.forward_and_logdet(x)[1].detach()
        layer.logdet = RussianRoulette(exact_dimensions=0)
        draws = torch.stack([layer.forward_and_logdet(x)[1].detach() for _ in range(800)])
        error = draws.std(0) / math.sqrt(len(draws))
        assert bool((error < 0.2 * truth.std()).all())
        assert bool(((draws.mean(0) - truth).abs() < 4 * error).all())

    def test_a_mapped_ensemble_chooses_as_its_members_do(self):
        layer, _ = make("gaussian")
        layer.logdet = ROULETTE
        x = torch.randn(1, 8, CHANNELS, SIZE, SIZE, dtype=torch.float64).expand(3, -1, -1, -1, -1)

        def loss(x: Tensor) -> Tensor:
            return layer.forward_and_logdet(x)[1].square().mean()

        torch.manual_seed(5)
        mapped = torch.func.vmap(torch.func.grad(loss), randomness="same")(x)
        torch.manual_seed(5)
        alone = torch.func.grad(loss)(x[0])
        torch.testing.assert_close(mapped, alone.expand_as(mapped))

    @pytest.mark.parametrize("causal", [False, True], ids=["linear part", "none"])
    def test_what_has_no_linear_part_is_evaluated_once(self, causal, monkeypatch: pytest.MonkeyPatch):
        layer = ia.InvertibleAttention(
            CHANNELS, "embedded_gaussian", normalization="row", causal=causal, logdet=ROULETTE
        )
        x = torch.randn(32, CHANNELS, SIZE, SIZE)
        layer.initialize(x)
        sizes = []
        evaluate = AttentionBranch.evaluate

        def counted(self, x: Tensor, *args: Tensor | None) -> Tensor:
            sizes.append(len(x))
            return evaluate(self, x, *args)

        monkeypatch.setattr(AttentionBranch, "evaluate", counted)
        layer.train().forward_and_logdet(x)
        assert sorted(sizes) == ([32] if causal else [8, 32])

    def test_is_traced_without_values(self):
        with FakeTensorMode():
            layer = ia.InvertibleAttention(CHANNELS)
            value, logdet = PowerSeries()(
                layer.branch, torch.randn(40, CHANNELS, SIZE), training=True, lipschitz=0.9
            )
        assert value.shape == (40, CHANNELS, SIZE)
        assert logdet.shape == (40,)
