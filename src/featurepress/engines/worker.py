"""What runs in a worker process of a cluster: shards of a task, in child processes that are kept between them.

A cluster's worker is no place to embed in: it may have been forked, its allocator is set for other things, and a
picture that kills it takes a stage of the job with it. Each worker therefore has a small local engine of its own,
and a shard meets the same process on a cluster as on a laptop: that is why its bits are the same. The engine stays
for as long as the worker does, so that a model is loaded once however many shards, jobs and runs come by; it goes
when the worker goes, however that ends.

What is wrong travels back as an exception of ours, with the name of the host at which it happened.
"""

from __future__ import annotations

import base64
import functools
import pickle
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from featurepress import ledger
from featurepress._version import __version__
from featurepress.engines.base import Task
from featurepress.engines.local import MAX_DEATHS, LocalEngine
from featurepress.engines.memory import short_of_memory
from featurepress.errors import EngineError, FeaturepressError, WorkerDeathError
from featurepress.ledger import Plan
from featurepress.process import portable

GRACE_SECONDS = 30  # a child waits so long for the child to which it leaves a suspect image
_MARK = re.compile(r"<featurepress ([\w+/=]+)>")


@dataclass(frozen=True)
class Named:
    """A task that gives each result with its shard."""

    task: Task[Any]

    @property
    def max_deaths(self) -> int:
        """As the task wants it."""
        return getattr(self.task, "max_deaths", MAX_DEATHS)

    def __call__(self, plan: Plan, shard: int) -> tuple[int, Any]:
        """Run the task."""
        return shard, self.task(plan, shard)


def packed(version: str, task: Task[Any], plan: Plan) -> bytes:
    """Give what a worker needs for any shards, with the version of whoever sends it in front."""
    return version.encode() + b"\n" + pickle.dumps((task, plan), protocol=5)


def run_shards(
    work: bytes, shards: Sequence[int], cores: int = 1, for_memory: str = ""
) -> Iterator[tuple[int, Any]]:
    """Run a packed task for some shards, on some cores; yield each shard with its result as it comes.

    Parameters
    ----------
    work : bytes
        What `packed` gave.
    shards : sequence of int
        Their numbers.
    cores : int
        Processes that run them.
    for_memory : str
        What people are told to do where these die of too little memory.

    Raises
    ------
    EngineError
        This worker has another version, or cannot see the plan.
    Exception
        Whatever the task raised; errors of ours say on which host.
    """
    last_message: dict[int, Any] = {}

    def on_message(message: Any) -> None:
        if message[0] == "at":
            last_message[message[1]] = message

    try:
        task, plan = _unpacked(work)
        if getattr(task, "reads_plan", True):
            _require_sight(plan)
        silence_seconds = plan.settings.images.silence_seconds + GRACE_SECONDS
        yield from _engine(cores, silence_seconds, for_memory).run(Named(task), plan, shards, on_message)
    except FeaturepressError as error:
        if isinstance(error, EngineError):
            raise
        told = type(error)(f"{str(error).rstrip('.')} (on the worker {socket.gethostname()}).")
        if isinstance(told, WorkerDeathError):
            told.last_message = tuple(last_message.values())
        raise told from error


def outcomes(work: bytes, shards: Sequence[int], cores: int, for_memory: str) -> list[tuple[int, bytes]]:
    """Run a packed task for some shards; give each with its pickled result; raise what `unmarked` understands."""
    try:
        results = run_shards(work, shards, cores, for_memory)
        return [(shard, pickle.dumps(result, protocol=5)) for shard, result in results]
    except Exception as error:  # noqa: BLE001 - raised again in the driver
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


def _require_sight(plan: Plan) -> None:
    """Raise EngineError unless this worker finds the plan where the driver has put it."""
    _find_plan(plan)


@functools.lru_cache(maxsize=8)
def _find_plan(plan: Plan) -> None:
    host, location = socket.gethostname(), plan.storage.location
    try:
        found = ledger.read_generation(plan.storage, plan.generation)
    except FeaturepressError as error:
        raise EngineError(f"The worker {host} cannot see '{location}': {error}") from error
    if found is None or found.run_id != plan.run_id:
        what = "nothing" if found is None else "another plan"
        raise EngineError(
            f"The worker {host} cannot see '{location}': there is {what} where the driver has put the plan. Give a "
            "bucket, or a folder that is mounted at the same path on every machine, and resume."
        )


@functools.cache
def _engine(cores: int, silence_seconds: float, for_memory: str) -> LocalEngine:
    preload = ("featurepress.embedding.shard",)
    return LocalEngine(cores, silence_seconds=silence_seconds, preload=preload, for_memory=for_memory)


# -- how errors travel ---------------------------------------------------------------------------------------


def marked(error: Exception) -> str:
    """Give a text from which `unmarked` makes the exception again, wherever it is quoted."""
    return f"<featurepress {base64.b64encode(pickle.dumps(portable(error))).decode()}>"


def unmarked(text: str, on_message: Callable[[Any], None] = lambda message: None) -> Exception | None:
    """Give the exception that a text quotes, or None; tell what its worker said last."""
    match = _MARK.search(text)
    error = pickle.loads(base64.b64decode(match[1])) if match else None
    if isinstance(error, WorkerDeathError):
        for message in error.last_message:
            on_message(message)
    return error if isinstance(error, Exception) else None
