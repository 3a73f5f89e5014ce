"""The code that the engines of clusters share."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Self

from featurepress.errors import EngineError


class ClusterEngine(ABC):
    """An engine whose tasks run on other machines."""

    is_cluster = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm_up(self, n_workers: int) -> int:
        """Do nothing: the cluster starts its workers."""
        return 1

    @abstractmethod
    def close(self) -> None:
        """Leave the cluster."""


class ShardTaker:
    """Takes shards from an iterable in another thread, at most as many as there are slots.

    It puts ``("shard", number)``, at the end ``("taken", None)``, and ``("error", exception)`` into `inbox`.
    """

    def __init__(self, shards: Iterable[int], inbox: queue.SimpleQueue[tuple[str, Any]], n_slots: int = 0) -> None:
        self._shards, self._inbox = iter(shards), inbox
        self._slots = threading.Semaphore(n_slots)
        self._stopping = False
        self._thread = threading.Thread(target=self._take, name="featurepress-shards", daemon=True)
        self._thread.start()

    def add_slots(self, n: int = 1) -> None:
        """Allow `n` further shards."""
        self._slots.release(n)

    def stop(self) -> None:
        """Take no further shards."""
        self._stopping = True
        self._slots.release()

    def join(self) -> None:
        """Wait until the thread has ended, after `stop`."""
        self._thread.join()

    def _take(self) -> None:
        try:
            while True:
                self._slots.acquire()
                if self._stopping or (shard := next(self._shards, None)) is None:
                    break
                self._inbox.put(("shard", shard))
            self._inbox.put(("taken", None))
        except BaseException as error:  # noqa: BLE001 - raised again by the reader of the inbox
            self._inbox.put(("error", error))


def first_line(error: BaseException) -> str:
    """Return the start of an error's message, for a message of one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()[:300].rstrip(".")


def missing_library(engine: str, library: str, error: ImportError) -> EngineError:
    """Return the error for an engine whose library is not installed."""
    return EngineError(
        f"The engine '{engine}' needs {library} ({error}). Install it with: pip install 'featurepress[{engine}]'"
    )
