from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import invertible_attention as ia
from invertible_attention.logdet import RussianRoulette
from invertible_attention.logdet.memory_saving import captured_tensors


def seeded(**arguments):
    return RussianRoulette(exact_dimensions=0, generator=torch.Generator().manual_seed(0), **arguments)


def gradients(branch, x, wrt, args=(), **arguments):
    """Gradients by the memory-saving route and by the graph that is kept."""
    results = []
    for memory_saving in (True, False):
        value, logdet = seeded(memory_saving=memory_saving)(branch, x, args, training=True, **arguments)
        results.append(
            torch.autograd.grad(value.sin().sum() + logdet.sum(), wrt, allow_unused=True, retain_graph=True)
        )
    return results


class Box:
    tensor: torch.Tensor


class Bound(nn.Module):
    """A branch whose weight is computed from a parameter before the branch is called."""

    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def bind(self):
        weight = 0.5 * self.raw / torch.linalg.matrix_norm(self.raw)
        return weight, lambda x: torch.tanh(x @ weight)


@pytest.mark.parametrize("name_weight", [True, False])
def test_gradient_of_a_bound_branch_reaches_the_raw_parameter(name_weight):
    torch.manual_seed(0)
    module = Bound()
    weight, branch = module.bind()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    named = (weight,) if name_weight else ()
    torch.testing.assert_close(*gradients(branch, x, [x, module.raw], parameters=named))


def test_listing_weight_and_raw_parameter_counts_gradients_once():
    torch.manual_seed(0)
    module = Bound()
    weight, branch = module.bind()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    for wrapped in (branch, lambda x: branch(x) + 0.1 * x @ module.raw):
        torch.testing.assert_close(*gradients(wrapped, x, [module.raw], parameters=(weight, module.raw)))


def test_one_binding_serves_several_calls():
    torch.manual_seed(0)
    module = Bound()
    _, branch = module.bind()
    x = torch.randn(4, 3, dtype=torch.float64)
    losses = []
    for memory_saving in (True, False):
        estimator = seeded(memory_saving=memory_saving)
        losses.append(sum(estimator(branch, x * i, training=True)[1].sum() for i in (1, 2)))
    torch.testing.assert_close(*(torch.autograd.grad(loss, module.raw) for loss in losses))


def test_arguments_receive_gradients_without_traversing_their_graph():
    torch.manual_seed(1)
    linear = nn.Linear(3, 3).double()
    source = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    context = source.exp()
    index = torch.tensor([0, 1, 0, 1])
    scale = torch.tensor([[0.3], [0.4]], dtype=torch.float64, requires_grad=True)

    def branch(x, context, mask, index):
        assert mask is None
        return torch.tanh(linear(x) * context) * scale[index]

    x = torch.randn(4, 3, dtype=torch.float64)
    found = gradients(branch, x, [source, scale, *linear.parameters()], (context, None, index))
    torch.testing.assert_close(*found)


def test_argument_computed_from_the_input_is_not_part_of_the_jacobian():
    x = torch.full((1, 1), 0.3, dtype=torch.float64, requires_grad=True)
    for memory_saving in (True, False):
        estimator = seeded(
            memory_saving=memory_saving, exact_terms=60, continuation=1e-9, distribution="rademacher"
        )
        _, logdet = estimator(lambda x, c: c * x, x, (x * 1.0,), training=True)
        assert logdet.item() == pytest.approx(torch.tensor(1.3).log().item(), rel=1e-6)
        (grad,) = torch.autograd.grad(logdet, x)
        assert grad.item() == pytest.approx(1 / 1.3)  # through c, which depends on x


def test_branch_is_evaluated_once_forward_and_once_backward():
    calls = []
    linear = nn.Linear(3, 3)

    def branch(x):
        calls.append(1)
        return 0.1 * linear(x)

    _, logdet = RussianRoulette(probes=3)(branch, torch.randn(2, 3), training=True)
    assert len(calls) == 1
    logdet.sum().backward()
    assert len(calls) == 2


