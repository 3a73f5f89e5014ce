"""Run tasks in worker processes on this machine.

One process per core, each with one shard at a time. They share no interpreter lock, and an image that kills its
process delays one shard only.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from featurepress.engines.base import OnMessage, Task, ignore_message
from featurepress.engines.memory import short_of_memory
from featurepress.errors import SettingError, WorkerDeathError
from featurepress.ledger import Plan
from featurepress.process import Child, ChildDiedError

Result = TypeVar("Result")

MAX_DEATHS = 5  # of processes with the same shard; the third attempt embeds its images one by one


class LocalEngine:
    """Worker processes on this machine, which stay between runs.

    Parameters
    ----------
    workers : int
        Number of processes, each started when it is first needed.
    silence_seconds : float
        A worker that sends no message for this time is killed, which counts as a death.
    preload : sequence of str
        Modules that a new worker imports at its start.
    for_memory : str
        What the user can do when workers run out of memory; part of the error message.
    """

    is_cluster = False

    def __init__(
        self,
        workers: int,
        *,
        silence_seconds: float = 150.0,
        preload: Sequence[str] = (),
        for_memory: str = "set --memory-bytes or lower --workers",
    ) -> None:
        if workers < 1:
            raise SettingError(f"The 'workers' setting must be an integer of at least 1. Got {workers!r}.")
        self.workers = workers
        self.preload = preload
        self.for_memory = for_memory
        self.silence_seconds = silence_seconds
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Do nothing: workers start when they are needed."""

    def run(
        self, task: Task[Result], plan: Plan, shards: Iterable[int], on_message: OnMessage = ignore_message
    ) -> Generator[Result]:
        """Run `task` for each shard; see `Engine`."""
        run = _Run(self, task, plan, shards, on_message)
        try:
            yield from run.results()
        finally:
            run.stopping = True
            if run.n_alive:
                self._close_busy()
            run.join()

    def close(self) -> None:
        """End all workers."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        self._close_busy()
        _close_all(idle)

    def warm_up(self, n_workers: int) -> int:
        """Start up to `n_workers` workers now; return how many there are then, at most `n_workers`."""
        n_workers = min(n_workers, self.workers)
        with self._lock:
            missing = n_workers - len(self._idle) - len(self._busy)
            self._idle += [Child(self.preload) for _ in range(missing)]
        return n_workers

    def acquire(self) -> Child:
        """Return an idle worker, or a new one."""
        with self._lock:
            if self._closed:
                raise WorkerDeathError("The engine is closed.")
            while self._idle and not self._idle[-1].is_ready:
                self._idle.pop().close()
            child = self._idle.pop() if self._idle else Child(self.preload)
            self._busy.add(child)
            return child

    def release(self, child: Child) -> None:
        """Keep a worker for later; close it if it has died or its call was abandoned."""
        with self._lock:
            self._busy.discard(child)
            if child.is_ready and not self._closed:
                self._idle.append(child)
                return
        child.close(patience_seconds=0.5)

    def _close_busy(self) -> None:
        with self._lock:
            busy = list(self._busy)
        _close_all(busy)


def _close_all(children: list[Child]) -> None:
    closers = [threading.Thread(target=child.close) for child in children]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()


class _Run:
    """One run of a task, with a thread for each worker, which takes shards and waits for the process."""

    def __init__(
        self,
        engine: LocalEngine,
        task: Task[Any],
        plan: Plan,
        shards: Iterable[int],
        on_message: OnMessage,
    ) -> None:
        self.engine, self.task, self.plan, self.on_message = engine, task, plan, on_message
        self.stopping = False
        self._shards = iter(shards)
        self._taking = threading.Lock()
        self._outbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.n_alive = engine.workers
        self._threads = [
            threading.Thread(target=self._drive, name="featurepress-worker", daemon=True)
            for _ in range(engine.workers)
        ]

    def results(self) -> Iterator[Any]:
        for thread in self._threads:
            thread.start()
        while self.n_alive:
            kind, value = self._outbox.get()
            if kind == "end":
                self.n_alive -= 1
            elif kind == "error":
                raise value
            else:
                yield value

    def join(self) -> None:
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _drive(self) -> None:
        try:
            while (shard := self._next()) is not None and not self.stopping:
                self._outbox.put(("result", self._run_shard(shard)))
        except BaseException as error:  # noqa: BLE001 - raised again by the iterator
            self._outbox.put(("error", short_of_memory(error, self.engine.for_memory) or error))
        finally:
            self._outbox.put(("end", None))

    def _next(self) -> int | None:
        with self._taking:
            return None if self.stopping else next(self._shards, None)

    def _run_shard(self, shard: int) -> Any:
        max_deaths = getattr(self.task, "max_deaths", MAX_DEATHS)
        for n_deaths in range(1, max_deaths + 1):
            child = self.engine.acquire()
            try:
                if self.stopping:  # the busy workers were closed before this one was among them
                    raise WorkerDeathError(f"Stopped before shard {shard}.")
                return child.call(
                    self.task,
                    self.plan,
                    shard,
                    silence_seconds=self.engine.silence_seconds,
                    on_message=self.on_message,
                )
            except ChildDiedError as death:
                if self.stopping or n_deaths == max_deaths:
                    raise WorkerDeathError(
                        f"Stopped at shard {shard}: its worker process {death}, {n_deaths} "
                        f"time{'s' if n_deaths > 1 else ''}. If memory ran out, {self.engine.for_memory}."
                    ) from None
            finally:
                self.engine.release(child)
        raise AssertionError("unreachable")
