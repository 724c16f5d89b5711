"""User modules: after any change to their layers, the bound holds or is infinite."""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import invertible_attention as ia
from invertible_attention.lipschitz import constrain, constrain_by_estimate, lipschitz_upper_bound

WIDTH = 4


class Skip(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Amplified(nn.Linear):
    def forward(self, x):
        return 5 * super().forward(x)


class LoRALinear(nn.Linear):
    """A low-rank adapter as common libraries write it."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, bias=False)
        self.A, self.B = nn.Parameter(torch.ones(1, n_in)), nn.Parameter(torch.ones(n_out, 1))

    def forward(self, x):
        return super().forward(x) + x @ self.A.T @ self.B.T


class Times(nn.Module):
    """An unknown parametrization."""

    def forward(self, weight):
        return (3 + torch.rand(())) * weight


class Trebled(torch.Tensor):
    """A kind of tensor whose products are larger than its entries say."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        plain = [arg.as_subclass(torch.Tensor) if isinstance(arg, cls) else arg for arg in args]
        output = func(*plain, **(kwargs or {}))
        return 3 * output if func is nn.functional.linear else output


def trebled(layer: nn.Linear) -> None:
    weight = layer.weight.detach().as_subclass(Trebled)
    del layer._parameters["weight"]
    layer.weight = weight


def stepped(layer: nn.Linear) -> None:
    """Weight normalization as a hook: the attribute ``weight`` is behind the parameters until the next call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(layer)
    with torch.no_grad():
        layer.weight_g.mul_(7.0)


def old_spectral_norm(layer: nn.Linear) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.spectral_norm(layer)


def doubled_parametrization(layer: nn.Linear) -> None:
    constrain(layer, 0.5)
    parametrize.register_parametrization(layer, "weight", Times())


def weight_norm_after_a_step(layer: nn.Linear) -> None:
    parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(7.0)


def hooked_parametrization(layer: nn.Linear) -> None:
    constrain(layer, 0.5)
    layer.parametrizations.weight[0].register_forward_hook(lambda m, x, y: 9 * y)


def its_own(name: str, function):
    def change(layer: nn.Module) -> None:
        original = getattr(layer, name)
        setattr(layer, name, lambda *args: function(original(*args)))

    return change


CHANGES = {
    "nothing": lambda layer: None,
    "forward hook": lambda layer: layer.register_forward_hook(lambda m, x, y: 6 * y),
    "forward hook with keywords": lambda layer: layer.register_forward_hook(
        lambda m, x, k, y: 6 * y, with_kwargs=True
    ),
    "forward hook always": lambda layer: layer.register_forward_hook(lambda m, x, y: 6 * y, always_call=True),
    "forward pre-hook": lambda layer: layer.register_forward_pre_hook(lambda m, x: (6 * x[0],)),
    "forward pre-hook with keywords": lambda layer: layer.register_forward_pre_hook(
        lambda m, x, k: ((6 * x[0],), k), with_kwargs=True
    ),
    "backward hook": lambda layer: layer.register_full_backward_hook(lambda m, g, h: (6 * g[0],)),
    "backward pre-hook": lambda layer: layer.register_full_backward_pre_hook(lambda m, h: (6 * h[0],)),
    "forward in the instance": its_own("forward", lambda y: 6 * y),
    "call in the instance": its_own("_call_impl", lambda y: 6 * y),
    "compiled call": lambda layer: setattr(layer, "_compiled_call_impl", lambda x: 6 * layer.forward(x)),
}
LINEAR_CHANGES = {
    "weight norm by hook": stepped,
    "spectral norm by hook": old_spectral_norm,
    "weight norm": weight_norm_after_a_step,
    "orthogonal": parametrizations.orthogonal,
    "spectral norm": parametrizations.spectral_norm,
    "unknown parametrization": lambda layer: parametrize.register_parametrization(layer, "weight", Times()),
    "unknown parametrization of the bias": lambda layer: parametrize.register_parametrization(
        layer, "bias", Times()
    ),
    "constrained": lambda layer: constrain(layer, 0.5),
    "constrained by estimate": lambda layer: constrain_by_estimate(layer, 0.5),
    "constrained and more": doubled_parametrization,
    "hook of a parametrization": hooked_parametrization,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruning made permanent": lambda layer: (
        prune.l1_unstructured(layer, "weight", 0.5),
        prune.remove(layer, "weight"),
    ),
    "quantized by its tensor": trebled,
    "half as a matrix": lambda layer: layer.weight.data.mul_(0.5),
}
# Which changes make the bound infinite; the property below would hold trivially if all did.
KNOWN = {"nothing", "constrained", "weight norm", "orthogonal", "pruning made permanent", "half as a matrix"}

ACTIVATIONS = st.sampled_from(
    [
        *(nn.Tanh, nn.ReLU, nn.SELU, nn.GELU, nn.Softplus, nn.Hardswish, nn.Identity, nn.Softsign, nn.Mish),
        *(lambda: nn.LeakyReLU(3.0), lambda: nn.LeakyReLU(-2.0), lambda: nn.ELU(2.5), lambda: nn.CELU(-0.5)),
        *(lambda: nn.PReLU(WIDTH, 2.0), lambda: nn.Hardtanh(-3, 0.1), lambda: nn.ReLU(inplace=True)),
        *(lambda: nn.Softmax(1), lambda: nn.Softplus(4.0, 1.0), lambda: nn.Dropout(0.9)),
        *(lambda: nn.BatchNorm1d(WIDTH), lambda: nn.LayerNorm(WIDTH), lambda: nn.ELU(float("nan"))),
    ]
)
MODES = st.sampled_from(["zeros", "circular", "reflect", "replicate"])


@st.composite
def convolutions(draw) -> nn.Module:
    mode = draw(MODES)
    layer = nn.Conv1d(
        *(2, 2, 3),
        padding=draw(st.sampled_from([1, "same"])),
        padding_mode=mode,
        groups=draw(st.integers(1, 2)),
    )
    if draw(st.booleans()):
        layer.padding, layer.padding_mode = (1,), draw(MODES)
    return nn.Sequential(nn.Unflatten(1, (2, WIDTH // 2)), changed(draw, layer), nn.Flatten())


def changed(draw, layer: nn.Module, more: dict | None = None) -> nn.Module:
    changes = CHANGES | (more or {})
    # Half of the layers stay unchanged, or hardly any composition would have a finite bound.
    name = draw(st.sampled_from(sorted(changes))) if draw(st.booleans()) else "nothing"
    changes[name](layer)
    return layer


@st.composite
def linears(draw) -> nn.Module:
    kind = draw(st.sampled_from([nn.Linear, nn.Linear, nn.Linear, Amplified, LoRALinear]))
    more = {} if kind is LoRALinear else LINEAR_CHANGES
    return changed(draw, kind(WIDTH, WIDTH), more)


@st.composite
def activations(draw) -> nn.Module:
    return changed(draw, draw(ACTIVATIONS)())


@st.composite
def compositions(draw, depth: int = 2) -> nn.Module:
    layers = st.one_of(linears(), activations(), convolutions())
    if depth:
        layers = st.one_of(layers, compositions(depth - 1))
    kind = draw(st.sampled_from([nn.Sequential, nn.Sequential, nn.Sequential, Skip]))
    return changed(draw, kind(*draw(st.lists(layers, min_size=1, max_size=4))))


@contextmanager
def everywhere(change: str):
    """Change what all modules compute."""
    original, call = nn.Linear.forward, nn.Module.__call__
    tanh = nn.Tanh.forward
    module = torch.nn.modules.module
    patches = {
        "linear": lambda: mock.patch.object(nn.Linear, "forward", lambda s, x: 6 * original(s, x)),
        "tanh": lambda: mock.patch.object(nn.Tanh, "forward", lambda s, x: 6 * tanh(s, x)),
        "call": lambda: mock.patch.object(nn.Module, "__call__", lambda s, x: 2 * call(s, x)),
        "call of linear": lambda: mock.patch.object(
            nn.Linear, "__call__", lambda s, x: 2 * call(s, x), create=True
        ),
    }
    hooks = {
        "hook": lambda: module.register_module_forward_hook(lambda m, x, y: 2 * y),
        "pre-hook": lambda: module.register_module_forward_pre_hook(lambda m, x: (2 * x[0],)),
    }
    if change in hooks:
        handle = hooks[change]()
        try:
            yield
        finally:
            handle.remove()
    elif change in patches:
        with patches[change]():
            yield
    else:
        yield


def steepest(module: nn.Module, seed: int) -> float:
    """Return the largest singular value of the Jacobian found by climbing from a few points."""

    def norms(x: torch.Tensor) -> torch.Tensor:
        # Row by row, since samples may interact.
        points = [torch.autograd.functional.jacobian(lambda p: call(p[None])[0], row) for row in x]
        return torch.linalg.matrix_norm(torch.stack(points), 2)

    def call(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(seed)
        # A copy, as layers may change their input in place.
        return module(x.clone())

    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(6, WIDTH, dtype=torch.float64, generator=generator)
    best, found = x, norms(x)
    for scale in (1.0, 0.3, 0.1):
        moved = best + scale * torch.randn(x.shape, dtype=torch.float64, generator=generator)
        new = norms(moved)
        best = torch.where((new > found)[:, None], moved, best)
        found = torch.maximum(found, new)
    return float(found.nan_to_num(nan=0.0).max())


@given(
    compositions(),
    st.sampled_from(["nothing"] * 6 + ["linear", "tanh", "call", "call of linear", "hook", "pre-hook"]),
    st.booleans(),
    st.integers(0, 2**16),
)
@settings(max_examples=250, deadline=None)
def test_the_bound_is_infinite_or_not_below_the_jacobian(module, change, training, seed):
    module = module.double().train(training)
    with everywhere(change):
        bound = lipschitz_upper_bound(module)
        if bound < torch.inf:
            assert steepest(module, seed) <= bound * (1 + 1e-9)
    again = lipschitz_upper_bound(module)
    assert again == bound or change != "nothing"


@given(st.data(), st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_compositions_of_known_layers_have_a_finite_bound(data, seed):
    torch.manual_seed(seed)
    layers = [
        nn.Linear(WIDTH, WIDTH),
        nn.Tanh(),
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True)),
    ]
    for layer in (layers[0], layers[2][0]):
        (CHANGES | LINEAR_CHANGES)[data.draw(st.sampled_from(sorted(KNOWN)))](layer)
    module = nn.Sequential(*layers).double()
    assert steepest(module, seed) <= lipschitz_upper_bound(module) * (1 + 1e-9) < torch.inf


@pytest.mark.parametrize("name", sorted((CHANGES | LINEAR_CHANGES).keys() - KNOWN))
def test_changes_to_a_module_are_detected(name):
    """The block is built before the change: certificates are checked when they are used."""
    layer = nn.Linear(WIDTH, WIDTH)
    block = ia.flows.Residual(nn.Sequential(layer, nn.Tanh()))
    assert block.lipschitz_bound() < torch.inf
    (CHANGES | LINEAR_CHANGES)[name](layer)
    assert block.lipschitz_bound() == torch.inf


@pytest.mark.parametrize("kind", [parametrizations.spectral_norm, lambda m: constrain_by_estimate(m, 0.5)])
def test_power_iterations_are_known_in_evaluation_mode_only(kind):
    layer = nn.Linear(WIDTH, WIDTH)
    kind(layer)
    assert lipschitz_upper_bound(layer) == torch.inf
    layer.eval()
    assert lipschitz_upper_bound(layer) >= torch.linalg.matrix_norm(layer.weight, 2)
    assert lipschitz_upper_bound(layer) < torch.inf


@pytest.mark.parametrize(
    "module",
    [
        nn.ConvTranspose1d(2, 2, 3),
        nn.MaxPool1d(3, 1),
        nn.AvgPool1d(3, 1),
        nn.Embedding(3, 3),
        nn.BatchNorm1d(3).eval(),
        nn.LayerNorm(3),
        nn.Upsample(scale_factor=2),
        nn.LazyLinear(3),
        nn.Bilinear(2, 2, 2),
        nn.Flatten(0),
        nn.Flatten(-2),
        nn.Unflatten(0, (2, 2)),
        nn.Linear(3, 3, dtype=torch.complex64),
        nn.CELU(-1.0),
        nn.ELU(float("nan")),
        nn.LeakyReLU(float("inf")),
        nn.Softplus(beta=0.0),
        Skip(nn.Tanh()),
    ],
    ids=str,
)
def test_unknown_modules_have_an_infinite_bound(module):
    assert lipschitz_upper_bound(module) == torch.inf
    with pytest.raises(ValueError, match="."):
        lipschitz_upper_bound(module, strict=True)


def test_wrapped_modules_have_an_infinite_bound():
    inner = ia.flows.LipschitzLinearBranch(WIDTH)
    for module in (
        nn.DataParallel(nn.Linear(WIDTH, WIDTH)),
        nn.DataParallel(inner),
        torch.compile(nn.Linear(WIDTH, WIDTH), backend=lambda graph, inputs: graph.forward),
        torch.compile(inner, backend="eager"),
    ):
        assert lipschitz_upper_bound(module) == torch.inf


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_in_place_compilation_keeps_the_bound():
    layer = nn.Linear(WIDTH, WIDTH)
    layer.compile(backend="eager")
    assert lipschitz_upper_bound(layer) < torch.inf


def test_adapter_has_no_certificate():
    inner, out = LoRALinear(1, 1), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        inner.weight.fill_(0.2)
        inner.B.fill_(4.8)
        out.weight.fill_(-0.9)
    block = ia.flows.Residual(
        nn.Sequential(inner, nn.Tanh(), out)
    ).double()  # x − 0.9 tanh(5x): not injective
    assert block.lipschitz_bound() == torch.inf
    solution = block.solve_inverse(block(torch.tensor([[0.05]], dtype=torch.float64)).detach())
    assert (solution.error_bound == torch.inf).all()


def test_sequential_with_a_skip_has_no_certificate():
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 0.9)
    branch = Skip(layer, nn.Tanh())
    assert ia.flows.Residual(branch).lipschitz_bound() == torch.inf


def test_weight_norm_after_an_optimizer_step_has_no_certificate():
    layer = nn.Linear(1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(layer)
    block = ia.flows.Residual(layer)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    block(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert block.lipschitz_bound() == torch.inf


def test_scaling_hook_invalidates_the_certificate_of_the_inverse():
    block = ia.flows.Residual(nn.Linear(3, 3)).double()
    with torch.no_grad():
        block.branch.weight.copy_(0.2 * torch.eye(3))
    block.branch.register_forward_hook(lambda m, x, y: 2 * y)
    x = torch.randn(4, 3, dtype=torch.float64)
    solution = block.solve_inverse(block(x).detach())
    assert (solution.error_bound == torch.inf).all()
    torch.testing.assert_close(solution.value, x)


BLOCKS = {
    "attention": lambda: ia.InvertibleAttention(2, constraint=ia.Certified(0.5, radius=2.0)),
    "convolution": lambda: ia.flows.Residual(ia.flows.LipschitzConvBranch(2, 4, (4, 4), coefficient=0.7)),
    "linear": lambda: ia.flows.Residual(ia.flows.LipschitzLinearBranch(32, 8, coefficient=0.7)),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("change", ["forward hook", "forward pre-hook", "forward in the instance"])
def test_changes_to_library_branches_invalidate_the_certificate_of_the_inverse(name, change):
    block = BLOCKS[name]().double().eval()
    assert block.lipschitz_bound() < 1
    scale = 1.2
    {
        "forward hook": lambda b: b.register_forward_hook(lambda m, x, y: scale * y),
        "forward pre-hook": lambda b: b.register_forward_pre_hook(lambda m, x: (scale * x[0], *x[1:])),
        "forward in the instance": its_own("forward", lambda y: scale * y),
    }[change](block.branch)
    assert block.lipschitz_bound() == block.branch.lipschitz_bound() == torch.inf
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    solution = block.solve_inverse(block(x).detach())
    assert (solution.error_bound == torch.inf).all()
    torch.testing.assert_close(solution.value, x)


@pytest.mark.parametrize("name", BLOCKS)
def test_hooks_on_parts_or_block_invalidate_the_certificate(name):
    block = BLOCKS[name]()
    for part in block.modules():
        handle = part.register_forward_hook(lambda m, x, y: 9 * y)
        assert block.lipschitz_bound() == torch.inf
        handle.remove()
        assert block.lipschitz_bound() < 1
    assert lipschitz_upper_bound(block) < 2
    assert copy.deepcopy(block).lipschitz_bound() == block.lipschitz_bound()


@pytest.mark.parametrize("name", BLOCKS)
def test_overriding_subclasses_have_no_certificate(name):
    block = BLOCKS[name]()
    kind = type(block.branch)

    class Louder(kind):
        def forward(self, *args):
            return 9 * super().forward(*args)

    class Renamed(kind):
        """Overrides nothing."""

    class Answerable(Louder):
        def lipschitz_bound(self):
            return torch.tensor(8.1)

    for other, bound in ((Louder, torch.inf), (Renamed, block.lipschitz_bound()), (Answerable, 8.1)):
        block.branch.__class__ = other
        assert block.lipschitz_bound().item() == pytest.approx(float(torch.as_tensor(bound).detach()))


def test_overriding_blocks_have_no_certificate():
    class Twice(ia.flows.Residual):
        def forward(self, x, *, context=None, mask=None):
            return x + 2 * self.branch(x)

    assert Twice(ia.flows.LipschitzLinearBranch(3)).lipschitz_bound() == torch.inf


@pytest.mark.parametrize("kind", [ia.flows.LipschitzLinearBranch, ia.flows.LipschitzConvBranch])
def test_replaced_methods_invalidate_the_certificate(kind):
    branch = kind(3) if kind is ia.flows.LipschitzLinearBranch else kind(3, 4, (2, 2))
    with mock.patch.object(kind, "forward", lambda s, x: 9 * x):
        assert branch.lipschitz_bound() == torch.inf
    assert branch.lipschitz_bound() < 1


def test_custom_responses_have_no_certificate():
    from invertible_attention.attention.responses import EmbeddedGaussian

    class Sharp(EmbeddedGaussian):
        def forward(self, tokens, sources):
            query, key = super().forward(tokens, sources)
            return 100 * query, key

    layer = ia.InvertibleAttention(4, Sharp, constraint=ia.Certified(0.9, radius=1.0))
    assert layer.lipschitz_bound() == torch.inf
    layer = ia.InvertibleAttention(4, EmbeddedGaussian, constraint=ia.Certified(0.9, radius=1.0))
    assert layer.lipschitz_bound() < 1


def test_replaced_layers_of_a_branch_have_their_own_bound():
    branch = ia.flows.LipschitzLinearBranch(3, 4, depth=2, activation="elu").double()
    branch.layers[0] = nn.Linear(3, 4).double()
    branch.activations[0] = nn.LeakyReLU(4.0)
    with torch.no_grad():
        branch.layers[0].weight.mul_(9)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: branch(x[None])[0], torch.full((3,), -9.0).double()
    )
    assert 1 < torch.linalg.matrix_norm(jacobian, 2) <= branch.lipschitz_bound() < torch.inf
    parametrize.remove_parametrizations(branch.layers[1], "weight")
    with torch.no_grad():
        branch.layers[1].weight.mul_(1e3)
    assert branch.lipschitz_bound() > 100
    parametrize.register_parametrization(branch.layers[1], "weight", Times())
    assert branch.lipschitz_bound() == torch.inf


def test_branch_modifying_its_input_in_place_has_no_certificate():
    for first in (nn.ReLU(inplace=True), nn.Sequential(nn.Identity(), nn.ELU(inplace=True))):
        assert lipschitz_upper_bound(nn.Sequential(first, nn.Linear(3, 3))) == torch.inf
    assert lipschitz_upper_bound(nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))) < torch.inf
    assert lipschitz_upper_bound(nn.Sequential(nn.Flatten(), nn.SELU(inplace=True))) == torch.inf
