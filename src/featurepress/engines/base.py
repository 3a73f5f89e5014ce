"""What an engine is: it runs a task over shard numbers, somewhere.

An engine knows nothing of pixels. A task is any importable, picklable callable of a plan and a shard number;
embedding a shard is one, and exporting a part is another. Shards are independent and a task may be run more than
once for the same shard (the parts see to it that this changes nothing), so an engine is free to retry.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol, TypeVar

from featurepress.ledger import Plan

Result = TypeVar("Result", covariant=True)  # noqa: PLC0105 - everybody knows it by this name


class Task(Protocol[Result]):
    """An importable, picklable callable over shards."""

    def __call__(self, plan: Plan, shard: int) -> Result:
        """Do the work of one shard and give what is to be known of it."""


class Engine(Protocol):
    """Runs tasks."""

    @property
    def is_cluster(self) -> bool:
        """Whether tasks may run on other machines, to which the model must be brought."""

    def connect(self) -> None:
        """Make sure that there is somebody to run tasks; raise EngineError otherwise. May be called again."""

    def run(
        self,
        task: Task[Result],
        plan: Plan,
        shards: Iterable[int],
        on_message: Callable[[Any], None] = lambda message: None,
    ) -> Generator[Result]:
        """Run `task` for each shard; yield the results in the order in which they come.

        Closing the generator drops the shards in flight.

        Parameters
        ----------
        task : Task
            Pickled by reference.
        plan : Plan
            Handed to the task.
        shards : iterable of int
            May still be growing while the first ones run: it is taken from in another thread, as far as there
            is somebody free to work.
        on_message : callable
            Called with whatever the task sends by `process.send_message`, where the engine receives it.

        Raises
        ------
        WorkerDeathError
            The processes that run a shard die again and again.
        Exception
            Whatever the task raised; the shards in flight are dropped.
        """

    def close(self) -> None:
        """Give back all processes; shards in flight are dropped."""
