"""Time and memory of attention; ``python benchmarks/attention.py --help``."""

from __future__ import annotations

import cyclopts

from invertible_attention.experiments.benchmark.command import benchmark

if __name__ == "__main__":
    cyclopts.run(benchmark)
