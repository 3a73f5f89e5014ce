"""The files behind archives, tables and lists: found and opened by the sources of folders and buckets."""

from __future__ import annotations

import atexit
import collections
import contextlib
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import BinaryIO, Generic, Protocol, TypeVar, cast

from featurepress.settings import ImageSettings
from featurepress.sources.base import Source
from featurepress.sources.registry import open_source
from featurepress.specs import ImageRef, SourceSpec
from featurepress.storage.connection import scheme_of


class Files(Source, Protocol):
    """A source whose files can also be opened, and read in pieces."""

    def open(self, ref: ImageRef) -> BinaryIO:
        """Open a file for reading at any position; the caller closes it.

        Raises ImageError with stage ``read`` if it has vanished, is unreadable, or has changed since the listing,
        and StorageError if the whole source cannot be reached.
        """


def files_behind(spec: SourceSpec, limits: ImageSettings) -> Files:
    """Return the source of the files that a description names: one, or those that a glob matches, in byte order."""
    kind = "objects" if scheme_of(spec.location) else "folder"
    options = {"anonymous": spec.options.get("anonymous", False), "all_files": True}
    return cast(Files, open_source(replace(spec, kind=kind, options=options), limits))


def in_order(files: Files) -> Iterator[ImageRef]:
    """Yield the files so that the keys of their content, ``file#…``, are in byte order.

    A listing has ``a.tar`` before ``a.tar!.tar``; their members are in the opposite order.
    """
    yield from sorted(files.list(), key=lambda ref: ref.order + b"#")


class Reader(Protocol):
    """A reader of a file, as `OpenReaders` keeps it."""

    @property
    def held_bytes(self) -> int:
        """The memory that it uses."""

    def close(self) -> None:
        """Close the file."""


AnyReader = TypeVar("AnyReader", bound=Reader)


class _Entry(Generic[AnyReader]):
    """A reader and the number of its users; a context manager that ends one use."""

    def __init__(self, lock: threading.Lock) -> None:
        self.opening = threading.Lock()
        self.reader: AnyReader | None = None
        self.n_users = 0
        self._lock = lock

    def __enter__(self) -> AnyReader:
        assert self.reader is not None
        return self.reader

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.n_users -= 1


class OpenReaders(Generic[AnyReader]):
    """The readers of the process that were used last, kept open: the next shard continues in the same file.

    At most `most` stay open, and only two of them if they hold more than `most_bytes` together.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._forget()
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._forget)  # two processes cannot share the position in a file

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[Hashable, _Entry[AnyReader]] = collections.OrderedDict()

    def using(
        self, name: Hashable, open_reader: Callable[[], AnyReader]
    ) -> contextlib.AbstractContextManager[AnyReader]:
        """Return the reader of this name, opened if needed; it stays open in the context."""
        with self._lock:
            if is_new := name not in self._entries:
                self._entries[name] = _Entry(self._lock)
            entry = self._entries[name]
            self._entries.move_to_end(name)
            entry.n_users += 1
            if is_new:
                self._close_unused(least=2, most=self._most)
        if entry.reader is None:
            with contextlib.ExitStack() as undo, entry.opening:
                undo.callback(self._drop, name, entry)
                entry.reader = entry.reader or open_reader()
                undo.pop_all()
        return entry

    def _drop(self, name: Hashable, entry: _Entry[AnyReader]) -> None:
        """End the use of a reader that cannot be opened."""
        with self._lock:
            entry.n_users -= 1
            if entry.n_users == 0:
                self._entries.pop(name, None)

    def _close_unused(self, *, least: int, most: int) -> None:
        """Close unused readers, the oldest first, until the limits hold or only `least` are open."""
        n_bytes = sum(entry.reader.held_bytes for entry in self._entries.values() if entry.reader)
        for name, entry in [*self._entries.items()]:
            n_open = len(self._entries)
            if n_open <= least or (n_open <= most and n_bytes <= self._most_bytes):
                return
            if entry.n_users == 0:
                del self._entries[name]
                if entry.reader:
                    n_bytes -= entry.reader.held_bytes
                    entry.reader.close()

    def close(self) -> None:
        """Close all readers that are not in use."""
        with self._lock:
            self._close_unused(least=0, most=0)
