"""The protocol of sources, and reading ahead with threads.

The life of a source:

1. The driver turns what the user wrote into a `SourceSpec` (`featurepress.sources.describe`).
2. The driver opens it and calls `list`, once, possibly from the middle; the references become the plan.
3. Each worker opens it from the spec and calls `read` from several threads, through `read_ahead`.
"""

from __future__ import annotations

import collections
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from featurepress.errors import ImageError, StorageError
from featurepress.specs import ImageRef, SourceSpec

# HEIC is listed though its decoder is an extra: an image that cannot be decoded is a failure, not skipped.
IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".avif",
        ".jp2",
        ".j2k",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".ico",
        ".tga",
        ".qoi",
        ".dds",
        ".psd",
        ".heic",
        ".heif",
    ]
)

LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".lst")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
TABLE_SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")

MAX_TIMEOUTS = 8
_GROUP_BYTES = 2 * 1024**2


class Source(Protocol):
    """Images somewhere: an ordered listing, and bytes on demand. Made from a `SourceSpec` and `ImageSettings`."""

    @property
    def skipped(self) -> collections.Counter[str]:
        """The number of files that the listing has skipped so far, by reason."""

    @property
    def reading(self) -> Reading:
        """How many reads run at once, and how far ahead."""

    def list(self, start_after: bytes = b"") -> Iterator[ImageRef]:
        """Yield the images in byte order of `ImageRef.order`, beginning after that of `start_after`.

        References have `source` 0. Their only field is the label, for a source that has labels (None where an image
        has none). Raises SourceError if the location does not exist, or disappears while it is listed.
        """

    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes of one image; thread-safe.

        Raises ImageError with stage ``read`` if it is gone, unreadable, or changed since it was listed, and
        StorageError if the whole source cannot be reached, which stops the run.
        """

    def stat(self, ref: ImageRef) -> ImageRef:
        """Return the reference as a listing would return it now; thread-safe.

        `problem` is set if the image has vanished. Raises StorageError if the whole source cannot be reached.
        """


class Reading(NamedTuple):
    """How many reads of a source run at once, and how far ahead.

    Attributes
    ----------
    in_flight : int
        Most reads at once.
    group : int
        Images that one thread reads in a row: many if a read takes microseconds, one if it is a request.
    ahead_bytes : int
        Bytes that may wait to be embedded.
    """

    in_flight: int = 8
    group: int = 16
    ahead_bytes: int = 3 * 1024**2


ON_DISK = Reading()
BY_REQUEST = Reading(in_flight=64, group=1, ahead_bytes=16 * 1024**2)
IN_SEQUENCE = Reading(in_flight=1, group=16)


class KeyFilter:
    """Select images by name.

    Parameters
    ----------
    all_files : bool
        Whether names without an image suffix are included.
    include, exclude : sequence of str
        Patterns with ``*``, ``?`` and ``[…]``. One without a slash is matched against the name, one with a slash
        against the whole path below the source, where ``**`` stands for any folders.
    """

    def __init__(
        self, *, all_files: bool = False, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self._all_files = all_files
        self._include = [(pattern, glob_regex(pattern)) for pattern in include]
        self._exclude = [(pattern, glob_regex(pattern)) for pattern in exclude]

    @classmethod
    def of(cls, spec: SourceSpec) -> KeyFilter:
        """Return the filter for the options of a source."""
        options = spec.options
        return cls(
            all_files=bool(options.get("all_files", False)),
            include=options.get("include", ()),
            exclude=options.get("exclude", ()),
        )

    def passes_over(self, path: str) -> str:
        """Return the reason why the image at `path`, relative to its source, is skipped; "" if it is included."""
        name = path.rpartition("/")[2]
        if not self._all_files and not is_image_name(name):
            return "not an image's name"
        if self._include and not _any_matches(self._include, path, name):
            return "not included"
        return "excluded" if self._exclude and _any_matches(self._exclude, path, name) else ""


def _any_matches(patterns: Sequence[tuple[str, re.Pattern[str]]], path: str, name: str) -> bool:
    return any(regex.fullmatch(path if "/" in pattern else name) for pattern, regex in patterns)


def glob_regex(pattern: str) -> re.Pattern[str]:
    """Translate a glob: ``*`` and ``?`` stay within a name, ``**`` between slashes stands for any folders."""
    parts = []
    names = pattern.split("/")
    for name in names[:-1]:
        parts.append("(?:[^/]+/)*" if name == "**" else _name_regex(name) + "/")
    parts.append(".*" if names[-1] == "**" else _name_regex(names[-1]))
    return re.compile("".join(parts), re.DOTALL)


def _name_regex(pattern: str) -> str:
    """Translate a glob without slashes: what `fnmatch` does, but for a slash, which nothing matches."""
    found, i = "", 0
    while i < len(pattern):
        char, end = pattern[i], pattern.find("]", i + 2 + pattern.startswith("[!", i))
        i += 1
        if char in "*?":
            found += "[^/]*" if char == "*" else "[^/]"
        elif char == "[" and end > 0:
            inner = pattern[i:end].replace("\\", r"\\").replace("[", r"\[")
            found += f"(?!/)[{'^' + inner[1:] if inner.startswith('!') else inner}]"
            i = end + 1
        else:
            found += re.escape(char)
    return found


def is_image_name(name: str) -> bool:
    """Whether a name ends in a suffix that images have."""
    dot = name.rfind(".")
    return dot >= 0 and name[dot:].lower() in IMAGE_SUFFIXES


class _Group:
    """A run of references that one thread reads; outcomes are appended as they come."""

    def __init__(self, refs: Sequence[ImageRef]) -> None:
        self.refs = refs
        self.bytes = sum(ref.size for ref in refs)
        self.outcomes: list[bytes | ImageError] = []
        self.given_up = False
        self.lost: StorageError | None = None  # the source is away: there are no more outcomes
        self.done = threading.Event()
        self._lock = threading.Lock()

    def add(self, outcome: bytes | ImageError) -> bool:
        """Take the outcome of the next reference; return False if the group was given up meanwhile."""
        with self._lock:
            if not self.given_up:
                self.outcomes.append(outcome)
            return not self.given_up

    def give_up(self, reason: str) -> Sequence[ImageRef]:
        """Fail the reference that is being read, and give those behind it."""
        with self._lock:
            self.given_up = True
            self.outcomes.append(ImageError("read", reason))
            return self.refs[len(self.outcomes) :]


class _Reader:
    """Threads that read groups in order; a thread that hangs is given up and replaced.

    It begins with one thread. On files in the page cache that one is always ahead, and a second one would only
    fight with it and the decoder for the interpreter; while it falls behind, `hurry` adds others. Where a read is a
    request (`eager`), every group gets a thread at once.
    """

    def __init__(self, read: Callable[[ImageRef], bytes], most_threads: int, *, eager: bool = False) -> None:
        self._read = read
        self._eager = eager
        self._n_idle = 0
        self._spare_threads = most_threads - 1
        self._has_begun = False
        self._waiting: collections.deque[_Group] = collections.deque()
        self._wake = threading.Condition()
        self._closed = False
        self.start_thread()

    def start_thread(self) -> None:
        threading.Thread(target=self._work, name="featurepress-read", daemon=True).start()

    def hurry(self, group: _Group) -> None:
        """Add a thread if somebody waits for this group, unless it is the first one."""
        if self._spare_threads and self._has_begun and not group.done.is_set():
            self._spare_threads -= 1
            self.start_thread()
        self._has_begun = True

    def submit(self, group: _Group, *, first: bool = False) -> None:
        with self._wake:
            (self._waiting.appendleft if first else self._waiting.append)(group)
            self._wake.notify()
            needs_thread = self._eager and self._spare_threads > 0 and len(self._waiting) > self._n_idle
            self._spare_threads -= needs_thread
        if needs_thread:
            self.start_thread()

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._waiting.clear()
            self._wake.notify_all()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._n_idle += 1
                while not self._waiting and not self._closed:
                    self._wake.wait()
                self._n_idle -= 1
                if self._closed:
                    return
                group = self._waiting.popleft()
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
                if self._closed or not group.add(outcome):
                    return
            group.done.set()


def read_ahead(
    read: Callable[[ImageRef], bytes],
    refs: Iterable[ImageRef],
    *,
    threads: int,
    ahead_bytes: int,
    timeout_seconds: float,
    group_size: int = 16,
) -> Iterator[tuple[ImageRef, bytes | ImageError]]:
    """Read images in order, ahead of whoever takes them.

    Parameters
    ----------
    read : callable
        Gives the bytes of one reference or raises ImageError; called from several threads.
    refs : iterable of ImageRef
        What to read.
    threads : int
        Most reads in flight.
    ahead_bytes : int
        Bytes, by their listed sizes, that may wait to be taken; one group always may.
    timeout_seconds : float
        A read that takes longer is given up: its image becomes an ImageError.
    group_size : int
        Most references that a thread takes at once, as long as they have less than 2 MiB together. More spares
        hand-overs between threads, which at a few microseconds a read cost as much as the read.

    Yields
    ------
    (ImageRef, bytes or ImageError)
        In the order of `refs`, each exactly once.

    Raises
    ------
    StorageError
        The source is lost, not one image: its `read` says so, or more than 8 reads hung.
    """
    reader = _Reader(read, threads, eager=group_size == 1)
    pending: collections.deque[_Group] = collections.deque()
    groups = _grouped(refs, group_size)
    ahead = n_timeouts = 0
    try:
        while True:
            while (not pending or ahead < ahead_bytes) and (group := next(groups, None)):
                ahead += group.bytes
                pending.append(group)
                reader.submit(group)
            if not pending:
                return
            group = pending.popleft()
            ahead -= group.bytes
            reader.hurry(group)
            if not _wait(group, timeout_seconds):
                n_timeouts += 1
                rest = _Group(group.give_up(f"timed out: no answer in {timeout_seconds:g} seconds"))
                if n_timeouts > MAX_TIMEOUTS:
                    hung = group.refs[-1 - len(rest.refs)]
                    raise _no_answer(hung, n_timeouts, timeout_seconds)
                reader.submit(rest, first=True)  # before there is a thread that could take another group
                reader.start_thread()
                pending.appendleft(rest)
                ahead += rest.bytes
            yield from zip(group.refs, group.outcomes, strict=False)
            if group.lost is not None:
                raise group.lost
    finally:
        reader.close()


def _no_answer(hung: ImageRef, n_timeouts: int, timeout_seconds: float) -> StorageError:
    return StorageError(
        f"The source stopped answering: {n_timeouts} reads took longer than {timeout_seconds:g} seconds, the last "
        f"one for '{hung.uri}'. Check the disk or the network, and resume."
    )


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


def _wait(group: _Group, timeout_seconds: float) -> bool:
    """Wait for a group; return False when one of its reads makes no progress for the timeout."""
    seen = -1
    while seen != len(group.outcomes):
        seen = len(group.outcomes)
        if group.done.wait(timeout_seconds):
            return True
    return group.done.is_set()
