from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("ddp_worker.py")


def load_worker():
    spec = importlib.util.spec_from_file_location("ddp_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(tmp_path / "store"), str(tmp_path / "rank")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    results = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]

    worker = load_worker()
    flow = worker.make_flow()
    flow.initialize(worker.images(1))  # the two processes' batches together
    (sum(worker.loss_of(flow, rank) for rank in range(2)) / 2).backward()
    expected = {name: parameter.grad for name, parameter in flow.named_parameters()}
    assert all(grad is not None and grad.abs().max() > 0 for grad in expected.values())
    for result in results:
        torch.testing.assert_close(result["state"], dict(flow.state_dict()))
        torch.testing.assert_close(result["gradients"], expected)
