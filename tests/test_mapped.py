"""Inverses, log-determinants and densities under ``torch.func.vmap``, ``jacrev`` and in ensembles."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.func import functional_call, grad, jacfwd, jacrev, stack_module_state, vmap

import invertible_attention as ia

F = ia.flows


def attention(**arguments):
    return ia.InvertibleAttention(4, logdet=ia.Exact(), **arguments), torch.randn(3, 4, 5)


def convolution():
    return F.Residual(F.LipschitzConvBranch(2, 4, (3, 3)), logdet=ia.Exact()), torch.randn(3, 2, 3, 3)


def chain():
    parts = [F.ActNorm(4), ia.InvertibleAttention(4, "dot_product", logdet=ia.Exact())]
    return F.Sequential(*parts, ia.interop.Inverse(attention()[0])), torch.randn(3, 4, 5)


def fully_connected():
    return F.Residual(F.LipschitzLinearBranch(6, 4), logdet=ia.Exact()), torch.randn(3, 6)


CASES = [attention, convolution, chain, fully_connected]


@pytest.fixture(params=CASES, ids=lambda make: make.__name__)
def case(request):
    """A bijection, and latents of it with an axis in front of the batch: (2, 3, ...)."""
    bijection, x = request.param()
    bijection, x = bijection.double(), x.double()
    bijection(x)
    return bijection, torch.stack([bijection(x), bijection(2 * x)]).detach()


def test_mapped_inverse_matches_each_batch(case):
    bijection, z = case
    expected = torch.stack([bijection.inverse(batch) for batch in z])
    torch.testing.assert_close(vmap(bijection.inverse)(z), expected)
    torch.testing.assert_close(vmap(bijection.inverse, in_dims=1)(z.transpose(0, 1)), expected)
    one = vmap(vmap(lambda sample: bijection.inverse(sample[None])[0]))
    torch.testing.assert_close(one(z), expected)
    x, logdet = vmap(bijection.inverse_and_logdet)(z)
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(logdet, torch.stack([bijection.inverse_and_logdet(batch)[1] for batch in z]))


def test_the_jacobian_of_the_inverse(case):
    bijection, z = case
    z = z[0, :1]
    jacobian = jacrev(bijection.inverse)(z).reshape(z.numel(), z.numel())
    expected = torch.autograd.functional.jacobian(bijection.inverse, z).reshape(z.numel(), z.numel())
    torch.testing.assert_close(jacobian, expected)
    logdet = bijection.inverse_and_logdet(z)[1]
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, logdet[0], atol=1e-8, rtol=0)


def test_gradients_per_sample(case):
    bijection, z = case
    per_sample = vmap(grad(lambda sample: bijection.inverse(sample[None]).square().sum()))(z[0])
    leaf = z[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(bijection.inverse(leaf).square().sum(), leaf)
    torch.testing.assert_close(per_sample, expected)


def test_gradients_per_sample_of_the_weights(case):
    bijection, z = case
    weights = {name: weight.detach() for name, weight in bijection.named_parameters()}

    class Backwards(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bijection = bijection

        def forward(self, z):
            return self.bijection.inverse(z)

    def loss(weights, sample):
        named = {f"bijection.{name}": weight for name, weight in weights.items()}
        return functional_call(Backwards(), named, (sample[None],)).square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))(weights, z[0])
    bijection.inverse(z[0]).square().sum().backward()
    for name, weight in bijection.named_parameters():
        torch.testing.assert_close(per_sample[name].sum(0), weight.grad)


class Call(torch.nn.Module):
    """Exposes a method as the module's call."""

    def __init__(self, module, method):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args):
        return getattr(self.module, self.method)(*args)


def ensemble(bijection, method):
    """Return members, their stacked state, and a function of the state."""
    members = [Call(copy.deepcopy(bijection), method) for _ in range(3)]
    with torch.no_grad():
        for weight in torch.nn.ModuleList(members).parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    base = copy.deepcopy(members[0]).to("meta")
    return members, stack_module_state(members), lambda state, x: functional_call(base, state, (x,))


@pytest.mark.parametrize("method", ["inverse", "inverse_and_logdet", "forward_and_logdet"])
def test_ensemble_of_layers(case, method):
    bijection, z = case
    members, state, function = ensemble(bijection, method)
    found = vmap(function, in_dims=(0, None))(state, z[0])
    for i, member in enumerate(members):
        own = found[i] if method == "inverse" else tuple(part[i] for part in found)
        torch.testing.assert_close(own, member(z[0]))
    batches = torch.stack([z[0], z[1], z[0]])
    found = vmap(vmap(function, in_dims=(None, 0)))(state, batches[:, :, None])
    expected = [
        torch.cat([member(sample[None])[0] for sample in batch])
        for member, batch in zip(members, batches, strict=True)
    ]
    if method == "inverse":
        torch.testing.assert_close(
            found[:, :, 0], torch.stack([m(b) for m, b in zip(members, batches, strict=True)])
        )
    else:
        torch.testing.assert_close(found[0].flatten(1, 2), torch.stack(expected))


