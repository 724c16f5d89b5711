"""The linear part is the Jacobian at uniform weights and at equal tokens, and saves evaluations elsewhere."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import invertible_attention as ia
from invertible_attention.attention.ball import Projection, project_on_ball
from invertible_attention.attention.evaluation import Evaluation
from invertible_attention.attention.mean_field import LinearPart, MeanWithQueries
from invertible_attention.attention.position import PositionPrior
from invertible_attention.attention.responses import Response
from invertible_attention.lipschitz.certificate import ScoreBounds

CONSTRAINTS = [ia.Certified(0.9), ia.Relaxed(0.9, column_sum=0.8)]


def assert_is_dense(part: LinearPart, dense: Tensor, residual: Tensor) -> None:
    """Product, inverse and determinant of each sample are those of the matrix over its flattened values."""
    size = residual[0].numel()
    identity = torch.eye(size, dtype=torch.float64)
    logdets = part.log_determinant().expand(len(residual))
    for transposed in (False, True):
        applied = part.apply(residual, transposed=transposed)
        solved = part.solve(residual, transposed=transposed)
        for sample, matrix in enumerate(dense.mT if transposed else dense):
            vector = residual[sample].flatten()
            torch.testing.assert_close(applied[sample].flatten(), matrix @ vector)
            torch.testing.assert_close(
                solved[sample].flatten(), torch.linalg.solve(identity + matrix, vector)
            )
    truth = torch.linalg.slogdet(identity + dense).logabsdet
    torch.testing.assert_close(logdets, truth, rtol=0, atol=1e-10)


@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 6),
    channels=st.integers(1, 5),
    masked=st.booleans(),
    per_sample=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=50)
def test_average_matches_the_dense_matrix(
    batch: int, tokens: int, channels: int, masked: bool, per_sample: bool, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    real = {"generator": generator, "dtype": torch.float64}
    residual, weight = torch.randn(batch, channels, tokens, **real), torch.randn(channels, channels, **real)
    weight /= torch.linalg.matrix_norm(weight, 2)
    gain = 0.95 * torch.rand((batch,) if per_sample else (), **real)
    mask = torch.rand(batch, tokens, generator=generator) < 0.7 if masked else None
    valid = torch.ones(batch, tokens) if mask is None else mask
    dense = torch.stack(
        [
            torch.kron(g * weight, torch.outer(m, m) / m.sum().clamp_min(1))
            for g, m in zip(gain.expand(batch), valid.double(), strict=True)
        ]
    )
    assert_is_dense(LinearPart.average(weight, gain, mask), dense, residual)


@given(
    batch=st.integers(1, 3),
    spatial=st.lists(st.integers(1, 5), min_size=1, max_size=3).filter(lambda s: math.prod(s) <= 24),
    channels=st.integers(1, 4),
    heads=st.integers(1, 3),
    per_sample=st.booleans(),
    length=st.sampled_from([None, 0.1, 3.0]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=50)
def test_convolution_matches_the_dense_matrix(
    batch: int,
    spatial: list[int],
    channels: int,
    heads: int,
    per_sample: bool,
    length: float | None,
    seed: int,
):
    generator = torch.Generator().manual_seed(seed)
    real = {"generator": generator, "dtype": torch.float64}
    torch.manual_seed(seed)
    prior = ia.TorusPrior(axes=len(spatial), heads=heads, width=0.7, reference=4).double()
    weights = torch.randn(heads, channels, channels, **real)
    weights /= torch.linalg.matrix_norm(weights, 2).sum()
    gain = 0.95 * torch.rand((batch,) if per_sample else (), **real)
    residual = torch.randn(batch, channels, *spatial, **real)
    projection = None
    before = torch.eye(channels, dtype=torch.float64).expand(batch, -1, -1)
    if length is not None:
        tokens, radius = length * torch.randn(batch, channels, math.prod(spatial), **real), torch.tensor(1.0)
        projection = Projection.at(tokens, radius.double())
        before = torch.stack([projection_jacobians(sample.mT, radius).mean(0) for sample in tokens])
    with torch.no_grad():
        part = LinearPart.convolution(prior.kernel(spatial), weights, gain, projection)
        pairs = prior(spatial).exp()
        convolution = torch.stack([torch.kron(weights[h], pairs[h]) for h in range(heads)]).sum(0)
        first = torch.stack([torch.kron(b, torch.eye(len(pairs[0]), dtype=torch.float64)) for b in before])
        dense = gain.expand(batch)[:, None, None] * convolution @ first
    assert_is_dense(part, dense, residual)


def projection_jacobians(tokens: Tensor, radius: Tensor) -> Tensor:
    """The Jacobian of the projection on the ball at each token."""
    return torch.stack(
        [torch.autograd.functional.jacobian(lambda t: project_on_ball(t, radius), t) for t in tokens]
    )


def layer(**arguments) -> ia.InvertibleAttention:
    built = ia.InvertibleAttention(6, **arguments).double()
    built.branch.initialize(torch.randn(4, 6, 3, 3, dtype=torch.float64))
    return built


def draw_context(kind: str | None) -> Tensor | None:
    shapes = {"vector": (5,), "tokens": (5, 4), "masked_tokens": (6, 4)}
    return None if kind is None else torch.randn(2, *shapes[kind], dtype=torch.float64)


def with_equal_weights(built: ia.InvertibleAttention) -> ia.InvertibleAttention:
    with torch.no_grad():
        for parameter in built.branch.response.parameters():
            parameter.zero_()
    return built


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=["certified", "relaxed"])
@pytest.mark.parametrize("normalization", ["column", "row", "all"])
@pytest.mark.parametrize("response", ["embedded_gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize(
    ("heads", "masked", "context", "prior"),
    [
        (1, False, None, False),
        (2, True, None, False),
        (1, False, "vector", False),
        (2, True, "tokens", False),
        (1, False, "masked_tokens", False),
        (2, False, None, True),
        (2, False, "masked_tokens", True),
    ],
)
def test_equals_the_jacobian_at_uniform_weights(
    response, normalization, constraint, heads: int, masked: bool, context: str | None, prior: bool
):
    built = with_equal_weights(
        layer(
            response=response,
            normalization=normalization,
            constraint=constraint,
            heads=heads,
            context_channels=None if context is None else 5,
            context_kind=context or "vector",
            position_prior=ia.TorusPrior(heads=heads, width=0.6, reference=3) if prior else None,
        )
    )
    x = 0.1 * torch.randn(2, 6, 3, 3, dtype=torch.float64)
    mask = torch.rand(2, 3, 3) < 0.6 if masked else None
    given = draw_context(context)
    branch = built.branch.bind()
    with torch.no_grad():
        part = branch.linear_part(x, given, mask)
        assert isinstance(part, LinearPart)
        assert_is_dense(part, jacobians(branch, x, given, mask), torch.randn_like(x))
        # What is affine is solved at once; nothing is guessed where nothing is certified.
        guess = branch.first_guess(x, given, mask)
        assert (guess is None) == isinstance(constraint, ia.Relaxed)
        if guess is not None:
            torch.testing.assert_close(guess + branch(guess, given, mask), x, rtol=0, atol=1e-12)


def jacobians(branch: Evaluation, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
    """The Jacobian of each sample."""

    def jacobian(sample: slice) -> Tensor:
        args = [None if arg is None else arg[sample] for arg in (context, mask)]

        def flat(v: Tensor) -> Tensor:
            return branch(v.view_as(x[sample]), *args).flatten()

        return torch.autograd.functional.jacobian(flat, x[sample].flatten())

    return torch.stack([jacobian(slice(i, i + 1)) for i in range(len(x))])


@pytest.mark.parametrize("context", [None, "vector"])
@pytest.mark.parametrize("normalization", ["column", "row"])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_jacobian_outside_the_ball(normalization, masked: bool, context: str | None):
    built = with_equal_weights(
        layer(
            response="embedded_gaussian",
            normalization=normalization,
            context_channels=None if context is None else 5,
        )
    )
    if context is not None:
        torch.nn.init.normal_(built.branch.context.weight, std=0.3)
    x = 3 * torch.randn(2, 6, 3, 3, dtype=torch.float64)
    assert (x.norm(dim=1) > built.branch.radius).double().mean() > 0.3
    mask = torch.rand(2, 3, 3) < 0.6 if masked else None
    given = None if context is None else torch.randn(2, 5, dtype=torch.float64)
    branch = built.branch.bind()
    with torch.no_grad():
        part = branch.linear_part(x, given, mask)
        assert_is_dense(part, jacobians(branch, x, given, mask), torch.randn_like(x))


@pytest.mark.parametrize("size", [0.1, 3.0], ids=["inside", "outside"])
@pytest.mark.parametrize("response", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize(
    ("normalization", "heads", "masked", "context", "bias"),
    [
        *itertools.product(["column", "row", "all"], [1], [False], [None], [False]),
        *itertools.product(["column", "row", "all"], [2], [True], [None], [True]),
        *itertools.product(["column", "row", "all"], [1], [False], ["vector"], [True]),
        # Other keys, so that weights along a row are not equal.
        ("column", 2, True, "tokens", True),
        ("column", 1, False, "masked_tokens", False),
    ],
)
def test_equals_the_jacobian_where_all_tokens_are_equal(
    response, normalization, heads: int, masked: bool, context: str | None, bias: bool, size: float
):
    built = layer(
        response=response,
        normalization=normalization,
        heads=heads,
        bias=bias,
        context_channels=None if context is None else 5,
        context_kind=context or "vector",
    )
    with torch.no_grad():
        for name, parameter in built.branch.named_parameters():
            if "bias" in name or (context == "vector" and "context" in name):
                parameter.normal_(std=0.3)
    x = (size * torch.randn(2, 6, 1, 1, dtype=torch.float64)).repeat(1, 1, 3, 3)
    mask = torch.rand(2, 3, 3) < 0.6 if masked else None
    given = draw_context(context)
    branch = built.branch.bind()
    with torch.no_grad():
        part = branch.linear_part(x, given, mask)
        assert isinstance(part, MeanWithQueries)
        assert_is_dense(part, jacobians(branch, x, given, mask), torch.randn_like(x))


@pytest.mark.parametrize("normalization", ["column", "row", "all"])
@pytest.mark.parametrize("response", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize("sharper", [1.0, 5.0])
def test_following_queries_stays_below_the_certificate(response, normalization, sharper: float):
    torch.manual_seed(0)
    for heads, masked, context in [(1, False, None), (2, True, "tokens"), (3, False, "vector")]:
        arguments = {} if context is None else {"context_channels": 5, "context_kind": context}
        built = layer(
            response=response, normalization=normalization, heads=heads, bias=heads > 1, **arguments
        )
        with torch.no_grad():
            for parameter in built.branch.parameters():
                parameter.mul_(sharper * torch.rand(()))
            branch = built.branch.bind()
            # All tokens on the same side, for which their moments are largest, or anywhere.
            for spread in (0.01, 1.0, 30.0):
                x = branch.radius * (torch.randn(4, 6, 1, 1) + spread * torch.randn(4, 6, 3, 3)).double()
                mask = torch.rand(4, 3, 3) < 0.6 if masked else None
                given = None if context is None else torch.randn(4, 5, *[3] * (context == "tokens")).double()
                part = branch.linear_part(x, given, mask)
                identity = torch.eye(54, dtype=torch.float64).view(54, 1, 6, 3, 3).expand(-1, 4, -1, -1, -1)
                dense = torch.stack([part.apply(v).flatten(1) for v in identity], -1)
                bound = branch.lipschitz_bound()
                # Any number of context tokens may be there for each token: the branch is scaled for those there are.
                bound = torch.where(bound.isinf(), 0.9, bound)
                assert (torch.linalg.matrix_norm(dense, 2) <= bound + 1e-12).all()


@pytest.mark.parametrize("response", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
def test_following_queries_leaves_little_of_the_jacobian(response):
    built = like_trained(ia.Certified(0.9), response, ia.Anderson())
    x = 0.3 * torch.rand(2, 6, 8, 8, dtype=torch.float64)
    branch = built.branch.bind()
    size = x[0].numel()
    identity = torch.eye(size, dtype=torch.float64).view(size, 1, *x.shape[1:]).expand(-1, 2, -1, -1, -1)
    with torch.no_grad():
        jacobian = jacobians(branch, x, None, None)
        whole = branch.linear_part(x)
        average = LinearPart(whole.basis, whole.matrices)
        left = [
            jacobian - torch.stack([part.apply(v).flatten(1) for v in identity], -1)
            for part in (whole, average)
        ]
    followed, averaged = (torch.linalg.matrix_norm(matrix) for matrix in left)
    assert (followed < 0.25 * averaged).all()
    followed, averaged = (matrix.diagonal(dim1=1, dim2=2).sum(1).abs() for matrix in left)
    assert (followed < 0.05 * averaged).all()


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize(
    ("settings", "masked", "context"),
    [
        ({}, False, None),
        ({"normalization": "all", "heads": 2}, True, None),
        ({}, True, "vector"),
        ({"normalization": "all"}, True, "masked_tokens"),
        ({"position_prior": ia.TorusPrior(heads=2, width=0.6, reference=3), "heads": 2}, False, None),
        ({"constraint": ia.Relaxed()}, False, None),
    ],
)
def test_of_some_samples_is_that_at_them(settings, masked: bool, context: str | None, outside: bool):
    arguments = {} if context is None else {"context_channels": 5, "context_kind": context}
    branch = layer(**settings, **arguments).branch.bind()
    x = torch.randn(4, 6, 3, 3, dtype=torch.float64) * (5.0 if outside else 0.1)
    mask = torch.rand(4, 3, 3) < 0.6 if masked else None
    shapes = {"vector": (5,), "masked_tokens": (6, 4)}
    given = None if context is None else torch.randn(4, *shapes[context], dtype=torch.float64)
    rows = torch.tensor([2, 0])
    found = branch.linear_part(x, given, mask).select(rows)
    expected = branch.linear_part(x[rows], *(None if arg is None else arg[rows] for arg in (given, mask)))
    v = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    for name in ("apply", "solve", "precondition"):
        for transposed in (False, True):
            results = [getattr(part, name)(v, transposed=transposed) for part in (found, expected)]
            torch.testing.assert_close(*results)
    torch.testing.assert_close(
        found.log_determinant().expand(2), expected.log_determinant().expand(2), rtol=1e-10, atol=1e-12
    )


class Unknown(Response):
    """Queries that are not affine in the tokens."""

    combine, phi = "product", "exp"

    def __init__(self, channels: int, **settings: object) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, tokens: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        return (self.slope * tokens).sin()[:, None], sources[:, None]

    def score_bounds(self, radius, normalization, *norms):
        slope = (self.slope.abs() * radius)[None]
        return ScoreBounds(query_slope=slope, key_slope=slope, log_range=2 * slope * radius)

    def rescale(self, radius, normalization, log_range=1.0):
        pass


def test_of_a_response_of_unknown_queries_it_is_the_average():
    built = layer(response=Unknown)
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    part = built.branch.bind().linear_part(x)
    assert type(part) is LinearPart
    torch.testing.assert_close(built.inverse(built(x)), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("normalization", ["column", "row", "all"])
def test_with_a_prior_it_is_the_average_over_translations_outside_the_ball(normalization, heads: int):
    built = with_equal_weights(
        layer(
            response="embedded_gaussian",
            normalization=normalization,
            heads=heads,
            position_prior=ia.TorusPrior(heads=heads, width=0.6, reference=3),
        )
    )
    x = 3 * torch.randn(2, 6, 3, 3, dtype=torch.float64)
    assert (x.norm(dim=1) > built.branch.radius).double().mean() > 0.3
    branch = built.branch.bind()
    with torch.no_grad():
        moves = [(i, j) for i in range(3) for j in range(3)]
        identity = torch.eye(54, dtype=torch.float64).view(54, 6, 3, 3)
        moved = [identity.roll(move, (2, 3)).flatten(1) for move in moves]
        jacobian = jacobians(branch, x, None, None)
        average = torch.stack([move @ jacobian @ move.mT for move in moved]).mean(0)
        assert_is_dense(branch.linear_part(x), average, torch.randn_like(x))


@pytest.mark.parametrize("transposed", [False, True])
def test_solvers_get_the_projection_of_each_token(transposed):
    prior = ia.TorusPrior(heads=2, width=0.6, reference=3)
    built = with_equal_weights(layer(response="embedded_gaussian", heads=2, position_prior=prior))
    x = torch.cat([3 * torch.randn(2, 6, 3, 3, dtype=torch.float64), torch.full((1, 6, 3, 3), 1e-3).double()])
    residual = torch.randn_like(x)
    with torch.no_grad():
        branch = built.branch.bind()
        jacobian = torch.eye(54, dtype=torch.float64) + jacobians(branch, x, None, None)
        found = branch.linear_part(x).precondition(residual, transposed=transposed)
    product = (jacobian.mT if transposed else jacobian) @ found.flatten(1)[..., None]
    left = (product[..., 0] - residual.flatten(1)).norm(dim=1) / residual.flatten(1).norm(dim=1)
    assert (left <= 1e-3).all()
    assert left[2] < 1e-12


def check_savings(built, x, monkeypatch: pytest.MonkeyPatch) -> None:
    """Solve with the linear part and without: the same values and gradients, for at most three quarters."""
    z = built(x).detach().requires_grad_()
    with_it = built.solve_inverse(z)
    (gradient,) = torch.autograd.grad(with_it.value.square().sum(), z)
    for known in ("linear_part", "first_guess"):
        monkeypatch.delattr(Evaluation, known)
    without = built.solve_inverse(z)
    (same,) = torch.autograd.grad(without.value.square().sum(), z)
    assert with_it.converged.all()
    assert with_it.evaluations.sum() < 0.75 * without.evaluations.sum()
    torch.testing.assert_close(with_it.value, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient, same, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", [ia.Anderson(), ia.NewtonKrylov()], ids=["anderson", "newton-krylov"])
def test_saves_evaluations_with_a_prior_outside_the_ball(solver, monkeypatch: pytest.MonkeyPatch):
    built = like_trained(ia.Certified(0.9), "embedded_gaussian", solver, ia.TorusPrior().double())
    x = 0.3 * torch.rand(8, 6, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        # Not on a token itself: there is a kink, and a gradient depends on rounding.
        built.branch.log_radius.copy_((1.0001 * x.norm(dim=1).median()).log())
    check_savings(built, x, monkeypatch)


class Shuffled(PositionPrior):
    """Doubly stochastic, but no function of relative position."""

    heads = 1

    def forward(self, spatial):
        tokens = math.prod(spatial)
        one = torch.eye(tokens, dtype=torch.float64)
        mixed = 0.5 * one[torch.randperm(tokens, generator=torch.Generator().manual_seed(0))]
        return (0.3 * one + mixed + 0.2 / tokens).log()[None]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "prior", [Shuffled(), ia.TorusPrior(width=0.6, reference=3).double()], ids=["any", "torus"]
)
@pytest.mark.parametrize("normalization", ["column", "row", "all"])
def test_is_a_contraction_even_when_not_the_jacobian(normalization, prior, masked: bool):
    built = layer(normalization=normalization, position_prior=prior)
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    mask = torch.rand(2, 3, 3) < 0.6 if masked else None
    with torch.no_grad():
        branch = built.branch.bind()
        part = branch.linear_part(x, None, mask)
        assert part is not None
        norms = torch.linalg.matrix_norm(part.matrices, 2)
    assert (norms <= branch.lipschitz_bound() + 1e-12).all()


def test_causal_attention_has_no_linear_part():
    residual = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    causal = layer(normalization="row", causal=True).branch.bind()
    assert causal.linear_part(residual) is None


def like_trained(
    constraint: ia.Certified | ia.Relaxed,
    response: str,
    solver: ia.Solver,
    prior: PositionPrior | None = None,
):
    """Weights like those of training on images: the whole budget against the mean, little on the scores."""
    built = layer(response=response, constraint=constraint, solver=solver, position_prior=prior)
    with torch.no_grad():
        value, out = torch.diag(torch.linspace(0.2, 1.0, 6)).double(), -20 * torch.eye(6).double()
        if isinstance(constraint, ia.Certified):
            built.branch.value_weight.copy_(value)
            built.branch.out_weight.copy_(out)
        else:
            built.branch.value_weight, built.branch.out_weight = value, out
        for parameter in built.branch.response.parameters():
            parameter.mul_(0.1)
    return built


@pytest.mark.parametrize("response", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize("solver", [ia.Anderson(), ia.NewtonKrylov()], ids=["anderson", "newton-krylov"])
@pytest.mark.parametrize("constraint", [ia.Certified(0.95), ia.Relaxed(0.95)], ids=["certified", "relaxed"])
def test_preconditioning_saves_evaluations_forward_and_transposed(
    response: str, solver: ia.Solver, constraint, monkeypatch: pytest.MonkeyPatch
):
    built = like_trained(constraint, response, solver)
    x = 0.3 * torch.rand(8, 6, 8, 8, dtype=torch.float64)
    check_savings(built, x, monkeypatch)


def test_the_projection_of_huge_tokens_is_known_as_exactly_as_that_of_others():
    direction = torch.nn.functional.normalize(torch.randn(2, 5, 7), dim=1)
    for length in (1e-3, 3.0, 1e25):
        projection = Projection.at(length * direction, torch.tensor(2.0))
        expected = torch.full((2, 1, 7), min(1.0, 2.0 / length))
        torch.testing.assert_close(projection.scale, expected, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(projection.normal, direction * (length > 2))
