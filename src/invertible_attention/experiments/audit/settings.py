"""What decides the audit of trained networks, and the search over random ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..settings import Settings, at_least, setting

__all__ = ["QUICK", "QUICK_AUDIT", "Audit", "Campaign"]

QUICK = {"configurations": 500, "networks": 3}
QUICK_AUDIT = {"samples": 2}


@dataclass(frozen=True)
class Audit(Settings):
    """Settings of an audit of trained networks."""

    samples: int = setting(8, "Inputs per trained network.", at_least(1))
    seed: int = setting(0, "Random seed.", at_least(0))
    attack_steps: int = setting(
        0,
        "Steps of each gradient ascent on a block's local Lipschitz constant; 0 for no attack.",
        at_least(0),
    )


@dataclass(frozen=True)
class Campaign(Settings):
    """Settings of a search."""

    configurations: int = setting(10_000, "Random layers to attack, rounded up to whole groups.", at_least(0))
    networks: int = setting(20, "Random residual networks to attack.", at_least(0))
    group_size: int = setting(
        100, "Layers of a group, which share everything but their weights.", at_least(1)
    )
    inputs: int = setting(2, "Inputs each layer is measured at.", at_least(1))
    ascents: int = setting(
        8,
        "Layers of a group that gradient ascent starts from, as many in each of four ranges of scores.",
        at_least(0),
    )
    steps: int = setting(40, "Steps of each gradient ascent of an attack.", at_least(1))
    seed: int = setting(0, "Random seed.", at_least(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.configurations + self.networks == 0:
            raise UsageError("configurations and networks are both 0: there is nothing to search")

    @property
    def groups(self) -> int:
        """Number of groups."""
        return -(-self.configurations // self.group_size)

    @property
    def learning_rate(self) -> float:
        """Of the ascents, relative to the scale of what is changed: however many steps, together they go as far."""
        return 2 / self.steps

    def shared(self) -> dict[str, Any]:
        """Return what decides every group and network, as JSON values. More of them may be added later."""
        return {
            "seed": self.seed,
            "budget": {
                "size": self.group_size,
                "inputs": self.inputs,
                "ascents": self.ascents,
                "steps": self.steps,
                "lr": self.learning_rate,
                "network_steps": self.steps,
            },
        }
