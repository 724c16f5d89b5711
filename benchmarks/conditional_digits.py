"""Does a class as context help? Exact bits per dimension of digits, with and without it, in the same run.

Two flows of the same layers, trained on the same batches from the same seed: in one every attention layer is given
the class of the digit, in the other the same context is zero. Log-determinants are unbiased estimates in training
and exact in testing.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import invertible_attention as ia
from invertible_attention.bijection import Bijection
from invertible_attention.interop import OnVectors

CLASSES, LEVELS, SIZE = 10, 17, 8


class Transposed(ia.flows.Flatten):
    """The image with rows and columns swapped, as a vector: attention takes turns over both."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x.view(-1, *self.shape).mT.flatten(1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.forward(z)


def block() -> list[Bijection]:
    attention = ia.InvertibleAttention(
        SIZE, "embedded_gaussian", heads=2, bias=True, context_channels=CLASSES
    )
    branch = ia.flows.LipschitzLinearBranch(SIZE * SIZE, 128, coefficient=0.9)
    return [
        ia.flows.ActNorm(SIZE * SIZE),
        OnVectors(attention, (SIZE, SIZE)),
        Transposed((SIZE, SIZE)),
        ia.flows.Residual(branch),
    ]


def make_flow(blocks: int) -> ia.flows.Flow:
    parts = [part for _ in range(blocks) for part in block()]
    transform = ia.flows.Sequential(ia.flows.Dequantize(LEVELS), ia.flows.Logit(0.05), *parts)
    return ia.flows.Flow(transform, ia.flows.DiagonalGaussian(SIZE * SIZE))


def load() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The 8×8 digits of scikit-learn: 1,500 to train on, 297 to test on, classes one-hot."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32)[order]
    y = torch.nn.functional.one_hot(torch.tensor(labels)[order], CLASSES).float()
    return (x[:1500], y[:1500]), (x[1500:], y[1500:])


@torch.no_grad()
def evaluate(flow: ia.flows.Flow, x: Tensor, context: Tensor, draws: int) -> list[float]:
    """Bits per dimension of every test image, averaged over draws of the noise that fills the levels."""
    torch.manual_seed(123)
    for module in flow.modules():
        if isinstance(module, ia.Residual):
            module.logdet = ia.Exact()
    bits = torch.stack([flow.eval().bits_per_dim(x, context) for _ in range(draws)])
    return bits.mean(0).tolist()


def train(conditional: bool, arguments: argparse.Namespace) -> dict[str, object]:
    (x, y), (x_test, y_test) = load()
    if not conditional:
        y, y_test = torch.zeros_like(y), torch.zeros_like(y_test)
    torch.manual_seed(arguments.seed)
    flow = make_flow(arguments.blocks)
    flow.initialize(x, y)
    optimizer = torch.optim.Adam(flow.parameters(), lr=arguments.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)
    start = time.perf_counter()
    for step in range(arguments.steps):
        index = torch.randint(len(x), (arguments.batch,))
        loss = flow.train().bits_per_dim(x[index], y[index]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            print(f"conditional={conditional} step={step} bits/dim={loss.item():.4f}", flush=True)
    bits = evaluate(flow, x_test, y_test, arguments.draws)
    with torch.no_grad():
        dequantize, *others = flow.transform
        inner = ia.flows.Sequential(*others)
        z = dequantize(x_test)
        error = (inner.inverse(inner(z, y_test), y_test) - z).abs().max().item()
    mean = sum(bits) / len(bits)
    deviation = math.sqrt(sum((b - mean) ** 2 for b in bits) / (len(bits) - 1) / len(bits))
    return {
        "bits_per_dim": mean,
        "standard_error": deviation,
        "per_image": bits,
        "largest_reconstruction_error": error,
        "parameters": sum(p.numel() for p in flow.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("results/conditional/digits.json"))
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {name: train(name == "conditional", arguments) for name in ("unconditional", "conditional")}
    pairs = zip(
        results["unconditional"].pop("per_image"), results["conditional"].pop("per_image"), strict=True
    )
    gains = torch.tensor([a - b for a, b in pairs])
    summary = {
        "data": "scikit-learn digits, 8×8, 17 levels, 1,500 training and 297 test images",
        "log_determinant": "unbiased in training, exact in testing",
        **results,
        "gain_bits_per_dim": gains.mean().item(),
        "gain_standard_error": (gains.std() / math.sqrt(len(gains))).item(),
        "ratio": results["conditional"]["bits_per_dim"] / results["unconditional"]["bits_per_dim"],
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()},
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, 1 thread",
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
