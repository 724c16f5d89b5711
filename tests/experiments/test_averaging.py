from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from invertible_attention.experiments.averaging import WeightAverage


def _module(value: float) -> nn.Module:
    module = nn.BatchNorm1d(2).double()
    with torch.no_grad():
        module.weight.fill_(value)
        module.running_mean.fill_(-value)
        module.num_batches_tracked.fill_(int(value))
    return module


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(0, 0.99))
def test_average_follows_the_recursion(values, decay) -> None:
    average = WeightAverage(decay)
    expected = values[0]
    for n, value in enumerate(values):
        average.update(_module(value))
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * value
    target = _module(0)
    average.copy_to(target)
    assert target.weight.tolist() == pytest.approx([expected] * 2)
    assert target.running_mean.tolist() == pytest.approx([-expected] * 2)
    assert target.num_batches_tracked.item() == int(values[-1])


def test_average_does_not_alias_the_weights() -> None:
    average, module = WeightAverage(0.9), _module(1)
    average.update(module)
    with torch.no_grad():
        module.weight.fill_(100)
    assert average.average["weight"].tolist() == [1, 1]


def test_accumulation_steps_count_once() -> None:
    average, trainer = WeightAverage(0.9), SimpleNamespace(global_step=1)
    for _ in range(3):
        average.on_train_batch_end(trainer, _module(1), None, None, 0)
    assert average.updates == 1


def test_state_resumes() -> None:
    first, whole = WeightAverage(0.5), WeightAverage(0.5)
    for value in (1, 2):
        first.update(_module(value))
        whole.update(_module(value))
    second = WeightAverage(0.5)
    second.load_state_dict(first.state_dict())
    for average in (second, whole):
        average.update(_module(3))
    assert all(torch.equal(second.average[name], value) for name, value in whole.average.items())


def test_without_updates_nothing_is_copied() -> None:
    module = _module(4)
    WeightAverage(0.9).copy_to(module)
    assert module.weight.tolist() == [4, 4]


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_out_of_range_is_refused(decay) -> None:
    with pytest.raises(ValueError, match=f"got {decay}"):
        WeightAverage(decay)
