"""Lightning's Trainer as the experiments use it: quiet, resumable to the step, on one device or many."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as lightning
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from .errors import ExperimentError
from .files import atomic_path
from .study.folder import CHECKPOINT

__all__ = [
    "Parallel",
    "Report",
    "ResumableModule",
    "choose_device",
    "fit",
]

Report = Callable[[int, float], None]
"""What is reported of training: steps done so far and the loss of the last one."""


@dataclass(frozen=True)
class Parallel:
    """Over how many devices and machines training is spread, and in which precision.

    Args:
        devices: devices (on a CPU, processes) per machine.
        nodes: machines.
        strategy: Lightning's name of how they work together; ``"auto"`` is ``"ddp"`` for more than one.
        precision: Lightning's name, such as ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
    """

    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"

    @property
    def processes(self) -> int:
        """How many processes train."""
        return self.devices * self.nodes


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


class ResumableModule(lightning.LightningModule):
    """A module with an attribute, named by ``kept``, that checkpoints hold besides its state."""

    kept: ClassVar[str]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the attribute."""
        checkpoint[self.kept] = getattr(self, self.kept)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the attribute."""
        setattr(self, self.kept, checkpoint[self.kept])


class CheckpointEvery(lightning.Callback):
    """Write a checkpoint every so many steps, whole or not at all, and time the training over all attempts.

    Args:
        path: where; an older checkpoint there is replaced.
        steps: how often.
    """

    def __init__(self, path: Path, steps: int):
        self.path = path
        self.steps = steps
        self._earlier = 0.0
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time of training on the clock; of an interrupted attempt, that until the checkpoint it left."""
        return self._earlier + time.perf_counter() - self._start

    def state_dict(self) -> dict[str, Any]:
        """Return the time so far, for a checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the time so far."""
        self._earlier = state_dict["seconds"]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the next epoch where the checkpoint was written after the last batch of one.

        Lightning then counts that epoch as done, but not the next as begun: a second resumption would take it for
        done as well and go back to its first batch.
        """
        self._start = time.perf_counter()
        loop = trainer.fit_loop
        if (
            loop.restarted_mid_epoch
            and loop.epoch_progress.total.ready == loop.epoch_progress.total.processed
        ):
            loop.epoch_progress.increment_ready()
            loop.epoch_progress.increment_started()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the checkpoint when it is time."""
        if trainer.global_step % self.steps == 0:
            # All processes take part in making a checkpoint, one writes it.
            with atomic_path(self.path) if trainer.is_global_zero else nullcontext(self.path) as path:
                trainer.save_checkpoint(path)


def fit(
    module: lightning.LightningModule,
    device: torch.device,
    *,
    folder: Path,
    epochs: int,
    checkpoint_steps: int,
    callbacks: Sequence[lightning.Callback] = (),
    parallel: Parallel | None = None,
    logs: bool = False,
    gradient_clip: float | None = None,
) -> tuple[Any, float]:
    """Train ``module`` without printing; return Lightning's Trainer and the seconds on the clock over all attempts.

    A checkpoint in ``folder`` is continued where it stopped; the result is that of an uninterrupted run. It
    stays there until the caller has stored what it is for.

    The training data are asked for again every epoch, so that a module can make them from the epoch's number;
    it shares them among the processes itself.

    Args:
        module: what is trained, and how.
        device: where, on one device; with more, its type.
        folder: for the checkpoint and logs.
        epochs: how long.
        checkpoint_steps: how often a checkpoint is written; it holds what ``callbacks`` did in its step.
        callbacks: Lightning's.
        parallel: how many devices, and in which precision; one in float32 by default.
        logs: whether to write what the module logs as CSV and for TensorBoard, to ``folder/logs/version_…``, a
            new one for every attempt.
        gradient_clip: largest norm of a gradient, ``None`` for any.

    Raises:
        ExperimentError: naming the checkpoint, when it cannot be read.
    """
    parallel = Parallel() if parallel is None else parallel
    kinds = {"cuda": "gpu", "cpu": "cpu", "mps": "mps"}
    many = parallel.processes > 1
    devices: Any = [device.index or 0] if device.type == "cuda" and not many else parallel.devices
    checkpoints = CheckpointEvery(folder / CHECKPOINT, checkpoint_steps)
    with _quiet():
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator=kinds.get(device.type, device.type),
            devices=devices,
            num_nodes=parallel.nodes,
            strategy="ddp" if many and parallel.strategy == "auto" else parallel.strategy,
            precision=parallel.precision,  # pyright: ignore[reportArgumentType]
            sync_batchnorm=many and device.type == "cuda",
            use_distributed_sampler=False,
            gradient_clip_val=gradient_clip,
            callbacks=[*callbacks, checkpoints],
            default_root_dir=folder,
            reload_dataloaders_every_n_epochs=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=10,
            logger=_loggers(folder) if logs else False,
        )
        _resume_or_start(trainer, module, checkpoints.path)
    return trainer, checkpoints.seconds


def _loggers(folder: Path) -> list[Logger]:
    table = CSVLogger(folder, name="logs")
    return [table, TensorBoardLogger(folder, name="logs", version=table.version)]


def _resume_or_start(trainer: Any, module: lightning.LightningModule, checkpoint: Path) -> None:
    found = checkpoint if checkpoint.is_file() else None
    if found is not None:
        try:
            torch.load(found, map_location="cpu", weights_only=True)
        except Exception as error:
            # Damage shows as anything from EOFError to UnpicklingError.
            raise ExperimentError(
                f"{found} is damaged or not a checkpoint ({type(error).__name__}): delete it to train again"
            ) from error
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, ckpt_path=found, weights_only=True)
    except SystemExit as error:
        # Lightning turns Ctrl-C into an exit and leaves the signal ignored.
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's remarks on hardware and on data loading, which do not apply here."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
            warnings.filterwarnings("ignore", message=".*available but not used.*")
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