def test_ensemble_of_densities():
    layer, x = attention()
    flow = F.Flow(F.Sequential(F.ActNorm(4), layer, F.Flatten((4, 5))), F.DiagonalGaussian(20)).double()
    flow.initialize(x.double())
    members, state, function = ensemble(flow, "log_prob")
    found = vmap(function, in_dims=(0, None))(state, x.double())
    torch.testing.assert_close(found, torch.stack([member(x.double()) for member in members]))


def test_an_ensemble_of_estimates_has_its_mean():
    torch.manual_seed(0)
    layer = ia.InvertibleAttention(2, "embedded_gaussian", logdet=ia.RussianRoulette()).double()
    x = torch.randn(1, 2, 3, dtype=torch.float64)
    layer(x)
    members, state, function = ensemble(layer, "forward_and_logdet")
    many = x.expand(4000, 2, 3)
    found = vmap(function, in_dims=(0, None), randomness="different")(state, many)[1]
    for member, estimates in zip(members, found, strict=True):
        member.module.logdet = ia.Exact()
        error = estimates.std() / len(many) ** 0.5
        assert (estimates.mean() - member(x)[1]).abs() < 5 * error


@pytest.mark.parametrize(
    "solver", [ia.FixedPoint(), ia.NewtonKrylov(), ia.Anderson()], ids=lambda s: type(s).__name__
)
def test_every_solver_maps_over_contexts_and_masks(solver):
    layer = ia.InvertibleAttention(4, context_channels=3, solver=solver).double()
    x, context = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 3).double()
    mask = torch.arange(5) < torch.tensor([[[5], [2], [3]], [[1], [4], [5]]])
    layer(x[0], context=context[0])

    def there_and_back(x, context, mask):
        return layer.inverse(layer(x, context=context, mask=mask), context=context, mask=mask)

    torch.testing.assert_close(vmap(there_and_back)(x, context, mask), x)
    torch.testing.assert_close(vmap(there_and_back, in_dims=(0, None, None))(x, context[0], mask[0]), x)


def test_a_mapped_solution_has_the_status_of_each_sample():
    layer, x = attention()
    z = torch.stack([layer(x), 3 * layer(x)]).detach()
    fields = ("value", "converged", "iterations", "evaluations", "residual", "error_bound")
    found = vmap(lambda z: tuple(getattr(layer.solve_inverse(z), name) for name in fields))(z)
    for name, value in zip(fields, found, strict=True):
        expected = torch.stack([getattr(layer.solve_inverse(batch), name) for batch in z])
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-3)


def test_failed_inverse_under_vmap_names_its_samples():
    layer, x = attention(solver=ia.FixedPoint(max_evaluations=1))
    z = torch.stack([layer(x), layer(2 * x)]).detach()
    with pytest.raises(ia.ConvergenceError, match="6 of 6 samples") as error:
        vmap(layer.inverse)(z)
    assert error.value.solution.value.shape == (6, 4, 5)
    with pytest.warns(RuntimeWarning, match="6 of 6 samples"):
        assert vmap(lambda z: layer.inverse(z, strict=False))(z).shape == z.shape


def test_solver_with_a_custom_branch_under_vmap():
    z = torch.randn(2, 3, 4, dtype=torch.float64)
    x = vmap(lambda z: ia.Anderson().solve(lambda x: x.sin() / 2, z).value)(z)
    torch.testing.assert_close(x + x.sin() / 2, z)
    weight = torch.tensor([0.3, 0.5], dtype=torch.float64)
    with pytest.raises(RuntimeError, match="one by one"):
        vmap(lambda w, z: ia.Anderson().solve(lambda x: w * x.sin(), z).value)(weight, z)


def test_unsupported_transforms_are_refused_with_a_remedy():
    layer, x = attention()
    z = layer(x).detach()
    with pytest.raises(RuntimeError, match="use reverse mode"):
        jacfwd(layer.inverse)(z)
    with pytest.raises(RuntimeError, match=r"torch\.func\.jacrev"):
        torch.autograd.functional.jacobian(layer.inverse, z, vectorize=True)
    _, (weights, buffers), function = ensemble(layer, "inverse")
    with pytest.raises(RuntimeError, match="one by one"):
        vmap(grad(lambda weights, buffers: function((weights, buffers), z).sum()))(weights, buffers)
    ordered = ia.InvertibleAttention(4, "embedded_gaussian", constraint=ia.Triangular())
    with pytest.raises(RuntimeError, match=r"torch\.no_grad"):
        vmap(ordered.inverse)(z[:, None])
    with torch.no_grad():
        torch.testing.assert_close(vmap(ordered.inverse)(z[:, None])[:, 0], ordered.inverse(z))