def kept(branch, x, **arguments):
    """Numbers that the graph of a log-determinant keeps, parameters apart."""
    alive = weakref.WeakSet()

    def pack(tensor):
        box = Box()
        box.tensor = tensor
        alive.add(box)
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        _, logdet = seeded(**arguments)(branch, x, training=True)
    assert logdet.requires_grad
    gc.collect()
    storages = {
        box.tensor.untyped_storage().data_ptr(): box.tensor.untyped_storage().nbytes() // box.tensor.itemsize
        for box in alive
        if not isinstance(box.tensor, nn.Parameter)
    }
    return sum(storages.values())


def test_only_the_input_and_the_vectors_are_kept():
    branch = nn.Sequential(nn.Linear(8, 64), nn.ELU(), nn.Linear(64, 8))
    x = torch.randn(32, 8, requires_grad=True)
    assert kept(branch, x) == kept(branch, x, memory_saving=True) == 3 * 32 * 8  # x, v and w
    assert kept(branch, x, memory_saving=False) > 4 * 32 * 64


def test_default_keeps_the_graph_of_attention():
    branch = ia.InvertibleAttention(12, "embedded_gaussian").branch
    x = torch.randn(32, 12, 16, 16, requires_grad=True)
    branch.initialize(x)
    assert kept(branch, x, memory_saving=True) < kept(branch, x) == kept(branch, x, memory_saving=False)
    # Of two samples the series, of all of them one evaluation.
    assert kept(branch, x) < kept(branch, x, subsample=1) < 24 * x.numel()


