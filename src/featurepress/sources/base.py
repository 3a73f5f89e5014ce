"""The protocol of sources, and reading ahead with threads.

The driver turns what the user wrote into a `SourceSpec` (`featurepress.sources.describe`), opens it and calls
`list`, possibly from the middle. Workers open it from the spec and call `read` from several threads.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from featurepress.errors import ImageError, StorageError
from featurepress.specs import ImageRef

MAX_TIMEOUTS = 8
_GROUP_BYTES = 2 * 1024**2


class Source(Protocol):
    """An ordered listing of images, and their bytes on demand. Made from a `SourceSpec` and `ImageSettings`."""

    @property
    def skipped(self) -> collections.Counter[str]:
        """The number of files that the listing has skipped so far, by reason."""

    @property
    def reading(self) -> Reading:
        """How many reads run at once, and how far ahead."""

    def list(self, start_after: bytes = b"") -> Iterator[ImageRef]:
        """Yield the images in byte order of `ImageRef.order`, beginning after `start_after`.

        References have `source` 0. If the source has labels, the label is their only field (None for an image
        without one). Raises SourceError if the location does not exist, or disappears while it is listed.
        """

    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes of one image; thread-safe.

        Raises ImageError with stage ``read`` if it has vanished, is unreadable, or has changed since the listing,
        and StorageError if the whole source cannot be reached, which stops the run.
        """

    def stat(self, ref: ImageRef) -> ImageRef:
        """Return the reference as a listing would return it now; thread-safe.

        `problem` is set if the image has vanished. Raises StorageError if the whole source cannot be reached.
        """


class Reading(NamedTuple):
    """How many reads of a source run at once, and how far ahead of the consumer."""

    in_flight: int = 8  # most reads at once
    group: int = 16  # images that one thread reads in a row: 16 if a read takes microseconds, 1 if it is a request
    ahead_bytes: int = 3 * 1024**2  # that may wait to be embedded


ON_DISK = Reading()
BY_REQUEST = Reading(in_flight=64, group=1, ahead_bytes=16 * 1024**2)
IN_SEQUENCE = Reading(in_flight=1, group=16)


def too_many_bytes(n_bytes: int, max_bytes: int) -> ImageError:
    """Return the error of an image that is larger than allowed."""
    return ImageError("read", f"too many bytes: {n_bytes}, above the limit of {max_bytes} (--max-bytes)")


def require_unchanged(source: Source, ref: ImageRef) -> ImageRef:
    """Return the current reference of a file; raise ImageError if it vanished or changed since it was listed."""
    now = source.stat(ref)
    if now.problem is not None:
        raise ImageError("read", now.problem)
    if now.version != ref.version:
        raise ImageError("read", "changed since listing")
    return now


