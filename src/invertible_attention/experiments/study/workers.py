"""Where the cells of a study are computed: in this process, in others of this machine, or on a cluster."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from typing import Any

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

from ..errors import ExperimentError
from ..packages import require

__all__ = ["Workers"]

PATIENCE = 30
"""Seconds until a scheduler that does not answer is given up."""

KILLED = "a worker's process was killed, for memory perhaps: continue with --resume and fewer --workers"


@dataclass(frozen=True)
class Workers:
    """How many cells are computed at once, and where.

    Args:
        count: processes, each with one thread if there are several; ``None`` for one, or all of a cluster's.
        cluster: address of a Dask scheduler, ``dask://host:port``, or of Ray's client server, ``ray://host:port``. The
            workers need this package and the folder of the study under the same path; those of Dask a process for
            each thread (``dask worker --nthreads 1``).

    Raises:
        ExperimentError: for a count below one, or a cluster of another kind.
    """

    count: int | None = None
    cluster: str | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ExperimentError(f"the number of workers must be at least 1, got {self.count}")
        if self.cluster is not None and not self.cluster.startswith(("dask://", "ray://")):
            raise ExperimentError(
                f"a cluster is given as dask://HOST:PORT or ray://HOST:PORT, got {self.cluster!r}"
            )

    @property
    def local(self) -> bool:
        """Whether cells are computed in this process, one after another."""
        return self.cluster is None and self.count in (None, 1)

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield the result of ``function`` for all arguments, as they come.

        Raises:
            ExperimentError: when the cluster cannot be reached, or a worker's process dies.
        """
        if self.cluster is not None and self.cluster.startswith("ray://"):
            yield from _map_on_ray(self.cluster, self.count, function, arguments)
            return
        with self._backend():
            calls = Parallel(return_as="generator_unordered")
            try:
                yield from calls(delayed(function)(*given) for given in arguments)  # pyright: ignore[reportGeneralTypeIssues]
            except TerminatedWorkerError as error:
                raise ExperimentError(KILLED) from error

    @contextmanager
    def _backend(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self.cluster is not None:
                stack.enter_context(_dask(self.cluster))
                stack.enter_context(parallel_config(backend="dask", n_jobs=self.count or -1))
            elif self.local:
                stack.enter_context(parallel_config(backend="sequential", n_jobs=1))
            else:
                stack.enter_context(
                    parallel_config(backend="loky", n_jobs=self.count, inner_max_num_threads=1)
                )
                # Given in the thread that keeps the processes: as an error it would end that, and no result would come.
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
            yield


def _dask(cluster: str) -> Any:
    """Return a client of a Dask scheduler, closed at the end of the context."""
    require("cluster", "distributed")
    from distributed import Client

    address = cluster.removeprefix("dask://")
    try:
        return Client(f"tcp://{address}", timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise ExperimentError(f"there is no Dask scheduler at {address} ({error})") from error


def _map_on_ray(
    cluster: str, count: int | None, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]
) -> Iterator[Any]:
    """Do the same on a Ray cluster, with a processor for each; its backend for joblib gives nothing before the end."""
    require("ray", "ray")
    ray: Any = import_module("ray")
    try:
        client = ray.init(cluster)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise ExperimentError(f"no Ray cluster answers at {cluster} ({reason})") from error
    with client:
        task = ray.remote(num_cpus=1, max_retries=0)(function)
        left = iter(arguments)
        running = [task.remote(*given) for given in islice(left, count)]
        try:
            while running:
                (done,), running = ray.wait(running)
                yield ray.get(done)
                running += [task.remote(*given) for given in islice(left, 1)]
        except (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.NodeDiedError,
        ) as error:
            raise ExperimentError(KILLED) from error