@pytest.mark.parametrize("response", ["embedded_gaussian", "concatenation"])
@pytest.mark.parametrize("batch", [4, 32])
def test_what_is_kept_changes_neither_value_nor_gradient(response, batch):
    branch = ia.InvertibleAttention(12, response).double().branch
    x = torch.randn(batch, 12, 10, 10, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(batch, dtype=torch.float64)

    def found(memory_saving):
        estimator = seeded(memory_saving=memory_saving, subsample=0.1 if batch == 32 else None)
        value, logdet = estimator(branch, x, training=True)
        loss = value.sin().sum() + (weights * logdet).sum()
        return value, logdet, *torch.autograd.grad(loss, [x, *branch.parameters()])

    expected = found(True)
    torch.testing.assert_close(found(None), expected)
    torch.testing.assert_close(found(False), expected)


def in_place(linear):
    with torch.no_grad():
        linear.weight.mul_(1.01)


def through_data(linear):
    linear.weight.data.mul_(1.01)


def exchanged(linear):
    linear.weight.data = linear.weight.data * 1.01


def by_a_fused_optimizer(linear):
    torch.optim.Adam(linear.parameters(), 1e-2, fused=True).step()


@pytest.mark.parametrize("change", [in_place, through_data, exchanged, by_a_fused_optimizer])
@pytest.mark.parametrize("x", [torch.randn(2, 3), torch.zeros(2, 3)], ids=["generic", "zero"])
def test_weight_change_between_forward_and_backward_is_detected(change, x):
    linear = nn.Linear(3, 3, bias=False)
    RussianRoulette()(linear, 0.1 * torch.randn(2, 3), training=True)[1].sum().backward()
    _, logdet = RussianRoulette()(linear, x, training=True)
    change(linear)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|not what it was"):
        logdet.sum().backward()


def test_nonfinite_sample_does_not_hide_changes():
    linear = nn.Linear(3, 3, bias=False)
    x = torch.randn(2, 3)
    x[0] = torch.nan
    _, logdet = RussianRoulette()(linear, x, training=True)
    # The norm stays as it is.
    linear.weight.data = -linear.weight.data
    with pytest.raises(RuntimeError, match=r"not what it was"):
        logdet[1].backward()


def test_change_of_a_computed_weight_is_detected_even_if_the_output_is_equal():
    weight = 2 * torch.randn(3, 3, requires_grad=True)
    _, logdet = RussianRoulette()(lambda x: x @ weight, torch.zeros(2, 3), parameters=[weight], training=True)
    weight.data.mul_(1.01)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|not what it was"):
        logdet.sum().backward()


def test_swapped_and_restored_weights_are_not_a_change():
    linear = nn.Linear(3, 3)
    _, logdet = RussianRoulette()(linear, torch.randn(2, 3), training=True)
    stored = linear.weight.data
    linear.weight.data = torch.zeros(3, 3)
    linear.weight.data = stored
    logdet.sum().backward()
    assert linear.weight.grad is not None


def test_a_random_branch_is_refused():
    branch = nn.Sequential(nn.Linear(8, 8), nn.Dropout())
    _, logdet = RussianRoulette()(branch, torch.randn(2, 8), training=True)
    with pytest.raises(RuntimeError, match="dropout"):
        logdet.sum().backward()
    _, logdet = RussianRoulette(memory_saving=False)(branch, torch.randn(2, 8), training=True)
    logdet.sum().backward()


def test_nonfinite_values_are_not_a_change():
    linear = nn.Linear(3, 3)
    for value in (torch.nan, torch.inf):
        linear.weight.grad = None
        z, logdet = RussianRoulette()(linear, torch.full((2, 3), value), training=True)
        (z.sum() + logdet.sum()).backward()
        assert not linear.weight.grad.isfinite().any()


@pytest.mark.parametrize("block_of", ["attention", "convolution", "module"])
def test_maml_step_differentiates_the_weights_it_used(block_of):
    branches = {
        "convolution": lambda: ia.flows.LipschitzConvBranch(4, 6, (3, 3)),
        "module": lambda: nn.Sequential(nn.Conv2d(4, 4, 1)),
    }
    if block_of == "attention":
        block = ia.InvertibleAttention(4, "embedded_gaussian", context_channels=2)
    else:
        block = ia.flows.Residual(branches[block_of]())
    block = block.double()
    x = torch.randn(3, 4, 3, 3, dtype=torch.float64)
    given = {"context": torch.randn(3, 2, dtype=torch.float64)} if block_of == "attention" else {}
    block(x, **given)
    names, parameters = zip(*block.named_parameters(), strict=True)

    def outer_gradient(memory_saving):
        block.logdet = seeded(memory_saving=memory_saving)
        inner = block.forward_and_logdet(x, **given)[1].mean()
        steps = torch.autograd.grad(inner, parameters, allow_unused=True)
        fast = {
            name: p if step is None else p - 0.5 * step
            for name, p, step in zip(names, parameters, steps, strict=True)
        }
        _, logdet = torch.func.functional_call(
            Forward(block), {f"block.{k}": v for k, v in fast.items()}, (x, given)
        )
        return torch.autograd.grad(logdet.mean(), parameters, materialize_grads=True)

    torch.testing.assert_close(outer_gradient(True), outer_gradient(False))


class Forward(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, given):
        return self.block.forward_and_logdet(x, **given)


def test_second_derivative_is_refused_but_available_with_autograd(block):
    branch, sample = block
    x = sample.clone().requires_grad_()
    _, logdet = seeded()(branch, x, training=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(logdet.sum(), x, create_graph=True)
    torch.autograd.gradgradcheck(lambda x: seeded(gradient="autograd")(branch, x)[1], (x,))


@pytest.mark.parametrize(
    "estimator", [RussianRoulette, ia.PowerSeries, ia.Series], ids=lambda kind: kind.__name__
)
def test_second_derivative_of_a_kept_graph_is_refused(block, estimator):
    """That of the surrogate: its first derivative is right in the mean, its second is not."""
    branch, sample = block
    estimator = estimator(gradient="neumann", memory_saving=False)
    for wanted in (x := sample.clone().requires_grad_(), next(branch.parameters())):
        _, logdet = estimator(branch, x, lipschitz=0.9, training=True)
        (first,) = torch.autograd.grad(logdet.square().sum(), wanted, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated no further"):
            torch.autograd.grad(first.sum(), wanted)


def test_second_derivative_of_the_value_is_not_refused(block):
    branch, sample = block
    x = sample.clone().requires_grad_()

    def second_derivative(value):
        (first,) = torch.autograd.grad(value.sin().sum(), x, create_graph=True)
        return torch.autograd.grad(first.sum(), x)[0]

    value, _ = seeded(memory_saving=False)(branch, x, training=True)
    torch.testing.assert_close(second_derivative(value), second_derivative(branch(x)))


@pytest.mark.parametrize(
    ("outer", "inner"),
    [("jacrev", "jacrev"), ("jacfwd", "jacrev"), ("jacrev", "jacfwd"), ("jacfwd", "jacfwd")],
)
def test_second_derivative_is_refused_under_transforms(block, outer, inner):
    branch, sample = block
    options = {"jacfwd": {"randomness": "same"}, "jacrev": {}}

    def hessian(estimator, scale):
        def value(scale):
            torch.manual_seed(0)
            return estimator(lambda x: scale * branch(x), sample, training=True)[1].sum()

        first = getattr(torch.func, inner)(value, **options[inner])
        torch.testing.assert_close(first(scale), torch.func.grad(value)(scale))
        return getattr(torch.func, outer)(first, **options[outer])(scale)

    scale = torch.tensor(1.0, dtype=sample.dtype)
    with pytest.raises(RuntimeError, match="differentiated no further"):
        hessian(RussianRoulette(), scale)
    assert hessian(RussianRoulette(gradient="autograd"), scale).isfinite()


def test_functional_transforms_give_the_same_gradient(block):
    branch, sample = block
    parameters = dict(branch.named_parameters())

    def loss(parameters):
        torch.manual_seed(0)
        value, logdet = RussianRoulette()(
            lambda x: torch.func.functional_call(branch, parameters, (x,)), sample, training=True
        )
        return logdet.sum() + value.sin().sum()

    found = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    torch.testing.assert_close(tuple(found.values()), expected)


@pytest.mark.parametrize("constant", ["branch", "parameters"])
def test_inputs_without_requires_grad_get_no_gradient(constant):
    linear = nn.Linear(3, 3)
    x = torch.randn(2, 3, requires_grad=constant == "parameters")
    linear.requires_grad_(constant == "branch")
    value, logdet = RussianRoulette()(linear, 0.1 * x, training=True)
    (value.sum() + logdet.sum()).backward()
    assert (x.grad is not None) == (constant == "parameters")
    assert (linear.weight.grad is not None) == (constant == "branch")


def test_branch_that_ignores_its_input():
    bias = torch.ones(3, requires_grad=True)
    value, logdet = RussianRoulette()(lambda x: bias.expand_as(x), torch.zeros(2, 3), training=True)
    assert torch.equal(logdet, torch.zeros(2))
    (value.sum() + logdet.sum()).backward()
    torch.testing.assert_close(bias.grad, torch.full((3,), 2.0))


def test_captured_tensors_cover_every_leaf_once():
    a, b, c, unused = (torch.ones(2, requires_grad=True) for _ in range(4))
    product = a * b
    value = (product + c).sum()

    def captured(value, named, excluded=()):
        return {id(t) for t in captured_tensors(value, named, list(excluded))}

    assert captured(value, []) == {id(a), id(b), id(c)}
    assert captured(value, [product, a, unused]) == {id(product), id(c)}
    assert captured(value, [product], excluded=[c]) == {id(product)}
    assert captured((product + a).sum(), [product]) == {id(a), id(b)}
    assert captured(torch.ones(2), []) == set()


ESTIMATORS = {
    "roulette": RussianRoulette(exact_dimensions=0),
    "part of the batch": RussianRoulette(exact_dimensions=0, subsample=0.5),
    "series": ia.Series(1e-3),
    "power series": ia.PowerSeries(4, gradient="neumann"),
    "autograd": RussianRoulette(exact_dimensions=0, gradient="autograd"),
}


def attention(prior):
    position = {"position_prior": ia.TorusPrior(width=0.6, reference=3)} if prior else {}
    layer = ia.InvertibleAttention(4, "embedded_gaussian", **position).double()
    layer.branch.initialize(torch.randn(4, 4, 3, 3, dtype=torch.float64))
    return layer


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("size", [0.2, 2.0])
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("estimator", [*ESTIMATORS.values(), ia.Exact()], ids=[*ESTIMATORS, "exact"])
def test_forward_mode_of_attention_is_its_gradient(estimator, prior, size, gradients):
    """Also where tokens lie outside the ball, and under no_grad, which does not stop it."""
    layer = attention(prior)
    layer.logdet = estimator
    x, v = size * torch.randn(4, 4, 3, 3, dtype=torch.float64), torch.randn(4, 4, 3, 3, dtype=torch.float64)

    def logdet(x):
        torch.manual_seed(0)
        z, logdet = layer.train().forward_and_logdet(x)
        return logdet.sum() + z.sin().sum()

    with torch.set_grad_enabled(gradients):
        _, tangent = torch.func.jvp(logdet, (x,), (v,))
    torch.testing.assert_close(tangent, (torch.func.grad(logdet)(x) * v).sum(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dual", ["point", "weight"])
@pytest.mark.parametrize("estimator", [*ESTIMATORS.values(), ia.Exact()], ids=[*ESTIMATORS, "exact"])
def test_plain_forward_mode_is_refused(estimator, dual, gradients):
    branch = attention(False).branch
    given = {"point": torch.randn(4, 4, 3, 3, dtype=torch.float64), "weight": branch.out_weight.detach()}
    with torch.autograd.forward_ad.dual_level(), torch.set_grad_enabled(gradients):
        given[dual] = torch.autograd.forward_ad.make_dual(given[dual], torch.ones_like(given[dual]))

        def value(x):
            return torch.func.functional_call(branch, {"out_weight": given["weight"]}, (x,))

        with pytest.raises(NotImplementedError, match=r"torch\.func\.jvp"):
            estimator(value, given["point"], lipschitz=0.9)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("training", [False, True])
def test_nothing_that_needs_a_gradient_gives_nothing_that_does(estimator, training):
    layer = attention(False).requires_grad_(False).train(training)
    layer.logdet = estimator
    z, logdet = layer.forward_and_logdet(torch.randn(4, 4, 3, 3, dtype=torch.float64))
    assert not z.requires_grad
    assert not logdet.requires_grad
    layer.branch.value_weight.requires_grad_()
    z, logdet = layer.forward_and_logdet(torch.randn(4, 4, 3, 3, dtype=torch.float64))
    assert z.requires_grad
    assert logdet.requires_grad


def test_derivative_by_what_a_gradient_is_multiplied_with():
    layer = attention(False)
    x = torch.randn(4, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.ones(4, dtype=torch.float64, requires_grad=True)
    _, logdet = layer.train().forward_and_logdet(x)
    (gradient,) = torch.autograd.grad((weights * logdet).sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(gradient.sum(), weights)
    torch.testing.assert_close(found, gradient.flatten(1).sum(1))


@pytest.mark.parametrize("subsample", [1, 0.25])
def test_first_batch_sets_a_branch_before_its_linear_part_is_asked_for(subsample):
    branch = ia.InvertibleAttention(4, "embedded_gaussian").double().branch
    x = 3 * torch.randn(8, 4, 3, 3, dtype=torch.float64)
    first, second = (seeded(subsample=subsample)(branch, x, training=True)[1] for _ in range(2))
    assert torch.equal(first, second)
    assert branch.radius >= torch.linalg.vector_norm(x, dim=1).amax()
