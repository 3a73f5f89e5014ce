"""What a storage is: named objects below one root, in a folder or a bucket.

An object appears under its name complete or not at all. `create` is what makes a part exactly once: of any
number of attempts, in any processes, one succeeds and the others learn that they lost. `replace` does the same
for a new version of an object: it succeeds only over the version that was read.
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
Data = bytes | memoryview | Iterable[bytes]  # an iterable: pieces that follow one another


class Entry(NamedTuple):
    """One object: its name below the storage's root, its bytes, and what changes when they may have changed.

    The version is what `Storage.stat` gives; listings of some stores leave it out.
    """

    name: str
    size: int
    version: str


class Storage(Protocol):
    """Named objects below one root. Instances are small, picklable, and open what they need by themselves.

    Names use ``/``. Objects are whole: readers never see half of one. Every method raises StorageError with
    one line for people where the storage refuses.
    """

    @property
    def location(self) -> str:
        """The root, for people."""

    @property
    def is_remote(self) -> bool:
        """Whether every call is a request over a network."""

    @property
    def is_conditional(self) -> bool:
        """Whether `create` and `replace` are known to be safe between processes; False once a store refuses."""

    def prepare(self) -> None:
        """Make the root ready for writing; the driver calls this once, before anything is written."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below the folder `prefix` ("" for all), in byte order of their names."""

    def stat(self, name: str) -> Entry | None:
        """Give what a listing would say of the object now, or None if there is none."""

    def read(self, name: str) -> bytes | None:
        """Give the object's bytes, or None if there is none."""

    def open(self, name: str) -> BinaryIO:
        """Open the object for reading at any position.

        All that is read is of one version: where an object that is replaced meanwhile cannot be read on,
        ReplacedError is raised. Where there is none, the StorageError is raised from a FileNotFoundError.
        """

    def open_version(self, name: str) -> tuple[BinaryIO, str]:
        """Open the object, and give the version of what was opened, for `replace`."""

    def write(self, name: str, data: Data) -> None:
        """Create or replace the object, whole."""

    def create(self, name: str, data: Data, *, durable: bool = True) -> bool:
        """Create the object only if there is none; say whether this call did it.

        With `durable` it is sure to survive a power cut once this returns. Without, which is quicker on a
        disk, a power cut may leave it out, or empty: good for what can be made again.
        """

    def replace(self, name: str, data: Data, version: str) -> bool:
        """Replace the object only if it still has this `version`; say whether this call did it.

        Sure to survive a power cut once this returns.
        """

    def stream(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Write an object too large for memory; it appears, or is replaced, when the block ends well."""

    def sync(self, prefix: str) -> None:
        """Make what lies below the folder `prefix` sure to survive a power cut, however it was written."""

    def delete(self, name: str) -> None:
        """Delete the object; it is no error if there is none."""


def pieces(data: Data) -> Iterable[bytes | memoryview]:
    """Give data as the pieces that they consist of; an iterator can be taken once."""
    return [data] if isinstance(data, bytes | memoryview) else data


def run_concurrently(storage: Storage, *calls: Callable[[], Any]) -> list[Any]:
    """Make calls at the same time where each takes requests, else one after the other; give what they give."""
    if not storage.is_remote:
        return [call() for call in calls]
    with ThreadPoolExecutor(len(calls), "featurepress-storage") as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def map_concurrently(storage: Storage, call: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield what a call gives for each item, in order; some are made ahead at once where each takes requests."""
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
    """Say which object it is that a reader inside the block cannot make sense of."""
    try:
        yield
    except (ValueError, OSError, KeyError) as error:  # Arrow's errors are ValueErrors and OSErrors
        reason = " ".join(str(error).split())
        raise FeatureSetError(
            f"'{storage.location}/{name}' is damaged: {reason}. Restore it, or embed into a new folder."
        ) from error
