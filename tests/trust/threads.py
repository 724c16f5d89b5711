"""Train and sample two models concurrently in threads that share them; count lost gradients and exceptions.

Run by hand for as long as wanted; the test suite takes a few seconds::

    python tests/trust/threads.py --minutes 10 --output results/trust/threads.json

Each model has a thread that trains it, on its log-density and through its inverse, one that samples from it, and one
that inverts within :func:`torch.nn.utils.parametrize.cached`, a switch that holds for the whole process.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invertible_attention import InvertibleAttention, Relaxed, flows
from invertible_attention.experiments.files import write_json
from invertible_attention.experiments.metadata import run_metadata

SHAPE = (4, 4, 4)


def convolutional() -> flows.Flow:
    """Return a flow of convolution blocks."""
    net = flows.InvertibleResNet(SHAPE, blocks=(2, 1), hidden_channels=6, activation="lipswish")
    return flows.Flow(net, flows.DiagonalGaussian(net.latent_dim))


def attentive() -> flows.Flow:
    """Return a flow of attention, certified and relaxed, and of a network that is constrained by hand."""
    linear = flows.Residual(nn.Sequential(parametrized(nn.Linear(64, 64)), nn.Sigmoid()))
    net = flows.Sequential(
        flows.ActNorm(4),
        InvertibleAttention(4, "dot_product"),
        InvertibleAttention(4, constraint=Relaxed(0.5, constrain_response=True)),
        flows.Flatten(SHAPE),
        linear,
    )
    return flows.Flow(net, flows.DiagonalGaussian(64))


def parametrized(layer: nn.Linear) -> nn.Module:
    """Return the layer with the norm of its weight limited by PyTorch's own parametrization."""
    return nn.utils.parametrizations.spectral_norm(layer).eval()


class Watch:
    """Counts the actions and errors of every thread.

    Args:
        seconds: How long the threads run.
    """

    def __init__(self, seconds: float) -> None:
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self._end = time.monotonic() + seconds

    def repeat(self, name: str, action: Callable[[], int]) -> None:
        """Call ``action``, which returns the number of lost gradients, until the time is over."""
        while time.monotonic() < self._end:
            try:
                self.counts[f"{name}: gradients lost"] += action()
            except Exception as error:
                self.errors.append(f"{name}: {type(error).__name__}: {error}")
            self.counts[name] += 1


def actions(flow: flows.Flow) -> dict[str, Callable[[], int]]:
    """Return the actions that run concurrently on a model."""
    data = torch.randn(8, *SHAPE)
    flow.initialize(data)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-4)

    def train() -> int:
        optimizer.zero_grad(set_to_none=True)
        x = torch.randn(8, *SHAPE)
        loss = -flow.log_prob(x).mean()
        latent = flow.transform(x).detach()
        loss = loss + (flow.transform.inverse(latent) - 0.9 * x).square().mean()
        loss.backward()
        lost = sum(not _is_there(parameter.grad) for parameter in flow.transform.parameters())
        optimizer.step()
        return lost

    def sample() -> int:
        return int(not bool(flow.sample(4).isfinite().all()))

    def invert() -> int:
        with parametrize.cached(), torch.no_grad():
            flow.transform.inverse(torch.randn(4, 64))
        return 0

    return {"training": train, "sampling": sample, "inverting within cached()": invert}


def _is_there(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.isfinite().all())


def watch(seconds: float) -> Watch:
    """Run all threads for some seconds, and return the counts."""
    result = Watch(seconds)
    threads = [
        threading.Thread(target=result.repeat, args=(f"{name}, {kind}", action))
        for name, build in (("convolutions", convolutional), ("attention", attentive))
        for kind, action in actions(build()).items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return result


def main() -> None:
    """Parse the command line, watch, and exit with 1 after any error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="How long. Default: 10.")
    parser.add_argument("--output", type=Path, help="JSON file for the counts.")
    options = parser.parse_args()
    seen = watch(60 * options.minutes)
    for name, count in sorted(seen.counts.items()):
        print(f"{name}: {count}")
    print(f"exceptions: {len(seen.errors)}", *seen.errors[:10], sep="\n")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        found = {"minutes": options.minutes, "counts": dict(seen.counts), "errors": seen.errors}
        write_json(options.output, found | {"run": run_metadata()})
    lost = sum(count for name, count in seen.counts.items() if name.endswith("lost"))
    raise SystemExit(bool(lost or seen.errors))


if __name__ == "__main__":
    main()
