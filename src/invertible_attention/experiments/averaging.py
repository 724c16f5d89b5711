"""An exponential moving average of the weights, kept next to them while they are trained."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage(lightning.Callback):
    r"""Average the module's state over the training steps, :math:`\bar w \leftarrow d\,\bar w + (1 - d)\,w`.

    The decay grows with the number of updates, :math:`d_n = \min(d, (1 + n)/(10 + n))`, so that the start is
    forgotten. Buffers are averaged like weights; what is not floating point is copied. The average is stored in
    checkpoints, and a resumed run continues it.

    Args:
        decay: :math:`d`, in [0, 1).

    Raises:
        ValueError: if the decay is outside its range.
    """

    def __init__(self, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}

    def on_train_batch_end(
        self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the current weights into the average, once per optimizer step."""
        if trainer.global_step > self.updates:
            self.update(pl_module)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the current weights of ``module`` into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in module.state_dict().items():
            if name not in self.average or not value.is_floating_point():
                self.average[name] = value.detach().clone()
                continue
            average = self.average[name].to(value.device)
            self.average[name] = average.lerp_(value.detach(), 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        """Give ``module``, the one that was averaged, the average weights. Without updates it is left as it is."""
        if self.average:
            module.load_state_dict(self.average)

    def state_dict(self) -> dict[str, Any]:
        """Return the average, for a checkpoint."""
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the average from a checkpoint."""
        self.updates = state_dict["updates"]
        self.average = dict(state_dict["average"])
