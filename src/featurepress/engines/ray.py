"""Run tasks on a Ray cluster: each shard is a Ray task, and only its result is returned.

The workers run `featurepress.engines.worker`. Ray runs the tasks of lost nodes and workers again, which is harmless
because parts are created only if absent.
"""

from __future__ import annotations

import os
import pickle
import queue
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

from featurepress._version import __version__
from featurepress.engines.base import OnMessage, Task, ignore_message
from featurepress.engines.cluster import ClusterEngine, ShardTaker, first_line, missing_library
from featurepress.engines.local import MAX_DEATHS
from featurepress.engines.memory import short_of_memory
from featurepress.engines.preflight import require_answer
from featurepress.engines.worker import packed, unmarked
from featurepress.errors import EngineError, WorkerDeathError
from featurepress.ledger import Plan

Result = TypeVar("Result")

_WAIT_SECONDS = 0.2  # for results, before the next check for new shards
_FOR_MEMORY = "run fewer tasks at once (ray start --num-cpus)"
_MIN_CORES = 2  # assumed while Ray has none: nodes may be added later


class Ray(ClusterEngine):
    """A Ray cluster.

    Parameters
    ----------
    address : str, optional
        ``auto`` for the cluster of this machine, ``host:6379``, or ``ray://host:10001``. By default the cluster to
        which this process is connected, or RAY_ADDRESS, or a new cluster on this machine, which `close` shuts down.

    Raises
    ------
    EngineError
        Ray is not installed, or the address does not answer.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._owns = False

    def connect(self) -> None:
        """Connect to the cluster, if this process is not connected."""
        self._connected()

    def run(
        self, task: Task[Result], plan: Plan, shards: Iterable[int], on_message: OnMessage = ignore_message
    ) -> Generator[Result]:
        """Run `task` for each shard; see `Engine`."""
        run = _Run(self._connected(), packed(__version__, task, plan), shards, on_message)
        try:
            yield from run.results()
        finally:
            run.stop()

    def close(self) -> None:
        """Shut down or leave the cluster, if this object has connected to it."""
        if self._owns:
            self._connected().shutdown()
            self._owns = False

    def _connected(self) -> Any:
        try:
            import ray
        except ImportError as error:
            raise missing_library("ray", "ray", error) from error
        if not ray.is_initialized():
            address = self._address or os.environ.get("RAY_ADDRESS", "")
            require_answer(address)
            quiet = {"log_to_driver": False, "configure_logging": True, "logging_level": "ERROR"}
            try:
                ray.init(address=address or "local", **quiet)  # None would mean any cluster on this machine
            except (OSError, RuntimeError, ValueError) as error:  # what ray.init raises
                where = f" at '{address}'" if address else ""
                raise EngineError(f"There is no Ray cluster{where}: {first_line(error)}.") from error
            self._owns = True
        return ray


class _Run:
    """One run of a task, with enough shards in progress to keep all cores busy."""

    def __init__(self, ray: Any, work: bytes, shards: Iterable[int], on_message: OnMessage) -> None:
        self._ray, self._on_message = ray, on_message
        self._work = ray.put(work)
        self._remote = ray.remote(num_cpus=1, max_retries=MAX_DEATHS, retry_exceptions=False)(_runner())
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._in_progress: dict[Any, int] = {}
        self._n_slots = 0
        self._all_listed = False
        self._taker = ShardTaker(shards, self._inbox)

    def results(self) -> Iterator[Any]:
        """Yield the results as they are ready."""
        while not self._all_listed or self._in_progress:
            self._add_slots()
            self._launch(wait=not self._in_progress)
            if self._in_progress:
                done, _ = self._ray.wait(list(self._in_progress), num_returns=1, timeout=_WAIT_SECONDS)
                for future in done:
                    yield self._result(future)

    def _add_slots(self) -> None:
        """Allow two shards in progress per core, as nodes are added."""
        n_slots = 2 * max(_MIN_CORES, int(self._ray.cluster_resources().get("CPU", 0)))
        if n_slots > self._n_slots:
            self._taker.add_slots(n_slots - self._n_slots)
            self._n_slots = n_slots

    def _launch(self, *, wait: bool) -> None:
        """Start the tasks of the listed shards; with `wait`, wait for at least one."""
        while True:
            try:
                kind, value = self._inbox.get(block=wait, timeout=_WAIT_SECONDS if wait else None)
            except queue.Empty:
                return
            if kind == "error":
                raise value
            if kind == "taken":
                self._all_listed = True
                return
            self._in_progress[self._remote.remote(self._work, value)] = value
            wait = False

    def _result(self, future: Any) -> Any:
        shard = self._in_progress.pop(future)
        self._taker.add_slots()
        try:
            kind, value = self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            if starved := short_of_memory(error, _FOR_MEMORY, where="the cluster"):
                raise starved from error
            raise WorkerDeathError(
                f"Stopped at shard {shard}: Ray stopped after {MAX_DEATHS + 1} tries: {first_line(error)}. "
                f"If workers were killed for memory, {_FOR_MEMORY}."
            ) from error
        if kind == "result":
            return pickle.loads(value)
        if kind == "missing":
            host, python, reason = value
            raise EngineError(
                f"The worker {host} cannot import featurepress ({reason}; its Python is '{python}'). Install it "
                "there, or send it with the job (runtime_env): see docs/ray.md."
            )
        raise unmarked(value, self._on_message) or WorkerDeathError(f"Stopped at shard {shard}: {value[:300]}")

    def stop(self) -> None:
        """Drop the shards in progress."""
        self._taker.stop()
        for future in self._in_progress:
            self._ray.cancel(future, force=True)
        self._taker.join()


def _runner() -> Callable[[bytes, int], tuple[str, Any]]:
    """Return the function that Ray runs. It is pickled by value, to report a worker without featurepress."""
    for_memory = _FOR_MEMORY

    def embed_a_shard(work: bytes, shard: int) -> tuple[str, Any]:
        import socket
        import sys

        try:
            from featurepress.engines import worker
        except ImportError as error:
            return "missing", (socket.gethostname(), sys.executable, str(error))
        try:
            ((_, result),) = worker.outcomes(work, [shard], 1, for_memory)
        except RuntimeError as error:
            return "error", str(error)
        return "result", result

    return embed_a_shard
