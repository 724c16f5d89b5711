"""Writing files atomically, and reading them with errors that name the file."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ExperimentError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "atomic_path",
    "finite",
    "read_json",
    "read_tensors",
    "remove_unfinished",
    "write_bytes",
    "write_json",
    "write_tensors",
    "write_text",
]

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
"""What a disk answers that is full, failing or not ours."""

WRITERS = ("PytorchStreamWriter", "unexpected pos", "I/O error")
"""How torch and safetensors say that their file could not be written: not with an OSError."""

UNFINISHED = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}(?P<suffix>\.[^.]+)")
"""What :func:`atomic_path` calls a file until it is whole."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path`` that takes its place when the block ends without an error.

    Readers see the old file or the whole new one, also after a crash or a full disk.

    Args:
        path: the file to replace or create; its folder is made if absent.

    Raises:
        ExperimentError: naming the file, when the disk is full or refuses; the old file is kept.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_path(folder / "note.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> (folder / "note.txt").read_text(), len(list(folder.iterdir()))
        ('whole', 1)
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; results are to be read by others, within the user's umask.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except Exception as error:
        if reason := _disk_error(error):
            raise ExperimentError(
                f"cannot write {path} ({reason}): fix that and continue with --resume"
            ) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path, *, leave: str | None = None) -> None:
    """Delete what processes that were killed had begun to write anywhere under ``folder``, but for one entry of it.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".training.ckpt.ga60p8a_.ckpt").touch()
        >>> (folder / "training.ckpt").touch()
        >>> remove_unfinished(folder)
        >>> [path.name for path in folder.iterdir()]
        ['training.ckpt']
    """
    for path in folder.rglob(".*"):
        found = UNFINISHED.fullmatch(path.name)
        if path.relative_to(folder).parts[0] == leave:
            continue
        if found and path.is_file() and found["name"].endswith(found["suffix"]):
            path.unlink(missing_ok=True)


def _disk_error(error: Exception) -> str | None:
    """Return what the disk said, ``None`` for an error of another kind."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in DISK else None
    message = str(error).strip().partition("\n")[0]
    return message if any(writer in message for writer in WRITERS) else None


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write ``content`` to ``path`` in UTF-8, whole or not at all."""
    write_bytes(path, content.encode())


def finite(value: float | Tensor) -> float | None:
    """Return a scalar as JSON has it: ``None`` where it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else None


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` as strict JSON, whole or not at all.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON from ``path``.

    Raises:
        ExperimentError: naming the file, when it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ExperimentError(f"{path} is damaged ({error}): delete it and run again") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata=metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of safetensors; no code in it is run.

    Raises:
        ExperimentError: naming the file, when it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ExperimentError(f"there is no file {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ExperimentError(f"{path} is damaged or not a file of weights ({error})") from error
