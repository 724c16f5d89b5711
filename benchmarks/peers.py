"""What a certified residual block costs beside those of other libraries, and whether their promises hold.

The same convolutions, and the same linear layers over vectors, in :class:`invertible_attention.flows.Residual`, in
normflows' ``Residual`` (``LipschitzCNN``, ``LipschitzMLP``) and in FrEIA's ``IResNetLayer``: time and peak memory of a
training step, time of an inverse to a relative error of 1e-5 and with the defaults of both, the largest true norm of a
layer over its limit after training, and the bias of the log-determinant. Then torchdeq's Anderson acceleration and
SciPy's ``krylov`` against ours on five problems, to the same residual.

    pip install torchdeq
    python benchmarks/peers.py

Everything is measured in rounds with its reference; ratios are of medians of CPU time.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import FrEIA.modules
import normflows
import numpy as np
import scipy.optimize
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchdeq.solver.anderson import anderson_solver  # pyright: ignore[reportMissingImports]

import invertible_attention as ia
from invertible_attention import flows
from invertible_attention.experiments.files import write_json
from invertible_attention.experiments.metadata import run_metadata

CHANNELS, SIZE, VECTOR = 12, (16, 16), 2
ACCURACY = 1e-5


@dataclass(frozen=True)
class Contender:
    """Blocks of one library, and what is asked of them.

    Args:
        modules: The blocks, the first applied first.
        forward_and_logdet: Of one block.
        through: The same of all blocks, as the library composes them.
        inverse: The inverse of all blocks, with their defaults, or to an accuracy.
        weights: The weights a block computes with.
        after_step: What the library asks its user to call after a step of the optimizer.
        detached: Whether its log-determinant has no gradient.
    """

    modules: nn.ModuleList
    forward_and_logdet: Callable[[Any, Tensor], tuple[Tensor, Tensor]]
    through: Callable[[Tensor], tuple[Tensor, Tensor]]
    inverse: Callable[[Tensor, bool], Tensor]
    weights: Callable[[Any], Iterator[Tensor]]
    after_step: Callable[[], object] = lambda: None
    detached: bool = False

    def loss(self, x: Tensor) -> Tensor:
        x, logdet = self.through(x)
        return (0.5 * x.flatten(1).square().sum(1) - logdet).mean()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        for block in self.modules:
            x = x + branch_of(block)(x)
        return x


def chain(
    modules: nn.ModuleList,
    forward_and_logdet: Callable[[Any, Tensor], tuple[Tensor, Tensor]],
    inverse: Callable[[Any, Tensor, bool], Tensor],
) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor, bool], Tensor]]:
    """Return both directions of blocks that are called one after another."""

    def through(x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(len(x))
        for block in modules:
            x, logdet = forward_and_logdet(block, x)
            total = total + logdet
        return x, total

    @torch.no_grad()
    def solve(z: Tensor, accurate: bool) -> Tensor:
        for block in reversed(modules):
            z = inverse(block, z, accurate)
        return z

    return through, solve


def branch_of(block: Any) -> nn.Module:
    if isinstance(block, flows.Residual):
        return block.branch
    return block.iresblock.nnet if isinstance(block, normflows.flows.Residual) else block.residual


def ours(blocks: int, make: Callable[[], nn.Module]) -> Contender:
    # Without a seed: the error of one draw, the same in every call, is no bias.
    flow = flows.Sequential(*(flows.Residual(make(), logdet=ia.RussianRoulette()) for _ in range(blocks)))
    solvers = {True: ia.Anderson(tolerance=0.1 * ACCURACY), False: ia.Anderson()}

    @torch.no_grad()
    def solve(z: Tensor, accurate: bool) -> Tensor:
        for block in flow:
            cast(flows.Residual, block).solver = solvers[accurate]
        return flow.inverse(z)

    return Contender(
        flow.bijections,
        lambda block, x: block.forward_and_logdet(x),
        flow.forward_and_logdet,
        solve,
        lambda block: (layer.weight for layer in block.branch.layers),
    )


def of_normflows(blocks: int, make: Callable[[], nn.Module]) -> Contender:
    modules = nn.ModuleList(normflows.flows.Residual(make(), reverse=False) for _ in range(blocks))

    def inverse(block: Any, z: Tensor, to_accuracy: bool) -> Tensor:
        # It stops where squared differences of iterates are below atol + rtol |z|.
        tolerance = (0.1 * ACCURACY) ** 2 if to_accuracy else 1e-5
        return block.iresblock._inverse_fixed_point(z, atol=tolerance, rtol=tolerance)

    def forward_and_logdet(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return block.forward(x)

    return Contender(
        modules,
        forward_and_logdet,
        *chain(modules, forward_and_logdet, inverse),
        lambda block: (
            cast(Any, layer).compute_weight(update=False)
            for layer in block.iresblock.nnet.net
            if hasattr(layer, "compute_weight")
        ),
        lambda: normflows.utils.update_lipschitz(modules, 5),
    )


def of_freia(blocks: int, shape: tuple[int, ...], hidden: int, limit: float) -> Contender:
    modules = nn.ModuleList(
        FrEIA.modules.IResNetLayer([shape], internal_size=hidden, spectral_norm_max=limit)
        for _ in range(blocks)
    )

    def inverse(block: Any, z: Tensor, to_accuracy: bool) -> Tensor:
        if not to_accuracy:
            return block([z], rev=True, jac=False)[0][0]
        x = z
        for _ in range(1000):
            x, before = z - block.residual(x), x
            if (x - before).norm() <= 0.1 * ACCURACY * (1 + z.norm()):
                break
        return x

    def forward_and_logdet(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        (z,), logdet = block([x if x.requires_grad else x.clone()])
        return z, logdet

    def correct() -> None:
        for block in modules:
            cast(Any, block).lipschitz_correction()

    correct()
    return Contender(
        modules,
        forward_and_logdet,
        *chain(modules, forward_and_logdet, inverse),
        lambda block: (layer.weight for layer in block.layers),
        correct,
        detached=True,
    )


def works(
    limit: float, blocks: int, hidden: int
) -> Iterator[tuple[str, str, tuple[int, ...], Contender, Contender]]:
    """Yield peer, layers, shape of a sample, the peer's blocks and ours over the same layers."""
    image, widths = (CHANNELS, *SIZE), [CHANNELS, hidden, hidden, CHANNELS]
    vector_widths = [VECTOR, hidden, hidden, VECTOR]

    def convolutions(kernels: tuple[int, ...], activation: str) -> nn.Module:
        return flows.LipschitzConvBranch(
            CHANNELS,
            hidden,
            SIZE,
            coefficient=limit,
            activation=activation,
            kernel_sizes=kernels,
            preactivation=activation == "lipswish",
        )

    def linear(activation: str) -> nn.Module:
        return flows.LipschitzLinearBranch(
            VECTOR,
            hidden,
            coefficient=limit,
            activation=activation,
            preactivation=activation == "lipswish",
        )

    cnn = partial(normflows.nets.LipschitzCNN, widths, [3, 1, 3], lipschitz_const=limit, init_zeros=False)
    mlp = partial(normflows.nets.LipschitzMLP, vector_widths, lipschitz_const=limit, init_zeros=False)
    yield (
        "normflows",
        "convolutions",
        image,
        of_normflows(blocks, cnn),
        ours(blocks, partial(convolutions, (3, 1, 3), "lipswish")),
    )
    yield (
        "normflows",
        "linear",
        (VECTOR,),
        of_normflows(blocks, mlp),
        ours(blocks, partial(linear, "lipswish")),
    )
    yield (
        "FrEIA",
        "convolutions",
        image,
        of_freia(blocks, image, hidden, limit),
        ours(blocks, partial(convolutions, (3, 3, 3), "elu")),
    )
    yield (
        "FrEIA",
        "linear",
        (VECTOR,),
        of_freia(blocks, (VECTOR,), hidden, limit),
        ours(blocks, partial(linear, "elu")),
    )


