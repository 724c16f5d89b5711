from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("zuko", reason="needs zuko: pip install 'invertible-attention[interop]'")


@pytest.mark.slow
def test_two_processes_match_one(two_processes):
    results, worker = two_processes(Path(__file__).with_name("ddp_worker.py"))
    model = worker.NegativeLogLikelihood().double()
    x, c = worker.data()
    model(x, c)
    model.zero_grad()
    model(x, c).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in expected.values())
    for result in results:
        torch.testing.assert_close(result, expected)
