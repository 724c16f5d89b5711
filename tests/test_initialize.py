"""Data-dependent initialization: once, and only where intended, however a state was loaded."""

from __future__ import annotations

import copy
import io
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import invertible_attention as ia
from invertible_attention.flows import ActNorm, DiagonalGaussian, Flatten, Flow, InvertibleResNet, Sequential

WORKER = Path(__file__).with_name("ddp_initialize_worker.py")


def make_flow() -> Flow:
    layers = [ia.InvertibleAttention(4, name, logdet=ia.Exact()) for name in ("concatenation", "dot_product")]
    parts = [ActNorm(4), layers[0], ActNorm(4), layers[1], Flatten((4, 3))]
    return Flow(Sequential(*parts), DiagonalGaussian(12)).double()


def batch(scale: float, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * (2 + torch.randn(8, 4, 3, dtype=torch.float64, generator=generator))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def used_flow() -> Flow:
    flow = make_flow()
    flow(batch(100.0, seed=3))
    return flow


# Ways to move a state from one flow to another, which is returned or replaced.


def load(source: Flow, target: Flow, **arguments: bool) -> Flow:
    target.load_state_dict(state_of(source), **arguments)
    return target


def copy_in_place(source: Flow, target: Flow, part: Callable[[Tensor], Tensor] = torch.Tensor.detach) -> Flow:
    for old, new in zip(
        target.state_dict(keep_vars=True).values(), source.state_dict().values(), strict=True
    ):
        part(old).copy_(new)
    return target


def point_data(source: Flow, target: Flow) -> Flow:
    for old, new in zip(target.state_dict(keep_vars=True).values(), state_of(source).values(), strict=True):
        old.data = new
    return target


def pickled(source: Flow, target: Flow) -> Flow:
    file = io.BytesIO()
    torch.save(source, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def safetensors(source: Flow, target: Flow) -> Flow:
    target.load_state_dict(load_bytes(save_bytes(state_of(source))))
    return target


def from_meta(source: Flow, target: Flow, *, assign: bool) -> Flow:
    target = target.to("meta")
    if not assign:
        target.to_empty(device="cpu")
    target.load_state_dict(state_of(source), assign=assign)
    return target


def average(source: Flow, target: Flow, **arguments: Any) -> Flow:
    mean = AveragedModel(target, **arguments)
    for _ in range(3):
        mean.update_parameters(source)
    return mean.module


def by_another_process(source: Flow, target: Flow) -> Flow:
    target.share_memory()
    process = multiprocessing.get_context("fork").Process(target=load, args=(source, target))
    process.start()
    process.join()
    assert process.exitcode == 0
    return target


MOVES: dict[str, Callable[[Flow, Flow], Flow]] = {
    "load_state_dict": load,
    "load_state_dict, assign": partial(load, assign=True),
    "copy in place": copy_in_place,
    "copy into .data": partial(copy_in_place, part=lambda tensor: tensor.data),
    "assign to .data": point_data,
    "deepcopy": lambda source, target: copy.deepcopy(source),
    "pickle": pickled,
    "safetensors": safetensors,
    "meta, to_empty": partial(from_meta, assign=False),
    "meta, assign": partial(from_meta, assign=True),
    "average": average,
    "average with buffers": partial(average, use_buffers=True),
    "exponential average": partial(average, avg_fn=get_ema_avg_fn(0.9)),
    "exponential average with buffers": partial(
        average, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9)
    ),
    "memory shared with another process": by_another_process,
}
FEW = st.lists(st.sampled_from(sorted(MOVES)), min_size=1, max_size=3)


def move(source: Flow, ways: list[str], target: Callable[[], Flow]) -> Flow:
    for way in ways:
        source = MOVES[way](source, target())
    return source


def itself(flow: Flow) -> tuple[Callable[[Tensor], Tensor], dict[str, Tensor]]:
    return flow, flow.state_dict()


def called(flow: Flow) -> tuple[Callable[[Tensor], Tensor], dict[str, Tensor]]:
    fresh, state = make_flow().train(flow.training), state_of(flow)
    return lambda x: functional_call(fresh, state, (x,)), state


def stacked(flow: Flow) -> tuple[Callable[[Tensor], Tensor], dict[str, Tensor]]:
    fresh, states = make_flow().train(flow.training), {}
    for part in stack_module_state([flow, flow]):
        states |= {name: value.detach() for name, value in part.items()}
    run = vmap(lambda state, x: functional_call(fresh, state, (x,)), in_dims=(0, None))
    return lambda x: run(states, x)[1], {name: value[1] for name, value in states.items()}


@given(
    ways=FEW,
    target=st.sampled_from([make_flow, used_flow]),
    call=st.sampled_from([itself, called, stacked]),
    training=st.booleans(),
    scale=st.sampled_from([1e-2, 1.0, 30.0]),
)
@settings(max_examples=40, deadline=None)
def test_equal_states_give_equal_results_and_are_not_rewritten(ways, target, call, training, scale):
    source, x = make_flow(), batch(0.1, seed=2)
    source(batch(scale))
    expected, state = source(x), state_of(source)
    run, moved = call(move(source, ways, target).train(training))
    for _ in range(2):
        torch.testing.assert_close(run(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dict(moved), state, rtol=1e-12, atol=1e-12)


@given(ways=FEW, target=st.sampled_from([make_flow, used_flow]))
@settings(max_examples=20, deadline=None)
def test_uninitialized_state_stays_uninitialized_however_loaded(ways, target):
    fresh = make_flow()
    before = state_of(fresh)
    moved = move(fresh, ways, target)
    for call in (itself, called, stacked):
        run, state = call(moved.eval())
        with pytest.raises(
            RuntimeError, match="ActNorm is not initialized: log_scale and shift are set from"
        ):
            run(batch(1.0))
        torch.testing.assert_close(dict(state), before, rtol=0, atol=0)
    torch.testing.assert_close(moved.train()(batch(1.0)), fresh.train()(batch(1.0)))


# Time of initialization

PARTS = {
    "actnorm": lambda: ActNorm(4),
    "attention": lambda: ia.InvertibleAttention(4, logdet=ia.Exact()),
    "chain": lambda: Sequential(ActNorm(4), ia.InvertibleAttention(4, "gaussian", logdet=ia.Exact())),
    "network": lambda: InvertibleResNet(
        (4, 4), blocks=(1, 1), hidden_channels=4, attention=ia.InvertibleAttention, logdet=ia.Exact()
    ),
    "vectors": lambda: ia.interop.FlattenedBijection(ia.InvertibleAttention(2, logdet=ia.Exact()), (2, 8)),
}


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest) -> tuple[ia.Bijection, Tensor]:
    torch.manual_seed(0)
    x = 3 * torch.randn(8, *((16,) if request.param == "vectors" else (4, 4)), dtype=torch.float64)
    return PARTS[request.param]().double(), x


@pytest.mark.parametrize("method", ["forward", "inverse", "forward_and_logdet", "inverse_and_logdet"])
def test_uninitialized_evaluation_is_refused_with_a_remedy(part, method):
    bijection, x = part
    before = state_of(bijection.eval())
    if "inverse" in method and isinstance(bijection, InvertibleResNet):
        x = x.flatten(1)
    with pytest.raises(RuntimeError, match=r"is not initialized: .* Call initialize\(x\) of the model"):
        getattr(bijection, method)(x)
    torch.testing.assert_close(bijection.state_dict(), before, rtol=0, atol=0)


def test_initialize_matches_the_first_training_batch(part):
    bijection, x = part
    trained = copy.deepcopy(bijection)
    expected = trained(x)
    bijection.eval().initialize(x)
    assert not any(module.training for module in bijection.modules())
    torch.testing.assert_close(bijection.state_dict(), trained.state_dict())
    torch.testing.assert_close(bijection(x), expected)
    before = state_of(bijection)
    bijection.train()(100 * x)
    torch.testing.assert_close(bijection.state_dict(), before, rtol=0, atol=0)


def test_parameters_loaded_without_their_flag_are_not_rewritten(part):
    bijection, x = part
    trained = copy.deepcopy(bijection)
    expected = trained(x)
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(trained.parameters()), bijection.parameters())
    with pytest.raises(RuntimeError, match="copy the buffer `initialized` too"):
        bijection.eval()(100 * x)
    bijection.train()(100 * x)
    torch.testing.assert_close(bijection(x), expected)
    torch.testing.assert_close(bijection.state_dict(), trained.state_dict(), rtol=0, atol=0)