def timed(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def medians(actions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Time actions in rounds, after one call of each."""
    for action in actions:
        action()
    times = [[timed(action) for action in actions] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def peak_bytes(action: Callable[[], object]) -> int:
    """Return the most memory that tensors made in the call occupied at once."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        action()
    events = cast(Any, profile.profiler).kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def true_norm(weight: Tensor) -> float:
    """Return the norm of a layer: of the matrix, or of the zero-padded convolution at the size of the images."""
    weight = weight.detach().double()
    if weight.ndim == 2:
        return torch.linalg.matrix_norm(weight, 2).item()
    x = torch.randn(1, weight.shape[1], *SIZE, dtype=torch.float64)
    padding = weight.shape[-1] // 2
    value = 0.0
    for _ in range(300):
        y = F.conv2d(x / x.norm(), weight, padding=padding)
        value, x = y.norm().item(), F.conv_transpose2d(y, weight, padding=padding)
    return value


def bias(contender: Contender, x: Tensor, calls: int) -> dict[str, dict[str, float]]:
    """Return the mean error of the log-determinant of one block, and its standard error, in both modes."""
    block: Any = contender.modules[0]
    branch = branch_of(block).eval()
    exact = ia.Exact()(branch, x)[1].detach()
    found = {}
    for mode in ("training", "evaluation"):
        block.train(mode == "training")
        draws = torch.stack(
            [contender.forward_and_logdet(block, x.clone())[1].detach() for _ in range(calls)]
        )
        errors, turned = (draws - exact).mean(1), (draws + exact).mean(1)
        noise = errors.std() / math.sqrt(calls)
        if errors.mean().abs() > 10 * noise + 0.1 and turned.mean().abs() <= 4 * noise + 1e-3:
            raise RuntimeError(f"log-determinants of {type(block)} have the sign of another direction")
        found[mode] = {
            "error": errors.mean().item(),
            "standard_error": noise.item(),
        }
    block.train()
    return found


def compare(
    theirs: Contender, own: Contender, shape: tuple[int, ...], limit: float, arguments: argparse.Namespace
) -> dict[str, Any]:
    x = torch.randn(arguments.batch, *shape)
    steps: list[Callable[[], object]] = []
    for contender in (theirs, own):
        optimizer = torch.optim.Adam(contender.modules.parameters(), lr=1e-3)

        def step(contender: Contender = contender, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            contender.loss(x).backward()
            optimizer.step()
            contender.after_step()

        steps.append(step)
    row: dict[str, Any] = {}
    for step in steps:
        for _ in range(arguments.steps):
            step()
    row["step"] = medians(steps, arguments.rounds)
    row["bytes"] = [peak_bytes(step) for step in steps]
    row["norm"] = [
        max(true_norm(weight) for block in contender.modules for weight in contender.weights(block)) / limit
        for contender in (theirs, own)
    ]
    for contender in (theirs, own):
        contender.modules.eval()
    pairs = [(contender, contender.forward(x)) for contender in (theirs, own)]
    for name, accurate in (("inverse", True), ("inverse by default", False)):
        row[name] = medians(
            [partial(contender.inverse, z, accurate) for contender, z in pairs], arguments.rounds
        )
        row[f"error of the {name}"] = [
            ((contender.inverse(z, accurate) - x).norm() / x.norm()).item() for contender, z in pairs
        ]
    row["bias"] = [bias(contender, x[:2].clone(), arguments.calls) for contender in (theirs, own)]
    row["detached"] = [theirs.detached, own.detached]
    return row


def problems() -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Return contractions with a constant of at most 0.9, and right-hand sides."""
    torch.manual_seed(0)

    def network(features: int) -> Callable[[Tensor], Tensor]:
        matrix = torch.randn(features, features)
        matrix = 0.9 * matrix / torch.linalg.matrix_norm(matrix, 2)
        return lambda x: torch.tanh(x @ matrix)

    rotation = 0.9 * torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    branch = flows.LipschitzConvBranch(CHANNELS, 32, SIZE, coefficient=0.95).bind()
    attention = ia.InvertibleAttention(CHANNELS)
    images = torch.randn(8, CHANNELS, *SIZE)
    attention.initialize(images)
    function = attention.branch.bind()
    return {
        "rotation, 2": (lambda x: x @ rotation, torch.randn(64, 2)),
        "network, 20": (network(20), torch.randn(64, 20)),
        "network, 500": (network(500), torch.randn(64, 500)),
        "convolutions, 3,072": (lambda x: branch(x), images),
        "attention, 3,072": (lambda x: function(x), images),
    }


def torchdeq_anderson(g: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    scale = (1 + z.flatten(1).norm(dim=1)).min().item()
    found, _, _ = anderson_solver(
        lambda x: z - g(x), z, max_iter=300, tol=ACCURACY * scale, stop_mode="abs", m=5
    )
    return found


def scipy_krylov(g: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    def residual(x: np.ndarray) -> np.ndarray:
        point = torch.from_numpy(x).to(z).view_as(z)
        return (point + g(point) - z).numpy().astype(np.float64).ravel()

    tolerance = ACCURACY * (1 + z.norm().item())
    found = scipy.optimize.newton_krylov(
        residual, z.numpy().ravel(), f_tol=tolerance, tol_norm=np.linalg.norm, maxiter=300
    )
    return torch.from_numpy(found).to(z).view_as(z)


def our(solver: ia.Anderson | ia.NewtonKrylov) -> Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]:
    return lambda g, z: solver.solve(g, z, lipschitz=0.9).value


@torch.no_grad()
def solvers(rounds: int) -> list[dict[str, Any]]:
    """Compare solvers on the same problems, to the same residual, without preconditioners."""
    pairs = {
        "torchdeq's Anderson": (torchdeq_anderson, our(ia.Anderson(tolerance=ACCURACY)), None),
        # One sample at a time.
        "SciPy's krylov": (scipy_krylov, our(ia.NewtonKrylov(tolerance=ACCURACY)), 1),
    }
    rows = []
    for (name, (g, whole)), (peer, (*pair, samples)) in itertools.product(problems().items(), pairs.items()):
        z, calls = whole[:samples], Calls(g)
        row: dict[str, Any] = {"problem": name, "peer": peer, "evaluations": [], "residual": []}
        for solve in pair:
            calls.number = 0
            x = solve(calls, z)
            row["evaluations"].append(calls.number)
            residual = (x + g(x) - z).flatten(1).norm(dim=1) / (1 + z.flatten(1).norm(dim=1))
            row["residual"].append(residual.max().item())
        row["seconds"] = medians([partial(solve, g, z) for solve in pair], rounds)
        rows.append(row)
        ratio = row["seconds"][1] / row["seconds"][0]
        print(f"{name:20} {peer:20} {ratio:.2f} of its time, evaluations {row['evaluations']}", flush=True)
    return rows


class Calls:
    """A function that counts its calls."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.number = function, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.number += 1
        return self.function(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=64, help="width of a block")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100, help="training before anything is measured")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=100, help="of a log-determinant, for its bias")
    parser.add_argument("--limits", type=float, nargs="+", default=[0.9, 0.98], help="norm of each layer")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of two narrow blocks, to see that it runs"
    )
    parser.add_argument("--output", type=Path, default=Path("results/peers/peers.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        quick = {"blocks": 2, "hidden": 8, "batch": 2, "steps": 3, "rounds": 1, "calls": 5, "limits": [0.9]}
        vars(arguments).update(quick)
    rows = []
    for limit in arguments.limits:
        torch.manual_seed(0)
        for peer, layers, shape, theirs, own in works(limit, arguments.blocks, arguments.hidden):
            row = {"peer": peer, "layers": layers, "limit": limit}
            row |= compare(theirs, own, shape, limit, arguments)
            rows.append(row)
            ratio = {name: row[name][1] / row[name][0] for name in ("step", "bytes", "inverse")}
            print(
                f"{peer:9} {layers:12} {limit}: "
                + ", ".join(f"{name} {value:.2f} of theirs" for name, value in ratio.items())
                + f", norms over limit {row['norm'][0]:.3f} and {row['norm'][1]:.3f}",
                flush=True,
            )
    content = {
        "schema": "invertible-attention/peers/1",
        "settings": {name: value for name, value in vars(arguments).items() if name != "output"},
        "seed": 0,
        "rows": rows,
        "solvers": solvers(arguments.rounds),
        "run": run_metadata(),
    }
    write_json(arguments.output, content)


if __name__ == "__main__":
    main()
