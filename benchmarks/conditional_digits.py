"""Does a class as context help? Exact bits per dimension of digits, with and without it, over several seeds.

Two flows of the same layers, trained on the same batches from the same seed: in one every attention layer is given
the class of the digit, in the other the same context is zero. Log-determinants are unbiased estimates in training
and exact in testing. Every training is stored as it goes, so that ``--resume`` continues an interrupted run.

    python benchmarks/conditional_digits.py --seeds 0 1 2 --steps 300
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import invertible_attention as ia
from invertible_attention.bijection import Bijection
from invertible_attention.experiments.files import atomic_path, read_json, write_json
from invertible_attention.experiments.metadata import run_metadata
from invertible_attention.interop import FlattenedBijection

CLASSES, LEVELS, SIZE = 10, 17, 8
KINDS = ("unconditional", "conditional")
SETTINGS = ("blocks", "steps", "batch", "draws", "lr")
STORE_EVERY = 25


class Transposed(ia.flows.Flatten):
    """The image with rows and columns swapped, as a vector: attention takes turns over both."""

    uses_mask = False

    def _forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x.view(-1, *self.shape).mT.flatten(1)

    _inverse = _forward


def block() -> list[Bijection]:
    attention = ia.InvertibleAttention(
        SIZE, "embedded_gaussian", heads=2, bias=True, context_channels=CLASSES
    )
    branch = ia.flows.LipschitzLinearBranch(SIZE * SIZE, 128, coefficient=0.9)
    return [
        ia.flows.ActNorm(SIZE * SIZE),
        FlattenedBijection(attention, (SIZE, SIZE)),
        Transposed((SIZE, SIZE)),
        ia.flows.Residual(branch),
    ]


def make_flow(blocks: int) -> ia.flows.Flow:
    parts = [part for _ in range(blocks) for part in block()]
    transform = ia.flows.Sequential(ia.flows.Dequantize(LEVELS), ia.flows.Logit(0.05), *parts)
    return ia.flows.Flow(transform, ia.flows.DiagonalGaussian(SIZE * SIZE))


def load(kind: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The 8×8 digits of scikit-learn: 1,500 to train on, 297 to test on, classes one-hot or zero."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32)[order]
    y = torch.nn.functional.one_hot(torch.tensor(labels)[order], CLASSES).float()
    y = y if kind == "conditional" else torch.zeros_like(y)
    return (x[:1500], y[:1500]), (x[1500:], y[1500:])


class Training:
    """One flow on its way, which can be stored and continued as if nothing had happened."""

    def __init__(self, kind: str, seed: int, arguments: argparse.Namespace) -> None:
        self.kind, self.seed, self.arguments = kind, seed, arguments
        self.train, self.test = load(kind)
        self.path = arguments.checkpoints / f"{kind}-{seed}.pt"
        torch.manual_seed(seed)
        self.flow = make_flow(arguments.blocks)
        images, classes = self.train
        self.flow.initialize(images, context=classes)
        self.optimizer = torch.optim.Adam(self.flow.parameters(), lr=arguments.lr)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, arguments.steps)
        self.step, self.seconds = 0, 0.0

    def store(self) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("flow", "optimizer", "schedule")}
        state |= {"step": self.step, "seconds": self.seconds, "random": torch.get_rng_state()}
        state["settings"] = settings(self.arguments)
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)

    def restore(self) -> None:
        state = torch.load(self.path, weights_only=True)
        if state["settings"] != settings(self.arguments):
            raise SystemExit(
                f"{self.path} was trained with {state['settings']}: use the same, or another folder"
            )
        for name in ("flow", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]
        torch.set_rng_state(state["random"])

    def run(self) -> None:
        """Train to the end, storing the state every so many steps."""
        x, y = self.train
        while self.step < self.arguments.steps:
            start = time.process_time()
            index = torch.randint(len(x), (self.arguments.batch,))
            loss = self.flow.train().bits_per_dim(x[index], context=y[index]).mean()
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.flow.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.step += 1
            self.seconds += time.process_time() - start
            if self.step % STORE_EVERY == 0 or self.step == self.arguments.steps:
                self.store()
                print(f"{self.kind} seed={self.seed} step={self.step} bits/dim={loss.item():.4f}", flush=True)

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Bits per dimension of every test image, averaged over draws of the noise that fills the levels."""
        start = time.process_time()
        flow, (x, y) = self.flow.eval(), self.test
        for module in flow.modules():
            if isinstance(module, ia.Residual):
                module.logdet = ia.Exact()
        torch.manual_seed(123)
        bits = (
            torch.stack([flow.bits_per_dim(x, context=y) for _ in range(self.arguments.draws)])
            .mean(0)
            .double()
        )
        assert isinstance(flow.transform, ia.flows.Sequential)
        dequantize, *others = flow.transform
        inner = ia.flows.Sequential(*others)
        z = dequantize(x)
        error = (inner.inverse(inner(z, context=y), context=y) - z).abs().max().item()
        return {
            "bits_per_dim": bits.mean().item(),
            "standard_error": standard_error(bits),
            "largest_reconstruction_error": error,
            "parameters": sum(p.numel() for p in flow.parameters()),
            "cpu_seconds": round(self.seconds + time.process_time() - start, 1),
            "per_image": bits.tolist(),
        }