def test_given_radius_is_kept():
    layer = ia.InvertibleAttention(4, constraint=ia.Certified(radius=2.0))
    before = state_of(layer.eval())
    layer.initialize(100 * torch.randn(2, 4, 3))
    layer(100 * torch.randn(2, 4, 3))
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_functional_call_tensors_are_not_written(part):
    bijection, x = part
    given_state = state_of(bijection)
    with pytest.raises(RuntimeError, match="cannot happen in functional_call"):
        functional_call(bijection, given_state, (x,))
    torch.testing.assert_close(given_state, dict(bijection.state_dict()), rtol=0, atol=0)


def test_computed_parameter_cannot_be_initialized():
    layer = ActNorm(4)
    parametrize.register_parametrization(layer, "shift", nn.Identity())
    for call in (layer, layer.initialize):
        with pytest.raises(RuntimeError, match="under a parametrization"):
            call(torch.randn(3, 4))


def replica_of(module: nn.Module) -> nn.Module:
    """Return what nn.DataParallel calls on a device, which torch itself makes on GPUs only."""
    replica = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        setattr(replica, name, None if parameter is None else parameter.clone())
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else replica_of(child)
    return replica


def test_data_parallel_replica_is_refused():
    x = torch.randn(8, 4, 3, dtype=torch.float64)
    flow = make_flow()
    with pytest.raises(RuntimeError, match=r"cannot happen .*nn.DataParallel"):
        replica_of(flow)(x)
    flow(x)
    transform, replica = flow.transform, replica_of(flow.transform)
    expected, value = transform(x), replica(x)
    torch.testing.assert_close(value, expected)
    gradients = [
        torch.autograd.grad(z.square().sum(), list(flow.transform.parameters())) for z in (value, expected)
    ]
    torch.testing.assert_close(*gradients)
    for method in ("inverse", "solve_inverse", "forward_and_logdet", "inverse_and_logdet"):
        part, its_replica = transform[1], replica_of(transform[1])
        with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
            getattr(its_replica, method)(x)
        with torch.no_grad():
            values = (getattr(block, method)(x) for block in (its_replica, part))
            if method != "solve_inverse":
                torch.testing.assert_close(*values)


