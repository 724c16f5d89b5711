from __future__ import annotations

import json
import platform
from datetime import datetime

import torch

from invertible_attention.experiments.metadata import run_metadata


def test_metadata_has_time_machine_and_versions() -> None:
    metadata = run_metadata()
    assert datetime.fromisoformat(metadata["time"]).utcoffset() is not None
    assert metadata["versions"]["torch"] == torch.__version__
    assert metadata["machine"]["threads"] == torch.get_num_threads()
    json.dumps(metadata, allow_nan=False)


def test_metadata_has_no_host_name() -> None:
    assert platform.node() not in json.dumps(run_metadata()["machine"])
