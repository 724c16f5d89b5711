from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")

from invertible_attention.cli import main
from invertible_attention.experiments.camouflage.configuration import Configuration


@pytest.mark.slow
def test_step_cost_is_measured(tmp_path, capsys) -> None:
    file = tmp_path / "cost.json"
    arguments = ["--models", "none", "concatenation/relaxed", "--backbone", "tiny", "--size", "64"]
    arguments += ["--batch-size", "2", "--steps", "2", "--threads", "1", "--output", str(file)]
    assert main(["camouflage", "measure", *arguments]) == 0
    assert "InvConcatenation" in capsys.readouterr().out
    found = json.loads(file.read_text())["models"]
    assert [item["model"] for item in found] == ["none", "concatenation/relaxed"]
    for item in found:
        assert len(item["step_seconds"]) == 2
        assert item["step_mib"] >= item["evaluation_mib"] > 50
        assert 0.1 < item["loss"] < 2


def test_measured_steps_update_batch_statistics(monkeypatch) -> None:
    from invertible_attention.experiments.camouflage import measure as module

    build, networks = module.build_network, []

    def pretrained(*arguments):
        networks.append(build(*arguments).eval())
        return networks[0]

    monkeypatch.setattr(module, "build_network", pretrained)
    configuration = Configuration(backbone="tiny", weights="random", size=64, batch_size=2)
    module.measure("none", configuration, steps=2, device="cpu")
    counts = [value for name, value in networks[0].named_buffers() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(count == 2 for count in counts)
