"""What do a log-determinant's noise and price come to on trained layers at the size of images? Ratios of one run.

One certified layer on 12×16×16 values, trained as a density of photographs for some steps. Beside each other: the
series alone, and what is left of it by the layer's linear part. The deviation is that of one probe, in nats per image;
processor times are in units of one forward pass of the same layer, for a batch of 32.

    python benchmarks/logdet_layers.py
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import invertible_attention as ia
from invertible_attention.experiments.data.photographs import PHOTOGRAPHS, bundled_photograph
from invertible_attention.experiments.files import write_json
from invertible_attention.experiments.metadata import run_metadata

CHANNELS, SIZE, BATCH = 12, 16, 32
LAYERS: dict[str, dict[str, Any]] = {
    "concatenation": {"response": "concatenation"},
    "embedded_gaussian, 4 heads": {"response": "embedded_gaussian", "heads": 4},
    "dot_product": {"response": "dot_product"},
    "gaussian": {"response": "gaussian"},
    "embedded_gaussian with TorusPrior": {"response": "embedded_gaussian", "prior": True},
}
ESTIMATORS = {
    "series": ia.RussianRoulette(control_variate=False),
    "linear part": ia.RussianRoulette(),
    "memory saving": ia.RussianRoulette(memory_saving=True),
}


def crops(count: int) -> Tensor:
    """Crops of photographs, squeezed, dequantized and standardized: ``(count, 12, 16, 16)``."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for path in PHOTOGRAPHS["train"]:
        picture = bundled_photograph(path).convert("RGB")
        picture = picture.resize((picture.width // 3, picture.height // 3))
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        images.append(pixels.view(picture.height, picture.width, 3).permute(2, 0, 1).float())
    found = []
    for index in range(count):
        image = images[index % len(images)]
        row, column = (
            int(torch.randint(side - 2 * SIZE + 1, (), generator=generator)) for side in image.shape[1:]
        )
        found.append(image[:, row : row + 2 * SIZE, column : column + 2 * SIZE])
    x = torch.stack(found)
    x = torch.nn.functional.pixel_unshuffle(x + torch.rand(x.shape, generator=generator), 2)
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


def trained(settings: dict[str, Any], x: Tensor, steps: int) -> ia.InvertibleAttention:
    """A layer after some steps towards the data's density under a standard normal base."""
    torch.manual_seed(0)
    arguments = {"heads": 1} | settings
    if arguments.pop("prior", False):
        arguments["position_prior"] = ia.TorusPrior(heads=arguments["heads"])
    layer = ia.InvertibleAttention(CHANNELS, **arguments)
    layer.initialize(x)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    for _ in range(steps):
        z, logdet = layer.train().forward_and_logdet(x[torch.randint(len(x), (8,))])
        loss = (0.5 * z.square().flatten(1).sum(1) - logdet).mean() / x[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return layer


def seconds(function: Callable[[], object], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def measure(
    layer: ia.InvertibleAttention, x: Tensor, estimator: ia.logdet.LogDetEstimator
) -> dict[str, float]:
    layer.logdet = estimator

    def evaluate() -> Tensor:
        with torch.no_grad():
            return layer.eval().forward_and_logdet(x)[1]

    def step() -> None:
        z, logdet = layer.train().forward_and_logdet(x)
        (z.square().flatten(1).sum(1) / 2 - logdet).mean().backward()
        layer.zero_grad(set_to_none=True)

    def forward() -> None:
        with torch.no_grad():
            layer.eval()(x)

    def trained_on() -> Tensor:
        return layer.train().forward_and_logdet(x)[1].detach().double().mean()

    draws = torch.stack([evaluate().double() for _ in range(4)])
    deviation = draws.std(0).square().mean().sqrt().item()
    spread = torch.stack([trained_on() for _ in range(64)]).std().item()
    bits = math.log(2) * x[0].numel()
    unit = seconds(forward, 7)
    return {
        "deviation": deviation,
        "standard_error_bits": deviation / math.sqrt(len(x)) / bits,
        "training_error_bits": spread / bits,
        "evaluation_relative": seconds(evaluate, 5) / unit,
        "training_relative": seconds(step, 7) / unit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--output", type=Path, default=Path("results/logdet/layers.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x = crops(256)
    rows = []
    for name, settings in LAYERS.items():
        layer = trained(settings, x, arguments.steps)
        row: dict[str, Any] = {"layer": name}
        for label, estimator in ESTIMATORS.items():
            row[label] = measure(layer, x[:BATCH], estimator)
        row["deviation_ratio"] = row["series"]["deviation"] / row["linear part"]["deviation"]
        with torch.no_grad():
            solution = layer.eval().solve_inverse(layer(x[:BATCH]))
        row["inverse_evaluations"] = int(solution.evaluations.max())
        rows.append(row)
        print(json.dumps(row), flush=True)
        write_json(
            arguments.output,
            {
                "schema": "invertible-attention/logdet-layers/1",
                "shape": [CHANNELS, SIZE, SIZE],
                "batch": BATCH,
                "steps": arguments.steps,
                "rows": rows,
                "run": run_metadata("cpu"),
            },
        )


if __name__ == "__main__":
    main()
