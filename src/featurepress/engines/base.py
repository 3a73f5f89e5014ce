"""The protocols of engines and tasks.

An engine runs a task for shard numbers, on this machine or elsewhere; it does not depend on pixels. A task is an
importable, picklable callable of a plan and a shard number, which embeds the shard or exports a file. Shards are
independent, and parts are created only if absent. An engine may therefore run a task again for the same shard.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol, TypeVar

from featurepress.ledger import Plan

Result = TypeVar("Result", covariant=True)  # noqa: PLC0105 - the usual name
OnMessage = Callable[[Any], None]


def ignore_message(message: Any) -> None:
    """Do nothing."""


class Task(Protocol[Result]):
    """An importable, picklable callable of a plan and a shard."""

    def __call__(self, plan: Plan, shard: int) -> Result:
        """Process one shard and return the result."""


class Engine(Protocol):
    """Runs tasks."""

    @property
    def is_cluster(self) -> bool:
        """Whether tasks may run on other machines, which need the model at the destination."""

    def connect(self) -> None:
        """Connect to the cluster, if that has not been done. Raise EngineError if there is none."""

    def warm_up(self, n_workers: int) -> int:
        """Start up to `n_workers` workers before their first shards, where that saves time.

        Returns
        -------
        int
            Workers that start at the same time and can share a small task; 1 if the engine starts none ahead.
        """

    def run(
        self, task: Task[Result], plan: Plan, shards: Iterable[int], on_message: OnMessage = ignore_message
    ) -> Generator[Result]:
        """Run `task` for each shard; yield the results as they are ready, in any order.

        Closing the generator drops the shards in progress.

        Parameters
        ----------
        task : Task
            Pickled by reference.
        plan : Plan
            Passed to the task.
        shards : iterable of int
            Taken in another thread, only as workers become free: it may still grow while the first shards run.
        on_message : callable
            Called with each message that the task sends by `process.send_message`, where the engine receives it.

        Raises
        ------
        WorkerDeathError
            The processes that run a shard died too often.
        Exception
            The exception that the task raised; the shards in progress are dropped.
        """

    def close(self) -> None:
        """End all processes; drop the shards in progress."""