def standard_error(values: Tensor) -> float | None:
    """Standard error of the mean; ``None`` for a single value."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else None


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in SETTINGS}


def measure(kind: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one flow, or as much of it as is not stored yet."""
    result = arguments.checkpoints / f"{kind}-{seed}.json"
    if arguments.resume and result.exists():
        found = read_json(result)
        if found.pop("settings") != settings(arguments):
            raise SystemExit(f"{result} was measured with other settings: use the same, or another folder")
        return found
    training = Training(kind, seed, arguments)
    if arguments.resume and training.path.exists():
        training.restore()
    training.run()
    found = training.evaluate()
    write_json(result, found | {"settings": settings(arguments)})
    return found


def compare(runs: dict[int, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """What the context gains, per seed and over seeds; the two flows of a seed see the same images and noise."""
    per_seed, gains = {}, []
    for seed, run in runs.items():
        without, given = (torch.tensor(run[kind].pop("per_image"), dtype=torch.float64) for kind in KINDS)
        gains.append(without - given)
        gain = {"gain": gains[-1].mean().item(), "standard_error_over_images": standard_error(gains[-1])}
        per_seed[str(seed)] = run | gain
    means = torch.stack(gains).mean(1)
    totals = {kind: sum(run[kind]["bits_per_dim"] for run in runs.values()) / len(runs) for kind in KINDS}
    return {
        "bits_per_dim": totals,
        "gain": means.mean().item(),
        "gain_standard_error_over_seeds": standard_error(means),
        "gain_standard_error_over_images": standard_error(torch.stack(gains).mean(0)),
        "ratio": totals["conditional"] / totals["unconditional"],
        "seeds": per_seed,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("results/conditional/digits.json"))
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints/conditional_digits"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--draws", type=int, default=3, help="noise per test image")
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--resume", action="store_true", help="use what is stored in --checkpoints")
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    metadata = run_metadata()
    runs = {seed: {kind: measure(kind, seed, parsed) for kind in KINDS} for seed in parsed.seeds}
    summary = {
        "schema": "invertible-attention/conditional/1",
        "data": "scikit-learn digits, 8×8, 17 levels, 1,500 training and 297 test images",
        "log_determinant": "unbiased in training, exact in testing",
        **compare(runs),
        "settings": settings(parsed),
        "run": metadata,
    }
    write_json(parsed.output, summary)
    print(f"without {summary['bits_per_dim']['unconditional']:.4f}, given the class", end=" ")
    print(f"{summary['bits_per_dim']['conditional']:.4f} bits per dimension", end="; ")
    print(
        f"gain {summary['gain']:.4f}, standard error over seeds {summary['gain_standard_error_over_seeds']}"
    )


if __name__ == "__main__":
    main()