@pytest.mark.compiles
@pytest.mark.parametrize("make", [PARTS["actnorm"], PARTS["attention"]], ids=["actnorm", "attention"])
@pytest.mark.parametrize("training", [False, True])
def test_compiled_function_refuses_initialization(make, training):
    layer, x = make().train(training), torch.randn(3, 4, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError, match="is not initialized"):
        compiled(x)
    layer.initialize(x)
    torch.testing.assert_close(compiled(x), layer(x))


def test_fake_tensors_give_shapes():
    assert ActNorm(4).eval().to("meta")(torch.empty(2, 4, 3, device="meta")).shape == (2, 4, 3)
    with FakeTensorMode() as mode:
        fake = PARTS["chain"]().eval()
        assert fake(mode.from_tensor(torch.randn(2, 4, 4))).shape == (2, 4, 4)


class OnDevice(Tensor):
    """A flag as on a GPU, which counts how often the host waits for it."""

    waited = 0
    is_cuda = True  # pyright: ignore

    def item(self) -> float:
        OnDevice.waited += 1
        return self.as_subclass(Tensor).item()


def test_initialization_synchronizes_the_device_once():
    layer, x = ActNorm(4), torch.randn(3, 4)
    layer.initialized = torch.zeros(()).as_subclass(OnDevice)
    OnDevice.waited = 0
    layer(x)
    layer(x)
    assert OnDevice.waited == 2  # before it was set and after
    for _ in range(3):
        layer(x)
        layer.eval().inverse(x)
    assert OnDevice.waited == 2
    layer.initialized.zero_()  # without notifying the host
    with pytest.raises(RuntimeError, match="is not initialized"):
        layer(x)
    layer.load_state_dict(ActNorm(4).state_dict())
    with pytest.raises(RuntimeError, match="is not initialized"):
        layer(x)
    assert OnDevice.waited == 3


# Several processes


CASES = (
    "load:0",
    "assign:0",
    "initialize:0",
    "initialize in evaluation:0",
    "initialize:1",
    "initialize:01",
    "nothing:",
)


@pytest.fixture(scope="module")
def trained_by_two(two_processes):
    return two_processes(WORKER, *CASES)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_one_initialized_agree(trained_by_two, case):
    states, module = trained_by_two
    way, _, processes = case.partition(":")
    flow = module.prepared(way if "0" in processes else "nothing")
    if "0" not in processes:
        flow(module.batch(2))  # initialization uses both processes' first batches together
    module.train(flow, module.batch(2).chunk(2))
    for state in states:
        torch.testing.assert_close(state[case], dict(flow.state_dict()))
