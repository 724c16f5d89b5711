"""Small results of every kind, as their commands write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from invertible_attention.experiments.density.configuration import Configuration

ROOT = Path(__file__).parents[3]
MACHINE = {
    "processor": "A processor",
    "cores": 2,
    "threads": 1,
    "memory_gib": 8.0,
    "system": "Linux x86_64",
    "device": "cpu",
    "accelerator": None,
}
RUN = {"time": "2026-01-02T03:04:05+00:00", "commit": "0123456789ab", "versions": {}, "machine": MACHINE}
SCORE = {
    "bits_per_dim": 3.25,
    "standard_error": 0.01,
    "sampling_error": 0.02,
    "estimator": "Exact()",
    "draws": 2,
    "images": 4,
    "not_finite": 0,
    "exact": True,
    "spectral_radius": None,
}


def density(dataset: str = "digits") -> dict[str, Any]:
    configuration = Configuration.choose(dataset=dataset, attention="concatenation", seed=7)
    return {
        "schema": "invertible-attention/density/1",
        "name": "concatenation/certified",
        "configuration": configuration.to_json(),
        "data": {
            "title": dataset,
            "shape": [1, 8, 8],
            "levels": 17,
            "train_images": 10,
            "test_images": 4,
            "fingerprint": "0",
        },
        "parameters": 1234,
        "training": {"steps": 60, "skipped_steps": 0, "seconds": 96.0, "processor_seconds": 90.0},
        "curve": [{"step": step, "processor_seconds": float(step), "test": 5 / step} for step in (1, 2, 3)],
        "run": RUN,
        "untrained": SCORE | {"bits_per_dim": None, "not_finite": 3},
        "evaluation": SCORE,
        "samples": {"drawn": 8, "converged": 8, "walks": 2, "whole_walks": 2},
    }


def study() -> dict[str, Any]:
    summary = {"mean": 2.5, "standard_error": 0.25, "values": [2.25, 2.75]}
    row = {
        "variant": "none",
        "name": "i-resnet",
        "model": "i-resnet",
        "parameters": 1000,
        "parameters_relative": 1.0,
        "processor_seconds": 60.0,
        "exact": False,
        "spectral_radius": 1.5,
        "skipped_steps": 0,
        "failed_samples": 0,
        "bits_per_dim": summary,
        "difference": summary,
        "at_equal_time": summary,
        "difference_at_equal_time": summary,
    }
    kept = ("name", "parameters", "training", "curve", "untrained", "evaluation", "samples", "run")
    cell = {"variant": "none"} | {name: density()[name] for name in kept}
    return {
        "schema": "invertible-attention/density-study/1",
        "base": Configuration.choose(dataset="cifar10", steps=60, batch_size=8).to_json(),
        "variants": ["none"],
        "seeds": 4,
        "draws": 2,
        "data": density()["data"] | {"title": "CIFAR-10", "shape": [3, 32, 32], "levels": 256},
        "rows": [row],
        "cells": [cell | {"seed": seed} for seed in (0, 1, 2, 5)],
        "run": RUN,
    }


def conditional() -> dict[str, Any]:
    part = {
        "bits_per_dim": 2.5,
        "standard_error": 0.01,
        "largest_reconstruction_error": 1e-6,
        "parameters": 99,
        "cpu_seconds": 3.0,
    }
    run = {
        "unconditional": part,
        "conditional": part | {"bits_per_dim": 2.25},
        "gain": 0.25,
        "standard_error_over_images": 0.01,
    }
    return {
        "schema": "invertible-attention/conditional/1",
        "data": "digits",
        "log_determinant": "exact",
        "bits_per_dim": {"unconditional": 2.5, "conditional": 2.25},
        "gain": 0.25,
        "gain_standard_error_over_seeds": 0.02,
        "gain_standard_error_over_images": 0.01,
        "ratio": 0.9,
        "seeds": {"3": run},
        "settings": {"steps": 10},
        "run": RUN,
    }


def logdet() -> dict[str, Any]:
    row = {
        "estimator": "PowerSeries(terms=5)",
        "calls": 100,
        "mean_error": 0.5,
        "standard_error": 0.1,
        "deviation": 6.5,
        "evaluation_relative": 2.5,
        "training_relative": 5.5,
    }
    return {
        "schema": "invertible-attention/logdet/1",
        "layer": "a layer",
        "dim": 64,
        "exact": -33.0,
        "lipschitz_bound": 0.9,
        "truncation_bound_of_5_terms": 56.5,
        "rows": [row],
        "run": RUN,
    }


def camouflage() -> dict[str, Any]:
    measures = (
        "s_measure",
        "mean_f",
        "mean_e",
        "mae",
        "max_f",
        "adaptive_f",
        "max_e",
        "adaptive_e",
        "weighted_f",
    )
    audited = {
        "images": 2,
        "tokens": 144,
        "certificate": 0.9,
        "local_lipschitz_largest": 0.5,
        "recovered": 2,
        "silently_wrong": 0,
        "not_injective": 0,
        "evaluations_mean": 9.0,
        "relative_error_largest": 1e-7,
    }
    cells = [
        {
            "model": model,
            "seed": seed,
            "scores": {"CAMO": dict.fromkeys(measures, 0.5 + 0.1 * seed)},
            "audit": {"4": audited} if model.endswith("certified") else {},
            "run": RUN,
        }
        for model in ("none", "concatenation/ordinary", "concatenation/certified")
        for seed in (0, 1)
    ]
    settings = {"backbone": "tiny", "size": 48, "epochs": 1, "batch_size": 2}
    return {
        "schema": "invertible-attention/camouflage/2",
        "configuration": settings,
        "run": RUN,
        "cells": cells,
    }


def benchmark() -> dict[str, Any]:
    times = [
        {
            "response": "gaussian",
            "contender": name,
            "tokens": 64,
            "batch": 1,
            "backward": False,
            "seconds": seconds,
            "median": 2 * seconds,
            "turns": 5,
        }
        for name, seconds in (("auto", 0.001), ("reference", 0.004))
    ]
    claim = {
        "claim": "gaussian: forward, times faster than N×N",
        "measured": 4.0,
        "limit": "≥ 3.5",
        "met": True,
    }
    released = {"response": "gaussian", "tokens": 64, "seconds": 2.0, "bytes": 3e9}
    return {
        "schema": "invertible-attention/benchmark/1",
        "times": times,
        "memory": [],
        "released": [released],
        "growth": [],
        "claims": [claim],
        "run": RUN,
    }


def audit() -> dict[str, Any]:
    block = {
        "network": "a network",
        "kind": "density",
        "inputs": "test images",
        "event_shape": [1, 8, 8],
        "residual": 1e-7,
        "error_bound": 1e-6,
        "smallest_stretch": 0.5,
        "said_to_fail": 0,
        "exceeds_certificate": 0,
        "lipschitz_estimates": [0.75],
        "attack": None,
        "block": "0.branch",
        "samples": 8,
        "contraction": "certified",
        "recovered": 8,
        "relative_error": 1e-7,
        "certificate": 0.9,
        "lipschitz_estimate": 0.75,
        "evaluations": 9.5,
        "second_preimages": 0,
        "searched": False,
        "silently_wrong": 0,
        "passed": True,
    }
    broken = {
        "block": "1.branch",
        "contraction": "no",
        "certificate": None,
        "searched": True,
        "second_preimages": 3,
    }
    return {
        "schema": "invertible-attention/audit/2",
        "configuration": {"checkpoint": "model", "seed": 4},
        "allowance": 1e-12,
        "blocks": [block, block | broken | {"passed": False, "relative_error": None}],
        "run": RUN,
    }


def attack() -> dict[str, Any]:
    return {
        "schema": "invertible-attention/attack/2",
        "configuration": {"seed": 5},
        "configurations": 12345,
        "groups": 2,
        "combinations": 2,
        "ascended": 3,
        "not_finite": 0,
        "tightest": [],
        "tightest_networks": [],
        "blocks": 6,
        "networks": 2,
        "violations": [],
        "allowance": 1e-9,
        "score_ranges": {"names": ["small", "large"]},
        "tightest_by": {"response": {"gaussian": [0.9999999, 0.5]}, "dtype": {"float64": [0.25, 0.125]}},
        "run": RUN | {"processor_seconds": 1.0},
    }


def measure() -> dict[str, Any]:
    model = {
        "model": "concatenation/certified",
        "parameters": 1234567,
        "step_seconds": [3.0, 1.0, 2.0],
        "evaluation_seconds": 0.5,
        "step_mib": 2217.0,
        "evaluation_mib": 1777.5,
        "idle_mib": 500.0,
        "loss": 0.5,
    }
    settings = {"backbone": "resnet50", "size": 352, "batch_size": 6, "weights": "random"}
    return {
        "schema": "invertible-attention/camouflage-measure/2",
        "configuration": settings,
        "threads": None,
        "run": RUN,
        "models": [model],
    }


def compiled() -> dict[str, Any]:
    case = {"eager_ms": 9.5, "compiled_ms": 8.0, "ratio": 1.1875, "difference": 1e-7}
    about = {"schema": "invertible-attention/compiled/1", "what": "16 samples", "repeats": 100}
    return about | {"cases": {"Anderson": case}, "run": RUN}


CONTENTS = {
    "density": ("results.json", density),
    "density-study": ("study.json", study),
    "conditional": ("digits.json", conditional),
    "logdet": ("results.json", logdet),
    "camouflage": ("results.json", camouflage),
    "camouflage-measure": ("resnet50-352.json", measure),
    "compiled": ("inverse.json", compiled),
    "benchmark": ("benchmark.json", benchmark),
    "audit": ("results.json", audit),
    "attack": ("results.json", attack),
}


def write(folder: Path, kind: str, content: dict[str, Any] | None = None) -> Path:
    """Write a result of a kind into a folder."""
    name, build = CONTENTS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(build() if content is None else content), encoding="utf-8")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Callable[..., list[Path]]:
    """Make one folder per kind."""
    return lambda *kinds: [write(tmp_path / kind, kind) for kind in kinds]


@pytest.fixture(scope="session")
def reconstructions() -> Path:
    """The reconstruction results this repository publishes."""
    folder = ROOT / "results" / "reconstruct"
    if not folder.is_dir():
        pytest.skip("needs the repository's results folder")
    return folder
