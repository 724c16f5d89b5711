"""The authors' released attention, timed from a checkout that the user names; nothing of it is part of this package."""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..errors import ExperimentError
from .implementations import CHANNELS
from .memory import high_water_mark, run_alone

__all__ = ["measure_released"]

CLASSES = {
    "gaussian": "Attention_gaussian",
    "embedded_gaussian": "Attention_embedded_gaussian",
    "dot_product": "Attention_dot",
    "concatenation": "Attention_concat",
}


def measure_released(folder: Path, response: str, size: tuple[int, int], *, repeats: int) -> dict[str, Any]:
    """Time one response of the released code, in a separate process.

    Args:
        folder: the checkout, with ``inv_attention.py`` in it.
        response: a response's name.
        size: height and width of the squeezed image.
        repeats: calls; the fastest counts, and the first is not excluded, because one may take half a minute.

    Returns:
        ``seconds`` and ``bytes`` of one forward call, its 1×1 convolutions included.

    Raises:
        ExperimentError: if the folder does not hold the code, or running it fails.
    """
    if not (folder / "inv_attention.py").is_file():
        raise ExperimentError(f"there is no inv_attention.py in {folder}")
    arguments = {"folder": str(folder), "response": response, "size": list(size), "repeats": repeats}
    return run_alone(__spec__.name, arguments)


def main(folder: str, response: str, size: list[int], repeats: int) -> None:
    """Import the released module, run it and print the measurement."""
    sys.path.insert(0, folder)
    module = import_module("inv_attention")
    torch.manual_seed(0)
    layer = getattr(module, CLASSES[response])(CHANNELS)
    image = torch.rand(1, CHANNELS, *size)
    before = high_water_mark()
    times = []
    with torch.no_grad():
        for _ in range(repeats):
            begin = time.perf_counter()
            layer(image)
            times.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": min(times), "bytes": high_water_mark() - before}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
