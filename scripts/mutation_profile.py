"""A pytest plugin for mutation runs: the same examples for every mutant, and none made smaller once one has failed."""

from __future__ import annotations

from hypothesis import Phase, settings

settings.register_profile(
    "mutation", derandomize=True, database=None, deadline=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("mutation")
