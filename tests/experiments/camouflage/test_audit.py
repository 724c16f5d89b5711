from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("transformers")

from invertible_attention.experiments.camouflage.audit import audit_network
from invertible_attention.experiments.camouflage.cell import Cell, build_network
from invertible_attention.experiments.camouflage.configuration import Configuration
from invertible_attention.experiments.camouflage.data import open_data

SMALL = Configuration(backbone="tiny", size=64, levels=(2, 3))


@pytest.fixture
def pairs(dataset):
    return open_data([dataset]).test[0].pairs


def _audit(network, pairs):
    found = audit_network(network, pairs, size=64, images=2, device=torch.device("cpu"))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


@pytest.mark.parametrize("model", ["concatenation/certified", "embedded_gaussian/certified"])
def test_certified_attention_inverts_for_any_weights(model, pairs) -> None:
    network = build_network(Cell(model, 0), SMALL)
    network(torch.randn(2, 3, 64, 64))
    with torch.no_grad():
        for parameter in network.attention.parameters():
            parameter.mul_(3)
    found = _audit(network, pairs)
    assert list(found) == ["2", "3"]
    for level in found.values():
        assert level["passed"]
        assert (level["images"], level["recovered"], level["silently_wrong"]) == (2, 2, 0)
        assert level["local_lipschitz_largest"] <= level["certificate"] <= 0.9
        assert level["relative_error_largest"] < 1e-3
    assert [level["tokens"] for level in found.values()] == [64, 16]


def test_expansive_relaxed_attention_is_detected(pairs) -> None:
    network = build_network(Cell("gaussian/relaxed", 0), SMALL)
    with torch.no_grad():
        # Tokens so long that the response jumps between them.
        for reduce in network.reduce:
            for branch in reduce.branches:
                branch.weight.mul_(30)
    found = _audit(network, pairs)
    for level in found.values():
        assert level["certificate"] is None
        assert level["tokens_outside_ball"] is None
    assert max(level["local_lipschitz_largest"] for level in found.values()) > 1


@pytest.mark.parametrize("model", ["none", "gaussian/ordinary"])
def test_networks_without_invertible_attention_are_not_audited(model, pairs) -> None:
    assert _audit(build_network(Cell(model, 0), SMALL), pairs) == {}
