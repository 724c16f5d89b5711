from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.mark.slow
def test_two_processes_match_one(two_processes):
    results, worker = two_processes(Path(__file__).with_name("ddp_worker.py"))
    flow = worker.make_flow()
    flow.initialize(worker.images(1))  # the two processes' batches together
    (sum(worker.loss_of(flow, rank) for rank in range(2)) / 2).backward()
    expected = {name: parameter.grad for name, parameter in flow.named_parameters()}
    assert all(grad is not None and grad.abs().max() > 0 for grad in expected.values())
    for result in results:
        torch.testing.assert_close(result["state"], dict(flow.state_dict()))
        torch.testing.assert_close(result["gradients"], expected)
