"""Lightning's Trainer as the experiments use it: quiet, on one device, resumable to the step."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from .errors import ExperimentError
from .files import atomic_path

__all__ = ["CheckpointEvery", "choose_device", "make_trainer", "quiet_lightning", "resume_or_start"]


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; ``"auto"`` takes a GPU where there is one.

    Raises:
        ExperimentError: when there is no such device.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ExperimentError(f"there is no device {name!r} here ({reason}): try --device cpu") from error
    return device


class CheckpointEvery(lightning.Callback):
    """Write a checkpoint every so many steps, whole or not at all.

    Args:
        path: where; an older checkpoint there is replaced.
        steps: how often.
    """

    def __init__(self, path: Path, steps: int):
        self.path = path
        self.steps = steps

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the checkpoint when it is time."""
        if trainer.global_step % self.steps == 0:
            with atomic_path(self.path) as temporary:
                trainer.save_checkpoint(temporary)


def make_trainer(
    device: torch.device, *, epochs: int, callbacks: list[lightning.Callback], folder: Path
) -> Any:
    """Return a Trainer that trains for ``epochs`` on ``device`` and prints nothing.

    The training data are asked for anew every epoch, so that a module can make them from the epoch's number.
    """
    kinds = {"cuda": "gpu", "cpu": "cpu", "mps": "mps"}
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator=kinds.get(device.type, device.type),
        devices=[device.index or 0] if device.type == "cuda" else 1,
        callbacks=callbacks,
        default_root_dir=folder,
        reload_dataloaders_every_n_epochs=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )


def resume_or_start(trainer: Any, module: lightning.LightningModule, checkpoint: Path) -> None:
    """Train ``module`` to the end, from ``checkpoint`` where there is one.

    Raises:
        ExperimentError: naming the checkpoint, when it cannot be read.
    """
    found = checkpoint if checkpoint.is_file() else None
    if found is not None:
        try:
            torch.load(found, map_location="cpu", weights_only=True)
        except Exception as error:
            # Damage shows as anything from EOFError to UnpicklingError.
            raise ExperimentError(
                f"{found} is damaged or not a checkpoint ({type(error).__name__}): delete it to train anew"
            ) from error
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, ckpt_path=found, weights_only=True)
    except SystemExit as error:
        # Lightning turns Ctrl-C into an exit and leaves the signal ignored.
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's remarks on hardware and on data loading, which do not apply to data in memory."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*available but not used.*")
            yield
    finally:
        logger.setLevel(level)
