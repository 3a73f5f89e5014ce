"""Run the shards of a task in a worker process of a cluster.

The worker itself does not embed: it may have been forked, its allocator has other settings, and an image that kills
it would fail a stage of the job. Instead, each worker has a small local engine. A shard then runs in the same kind
of process on a cluster as on a laptop, with the same results. The engine exists as long as the worker, so that a
model is loaded once for all shards, jobs and runs.

Errors return to the driver as exceptions of this library, with the name of the host.
"""

from __future__ import annotations

import base64
import functools
import pickle
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from featurepress import ledger
from featurepress._version import __version__
from featurepress.engines.base import OnMessage, Task, ignore_message
from featurepress.engines.local import MAX_DEATHS, LocalEngine
from featurepress.engines.memory import short_of_memory
from featurepress.errors import EngineError, FeaturepressError, WorkerDeathError
from featurepress.ledger import Plan
from featurepress.process import portable

GRACE_SECONDS = 30  # a child waits this long for the child that takes over a suspect image
_MARK = re.compile(r"<featurepress ([\w+/=]+)>")


@dataclass(frozen=True)
class WithShard:
    """A task that returns each result with its shard."""

    task: Task[Any]

    @property
    def max_deaths(self) -> int:
        """That of the task."""
        return getattr(self.task, "max_deaths", MAX_DEATHS)

    def __call__(self, plan: Plan, shard: int) -> tuple[int, Any]:
        """Run the task."""
        return shard, self.task(plan, shard)


def packed(version: str, task: Task[Any], plan: Plan) -> bytes:
    """Return the version of this driver, the task and the plan, as bytes for a worker."""
    return version.encode() + b"\n" + pickle.dumps((task, plan), protocol=5)


def run_shards(
    work: bytes, shards: Sequence[int], cores: int = 1, for_memory: str = ""
) -> Iterator[tuple[int, Any]]:
    """Run a packed task for shards, in as many processes as `cores`; yield each shard with its result.

    Raises
    ------
    EngineError
        This worker has another version, or cannot read the plan.
    Exception
        The exception that the task raised; errors of this library name the host.
    """
    last_message: dict[int, Any] = {}

    def on_message(message: Any) -> None:
        if message[0] == "at":
            last_message[message[1]] = message

    try:
        task, plan = _unpacked(work)
        if getattr(task, "reads_plan", True):
            _require_visible_plan(plan)
        silence_seconds = plan.settings.images.silence_seconds + GRACE_SECONDS
        yield from _engine(cores, silence_seconds, for_memory).run(WithShard(task), plan, shards, on_message)
    except FeaturepressError as error:
        if isinstance(error, EngineError):
            raise
        with_host = type(error)(f"{str(error).rstrip('.')} (on the worker {socket.gethostname()}).")
        if isinstance(with_host, WorkerDeathError):
            with_host.last_message = tuple(last_message.values())
        raise with_host from error


def outcomes(work: bytes, shards: Sequence[int], cores: int, for_memory: str) -> list[tuple[int, bytes]]:
    """Run a packed task for shards; return each with its pickled result. Raise errors that `unmarked` can read."""
    try:
        results = run_shards(work, shards, cores, for_memory)
        return [(shard, pickle.dumps(result, protocol=5)) for shard, result in results]
    except Exception as error:  # noqa: BLE001 - raised again by the driver
        raise RuntimeError(marked(short_of_memory(error, for_memory) or error)) from None


def _unpacked(work: bytes) -> tuple[Task[Any], Plan]:
    version, _, pickled = work.partition(b"\n")
    if version.decode() != __version__:
        raise EngineError(
            f"The worker {socket.gethostname()} has featurepress {__version__}, and the driver {version.decode()}. "
            "Install the same version everywhere."
        )
    task, plan = pickle.loads(pickled)
    return task, plan


@functools.lru_cache(maxsize=8)
def _require_visible_plan(plan: Plan) -> None:
    """Raise EngineError unless this worker can read the plan that the driver has written."""
    problem = f"The worker {socket.gethostname()} cannot see '{plan.storage.location}'"
    try:
        found = ledger.read_generation(plan.storage, plan.generation)
    except FeaturepressError as error:
        raise EngineError(f"{problem}: {error}") from error
    if found is None or found.run_id != plan.run_id:
        content = "nothing" if found is None else "another plan"
        raise EngineError(
            f"{problem}: it finds {content} in place of the plan. Use a bucket, or a folder that is mounted at the "
            "same path on every machine, and resume."
        )


@functools.cache
def _engine(cores: int, silence_seconds: float, for_memory: str) -> LocalEngine:
    return LocalEngine(
        cores, silence_seconds=silence_seconds, preload=("featurepress.embedding.shard",), for_memory=for_memory
    )


# -- errors as text ------------------------------------------------------------------------------------------


def marked(error: Exception) -> str:
    """Return a text from which `unmarked` restores the exception, even when another error quotes it."""
    return f"<featurepress {base64.b64encode(pickle.dumps(portable(error))).decode()}>"


def unmarked(text: str, on_message: OnMessage = ignore_message) -> Exception | None:
    """Return the exception in a text, or None; pass on the last messages of its worker."""
    match = _MARK.search(text)
    error = pickle.loads(base64.b64decode(match[1])) if match else None
    if isinstance(error, WorkerDeathError):
        for message in error.last_message:
            on_message(message)
    return error if isinstance(error, Exception) else None
