"""The rank is Lightning's, without importing Lightning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lightning.fabric.utilities import rank_zero

from invertible_attention.experiments.ranks import is_first_process

VARIABLES = ["RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"]


# A character for each variable, a dot or nothing for one that is not set.
@pytest.mark.parametrize("values", ["", "0", "1", "01", "10", ".1", "..0", "..2", ".10", "...3", "1000"])
def test_rank_before_lightning_is_imported_is_what_it_will_take(values: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(rank_zero.rank_zero_only, "rank")
    for name, value in zip(VARIABLES, values.ljust(4, "."), strict=True):
        if value == ".":
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert is_first_process() == ((rank_zero._get_rank() or 0) == 0)


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_that_lightning_set_counts(rank: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", str(1 - rank))
    monkeypatch.setattr(rank_zero.rank_zero_only, "rank", rank)
    assert is_first_process() == (rank == 0)


def test_study_without_training_imports_no_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    program = """
import sys
from pathlib import Path
from invertible_attention.experiments.audit.campaign import Campaign, run_campaign
search = Campaign(configurations=2, networks=0, group_size=2, inputs=1, ascents=1, steps=1)
run_campaign(search, output=Path(sys.argv[1]))
print('lightning' in sys.modules)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "search")]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "False"
    assert (tmp_path / "search" / "results.json").exists()