class _Group:
    """References that one thread reads, one after the other, and their outcomes so far."""

    def __init__(self, refs: Sequence[ImageRef]) -> None:
        self.refs = refs
        self.bytes = sum(ref.size for ref in refs)
        self.outcomes: list[bytes | ImageError] = []
        self.is_abandoned = False
        self.lost: StorageError | None = None  # the source cannot be reached: no more outcomes follow
        self.done = threading.Event()
        self._lock = threading.Lock()

    def add(self, outcome: bytes | ImageError) -> bool:
        """Add the outcome of the next reference; return False if the group has been abandoned."""
        with self._lock:
            if not self.is_abandoned:
                self.outcomes.append(outcome)
            return not self.is_abandoned

    def abandon(self, reason: str) -> Sequence[ImageRef]:
        """Fail the reference that is being read, and return those after it."""
        with self._lock:
            self.is_abandoned = True
            self.outcomes.append(ImageError("read", reason))
            return self.refs[len(self.outcomes) :]

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until all is read; return False when one read takes longer than the timeout."""
        n_seen = -1
        while n_seen != len(self.outcomes):
            n_seen = len(self.outcomes)
            if self.done.wait(timeout_seconds):
                return True
        return self.done.is_set()


class _Reader:
    """Threads that read groups in order. A thread that hangs is abandoned and replaced.

    It begins with one thread. For files in the page cache, one thread is always ahead of the consumer, and a second
    one would compete with the decoder for the interpreter; while it is too slow, `hurry` adds others. Where a read
    is a request (`is_eager`), every group gets a thread at once.
    """

    def __init__(self, read: Callable[[ImageRef], bytes], max_threads: int, *, is_eager: bool) -> None:
        self._read = read
        self._is_eager = is_eager
        self._n_idle = 0
        self._n_spare = max_threads - 1
        self._has_begun = False
        self._waiting: collections.deque[_Group] = collections.deque()
        self._wake = threading.Condition()
        self._is_closed = False
        self.start_thread()

    def start_thread(self) -> None:
        threading.Thread(target=self._work, name="featurepress-read", daemon=True).start()

    def hurry(self, group: _Group) -> None:
        """Add a thread if the consumer has to wait for this group, unless it is the first one."""
        if self._n_spare and self._has_begun and not group.done.is_set():
            self._n_spare -= 1
            self.start_thread()
        self._has_begun = True

    def submit(self, group: _Group, *, first: bool = False) -> None:
        with self._wake:
            (self._waiting.appendleft if first else self._waiting.append)(group)
            self._wake.notify()
            needs_thread = self._is_eager and self._n_spare > 0 and len(self._waiting) > self._n_idle
            self._n_spare -= needs_thread
        if needs_thread:
            self.start_thread()

    def close(self) -> None:
        with self._wake:
            self._is_closed = True
            self._waiting.clear()
            self._wake.notify_all()

    def _work(self) -> None:
        while (group := self._next_group()) is not None:
            for ref in group.refs:
                outcome: bytes | ImageError
                try:
                    outcome = self._read(ref)
                except ImageError as error:
                    outcome = error
                except StorageError as error:
                    group.lost = error
                    break
                except Exception as error:  # noqa: BLE001 - one image fails, whatever its source raises
                    outcome = ImageError("read", f"{type(error).__name__}: {error}")
                if self._is_closed or not group.add(outcome):
                    return
            group.done.set()

    def _next_group(self) -> _Group | None:
        with self._wake:
            self._n_idle += 1
            while not self._waiting and not self._is_closed:
                self._wake.wait()
            self._n_idle -= 1
            return None if self._is_closed else self._waiting.popleft()


def read_ahead(
    read: Callable[[ImageRef], bytes],
    refs: Iterable[ImageRef],
    *,
    threads: int,
    ahead_bytes: int,
    timeout_seconds: float,
    group_size: int = 16,
) -> Iterator[tuple[ImageRef, bytes | ImageError]]:
    """Read images in order, ahead of the consumer.

    Parameters
    ----------
    read : callable
        Returns the bytes of one reference or raises ImageError; called from several threads.
    refs : iterable of ImageRef
        What to read.
    threads : int
        Most reads in flight.
    ahead_bytes : int
        Bytes, by their listed sizes, that may wait for the consumer; one group always may.
    timeout_seconds : float
        A read that takes longer is abandoned: its image becomes an ImageError.
    group_size : int
        Most references that a thread takes at once; together they have less than 2 MiB. Larger groups save
        hand-overs between threads, each of which costs as much as reading a cached file (a few microseconds).

    Yields
    ------
    (ImageRef, bytes or ImageError)
        In the order of `refs`, each exactly once.

    Raises
    ------
    StorageError
        The source as a whole cannot be read: its `read` raised this, or more than 8 reads hung.
    """
    reader = _Reader(read, threads, is_eager=group_size == 1)
    pending: collections.deque[_Group] = collections.deque()
    groups = _grouped(refs, group_size)
    n_ahead = n_timeouts = 0
    try:
        while True:
            while (not pending or n_ahead < ahead_bytes) and (group := next(groups, None)):
                n_ahead += group.bytes
                pending.append(group)
                reader.submit(group)
            if not pending:
                return
            group = pending.popleft()
            n_ahead -= group.bytes
            reader.hurry(group)
            if not group.wait(timeout_seconds):
                n_timeouts += 1
                rest = _Group(group.abandon(f"timed out: no answer in {timeout_seconds:g} seconds"))
                if n_timeouts > MAX_TIMEOUTS:
                    raise StorageError(
                        f"The source stopped answering: {n_timeouts} reads took longer than {timeout_seconds:g} "
                        f"seconds, the last one for '{group.refs[-1 - len(rest.refs)].uri}'. Check the disk or the "
                        "network, and resume."
                    )
                reader.submit(rest, first=True)  # before there is a thread that could take another group
                reader.start_thread()
                pending.appendleft(rest)
                n_ahead += rest.bytes
            yield from zip(group.refs, group.outcomes, strict=False)
            if group.lost is not None:
                raise group.lost
    finally:
        reader.close()


def _grouped(refs: Iterable[ImageRef], size: int) -> Iterator[_Group]:
    run: list[ImageRef] = []
    n_bytes = 0
    for ref in refs:
        run.append(ref)
        n_bytes += ref.size
        if len(run) == size or n_bytes >= _GROUP_BYTES:
            yield _Group(run)
            run, n_bytes = [], 0
    if run:
        yield _Group(run)
