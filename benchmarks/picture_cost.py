"""What a photograph at full size costs: squeezed 2×2, through one certified layer of Concatenation attention, and back.

CPU time of a forward pass, of its inverse and of a training step, and the peak memory of each above what the imported
libraries take, every size and each of the three in a separate process.

    python benchmarks/picture_cost.py --sizes 640x480 4000x3000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from invertible_attention import InvertibleAttention
from invertible_attention.experiments.benchmark.memory import high_water_mark
from invertible_attention.experiments.files import write_json
from invertible_attention.experiments.metadata import run_metadata

WORK = ("forward", "inverse", "step")


def measure(width: int, height: int, what: str, seed: int) -> dict[str, float]:
    """Return the seconds and the MiB of one piece of work."""
    before = high_water_mark()
    torch.manual_seed(seed)
    # Smooth like a photograph: tokens of noise alone are all alike.
    coarse = torch.rand(1, 12, max(1, height // 32), max(1, width // 32))
    x = torch.nn.functional.interpolate(coarse, (height // 2, width // 2), mode="bilinear") - 0.5
    layer = InvertibleAttention(12)
    layer.initialize(x[:, :, ::4, ::4])
    with torch.set_grad_enabled(what == "step"):
        z = layer(x) if what == "inverse" else x
        start = time.process_time()
        if what == "forward":
            layer(x)
        elif what == "inverse":
            assert layer.solve_inverse(z).converged.all()
        else:
            layer(x).square().mean().backward()
        seconds = time.process_time() - start
    return {"seconds": seconds, "mib": (high_water_mark() - before) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["640x480", "1600x1200", "4000x3000"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/pictures/cost.json"))
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only:
        width, height, what = arguments.only
        print(json.dumps(measure(int(width), int(height), what, arguments.seed)))
        return
    rows = []
    for size in arguments.sizes:
        width, height = map(int, size.split("x"))
        row: dict[str, object] = {"width": width, "height": height}
        for what in WORK:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", str(width), str(height), what]
            row[what] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(size, what, row[what], flush=True)
        rows.append(row)
    content = {"schema": "invertible-attention/picture-cost/1", "seed": arguments.seed, "rows": rows}
    write_json(arguments.output, content | {"run": run_metadata()})


if __name__ == "__main__":
    main()
