"""Run tasks on a Ray cluster: a shard is a Ray task, and nothing but its result comes back.

What runs on the workers is `featurepress.engines.worker`. Ray runs the tasks of lost nodes and workers again; the
parts see to it that this changes nothing.
"""

from __future__ import annotations

import os
import pickle
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

from featurepress._version import __version__
from featurepress.engines.base import Task
from featurepress.engines.local import MAX_DEATHS
from featurepress.engines.master import require_answer
from featurepress.engines.memory import short_of_memory
from featurepress.engines.worker import packed, unmarked
from featurepress.errors import EngineError, WorkerDeathError
from featurepress.ledger import Plan

Result = TypeVar("Result")

_WAIT_SECONDS = 0.2  # for results, before new shards are looked for
_FOR_MEMORY = "let fewer run at once (ray start --num-cpus)"
_FEW_CORES = 2  # Ray may have none yet: nodes can still come


class Ray:
    """Tasks of a Ray cluster.

    Parameters
    ----------
    address : str, optional
        ``auto`` for the cluster of this machine, ``host:6379``, or ``ray://host:10001``. By default the one that
        this process is connected to already, or RAY_ADDRESS, else a cluster of this machine alone, which `close`
        shuts down.

    Raises
    ------
    EngineError
        There is no ray, or no answer from the address.
    """

    is_cluster = True

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._owns = False

    def __enter__(self) -> Ray:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Connect to the cluster, if this process is not."""
        self._connected()

    def run(
        self,
        task: Task[Result],
        plan: Plan,
        shards: Iterable[int],
        on_message: Callable[[Any], None] = lambda message: None,
    ) -> Generator[Result]:
        """Run `task` for each shard; see `Engine`."""
        run = _Run(self._connected(), packed(__version__, task, plan), shards, on_message)
        try:
            yield from run.results()
        finally:
            run.stop()

    def close(self) -> None:
        """Shut the cluster down, or leave it, if the connection was made here."""
        if self._owns:
            self._connected().shutdown()
            self._owns = False

    def _connected(self) -> Any:
        try:
            import ray
        except ImportError as error:
            raise EngineError(
                f"The engine 'ray' needs ray ({error}). Install it with: pip install 'featurepress[ray]'"
            ) from error
        if not ray.is_initialized():
            address = self._address or os.environ.get("RAY_ADDRESS", "")
            require_answer(address)
            quiet = {"log_to_driver": False, "configure_logging": True, "logging_level": "ERROR"}
            try:
                ray.init(address=address or "local", **quiet)  # by None, any that someone has started here
            except (OSError, RuntimeError, ValueError) as error:  # what ray.init raises
                first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                where = f" at '{address}'" if address else ""
                raise EngineError(f"There is no Ray cluster{where}: {first[:300]}") from error
            self._owns = True
        return ray


class _Run:
    """One run of a task: as many shards under way as keep all cores busy."""

    def __init__(self, ray: Any, work: bytes, shards: Iterable[int], on_message: Callable[[Any], None]) -> None:
        self._ray, self._on_message = ray, on_message
        self._work = ray.put(work)
        self._remote = ray.remote(num_cpus=1, max_retries=MAX_DEATHS, retry_exceptions=False)(_runner())
        self._shards = iter(shards)
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._free = threading.Semaphore(0)
        self._flights: dict[Any, int] = {}
        self._n_locations = 0
        self._all_taken = self._stopping = False
        self._taker = threading.Thread(target=self._take, name="featurepress-shards", daemon=True)

    def results(self) -> Iterator[Any]:
        """Yield the results as they come."""
        self._taker.start()
        while not self._all_taken or self._flights:
            self._make_locations()
            self._launch(wait=not self._flights)
            if self._flights:
                done, _ = self._ray.wait(list(self._flights), num_returns=1, timeout=_WAIT_SECONDS)
                for flight in done:
                    yield self._result(flight)

    def _make_locations(self) -> None:
        """Let two shards a core be under way, as nodes come and go."""
        wanted = 2 * max(_FEW_CORES, int(self._ray.cluster_resources().get("CPU", 0)))
        for _ in range(wanted - self._n_locations):
            self._free.release()
        self._n_locations = max(wanted, self._n_locations)

    def _launch(self, *, wait: bool) -> None:
        """Send out the shards that have come; with `wait` for one at least."""
        while True:
            try:
                kind, value = self._inbox.get(block=wait, timeout=_WAIT_SECONDS if wait else None)
            except queue.Empty:
                return
            if kind == "error":
                raise value
            if kind == "taken":
                self._all_taken = True
                return
            self._flights[self._remote.remote(self._work, value)] = value
            wait = False

    def _result(self, flight: Any) -> Any:
        shard = self._flights.pop(flight)
        self._free.release()
        try:
            kind, value = self._ray.get(flight)
        except self._ray.exceptions.RayError as error:
            if starved := short_of_memory(error, _FOR_MEMORY, where="the cluster"):
                raise starved from error
            first = str(error).strip().splitlines()[0]
            raise WorkerDeathError(
                f"Stopped at shard {shard}: Ray gave it up after {MAX_DEATHS + 1} tries: "
                f"{first[:300].rstrip('.')}. If workers were killed for memory, {_FOR_MEMORY}."
            ) from error
        if kind == "result":
            return pickle.loads(value)
        if kind == "missing":
            host, python, reason = value
            raise EngineError(
                f"The worker {host} cannot import featurepress ({reason}; its Python is '{python}'). Install it "
                "there, or send it along (runtime_env); docs/ray.md tells how."
            )
        raise unmarked(value, self._on_message) or WorkerDeathError(f"Stopped at shard {shard}: {value[:300]}")

    def stop(self) -> None:
        """Drop what is under way."""
        self._stopping = True
        self._free.release()
        for flight in self._flights:
            self._ray.cancel(flight, force=True)
        if self._taker.is_alive():
            self._taker.join()

    def _take(self) -> None:
        try:
            while True:
                self._free.acquire()
                if self._stopping or (shard := next(self._shards, None)) is None:
                    break
                self._inbox.put(("shard", shard))
            self._inbox.put(("taken", None))
        except BaseException as error:  # noqa: BLE001 - raised again where the results are taken
            self._inbox.put(("error", error))


def _runner() -> Callable[[bytes, int], tuple[str, Any]]:
    """Give the function that Ray runs; it travels by value, and can say where there is no featurepress."""
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
