"""The storage protocol: named objects below one root, in a folder or a bucket.

An object appears complete or not at all. `create` makes a part exactly once: of any number of attempts, in any
processes, one succeeds and the others return False. `replace` does the same for a new version of an object: it
succeeds only if the object still has the version that was read.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar

from featurepress.errors import FeatureSetError

Item = TypeVar("Item")
Result = TypeVar("Result")
Data = bytes | memoryview | Iterable[bytes]  # an iterable: consecutive pieces


class Entry(NamedTuple):
    """An object: its name below the root, its size in bytes, and its version, which changes with the content.

    The version is that of `Storage.stat`. Listings of some stores leave it empty.
    """

    name: str
    size: int
    version: str


class Storage(Protocol):
    """Named objects below one root. Instances are small and picklable; they open connections when needed.

    Names use ``/``. Readers never see an incomplete object. Every method raises StorageError with a message of one
    line if the storage refuses.
    """

    @property
    def location(self) -> str:
        """The root, as shown in messages."""

    @property
    def is_remote(self) -> bool:
        """Whether every call is a network request."""

    @property
    def is_conditional(self) -> bool:
        """Whether `create` and `replace` are safe between processes. False once a condition was refused."""

    def prepare(self) -> None:
        """Prepare the root for writing. The driver calls this once, before the first write."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below the folder `prefix` ("" for all), in byte order of their names."""

    def stat(self, name: str) -> Entry | None:
        """Return name, size and version of the object. None if there is none."""

    def read(self, name: str) -> bytes | None:
        """Return the bytes of the object. None if there is none."""

    def open(self, name: str) -> BinaryIO:
        """Open the object for reading at any position.

        All reads return data of one version. If the object was replaced and the rest of the old version is not
        available, ReplacedError is raised. If there is no object, the StorageError is raised from a
        FileNotFoundError.
        """

    def open_version(self, name: str) -> tuple[BinaryIO, str]:
        """Open the object, and return the file and its version, for `replace`."""

    def write(self, name: str, data: Data) -> None:
        """Create or replace the object."""

    def create(self, name: str, data: Data, *, durable: bool = True) -> bool:
        """Create the object only if there is none. Return whether this call created it.

        With `durable`, the object survives a power cut once this returns. Without, which is faster on disk, it may
        be missing or empty after a power cut: for objects that can be rebuilt.
        """

    def replace(self, name: str, data: Data, version: str) -> bool:
        """Replace the object only if it still has this `version`. Return whether this call replaced it.

        The new version survives a power cut once this returns.
        """

    def stream(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Yield a file to write a large object, which appears when the block ends without error."""

    def sync(self, prefix: str) -> None:
        """Make all objects below the folder `prefix` survive a power cut."""

    def delete(self, name: str) -> None:
        """Delete the object, if it exists."""


def pieces(data: Data) -> Iterable[bytes | memoryview]:
    """Return data as an iterable."""
    return [data] if isinstance(data, bytes | memoryview) else data


def run_concurrently(storage: Storage, *calls: Callable[[], Any]) -> list[Any]:
    """Run functions and return their results: concurrently for a remote storage, else one after the other."""
    return list(map_concurrently(storage, lambda call: call(), calls))


def map_concurrently(storage: Storage, call: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield the result of `call` for each item, in order. For a remote storage, calls run concurrently."""
    if not storage.is_remote:
        yield from map(call, items)
        return
    with ThreadPoolExecutor(_AHEAD, "featurepress-storage") as pool:
        waiting: collections.deque[Future[Result]] = collections.deque()
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) == 2 * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_AHEAD = 32


@contextlib.contextmanager
def reporting_damage(storage: Storage, name: str) -> Iterator[None]:
    """Raise FeatureSetError with the name of the object if a reader inside the block cannot parse it."""
    try:
        yield
    except (ValueError, OSError, KeyError) as error:  # Arrow's errors are ValueErrors and OSErrors
        reason = " ".join(str(error).split())
        raise FeatureSetError(
            f"'{storage.location}/{name}' is damaged: {reason}. Restore it, or embed into a new folder."
        ) from error
