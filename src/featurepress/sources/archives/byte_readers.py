"""Read archives at any position: files on disk, objects in buckets, and gzip."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import zlib
from collections.abc import Callable, Hashable, Iterator
from typing import BinaryIO, Protocol

WINDOW_BYTES = 4 * 1024**2
_DIRECT_BYTES = 1024**2  # a read of that size is a request of its own, and no window is filled for it
_MOST_WINDOWS = 4  # as many as threads read at once
_INPUT_BYTES, _INFLATED_BYTES = 64 * 1024, 256 * 1024


class BrokenArchiveError(Exception):
    """An archive cannot be read beyond some point; its text is the reason."""


class ByteReader(Protocol):
    """The bytes of an archive, uncompressed. Safe from several threads."""

    @property
    def held_bytes(self) -> int:
        """How much memory it takes."""

    def at(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start`, or what there is of them before the end."""

    def holds(self, end: int) -> bool:
        """Whether it is at least so many bytes long."""

    def finish(self) -> None:
        """Check what follows the last member, such as a checksum."""

    def close(self) -> None:
        """Close the files behind it."""


class FileReader:
    """An archive on disk: each read is a system call, without a position that threads would share."""

    held_bytes = 0

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._descriptor = file, file.fileno()
        self._size = os.fstat(self._descriptor).st_size

    def at(self, start: int, size: int) -> bytes:
        """Read."""
        data = os.pread(self._descriptor, size, start)
        while 0 < len(data) < size and (more := os.pread(self._descriptor, size - len(data), start + len(data))):
            data += more  # one call gives 2 GiB at most
        return data

    def holds(self, end: int) -> bool:
        """Compare with the size of the file."""
        return end <= self._size

    def finish(self) -> None:
        """Do nothing: nothing is hidden."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Window:
    """An aligned piece of an archive, filled by whoever needs it first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.data: bytes | None = None


class WindowReader:
    """An archive in a bucket: small reads are served from windows of 4 MiB, so that a run of them is one request.

    Parameters
    ----------
    file : file
        The archive.
    open_file : callable
        Opens it again: as many files are open as there are threads that read at once.
    size : int
        Its bytes.

    Notes
    -----
    Holds 4 windows, 16 MiB.
    """

    def __init__(self, file: BinaryIO, open_file: Callable[[], BinaryIO], size: int) -> None:
        self._idle, self._open, self._size = [file], open_file, size
        self._lock = threading.Lock()
        self._windows: collections.OrderedDict[int, _Window] = collections.OrderedDict()

    @property
    def held_bytes(self) -> int:
        """The windows."""
        with self._lock:
            return sum(len(window.data or b"") for window in self._windows.values())

    def at(self, start: int, size: int) -> bytes:
        """Cut from windows, or fetch."""
        end = min(start + size, self._size)
        if end <= start:
            return b""
        if end - start >= _DIRECT_BYTES:
            return self._fetch(start, end)
        pieces = []
        for number in range(start // WINDOW_BYTES, (end - 1) // WINDOW_BYTES + 1):
            first = number * WINDOW_BYTES
            pieces.append(self._window(number)[max(0, start - first) : end - first])
        return b"".join(pieces)

    def holds(self, end: int) -> bool:
        """Compare with the size of the object."""
        return end <= self._size

    def finish(self) -> None:
        """Do nothing: nothing is hidden."""

    def close(self) -> None:
        """Close the files."""
        while self._idle:
            self._idle.pop().close()

    def _window(self, number: int) -> bytes:
        with self._lock:
            window = self._windows.setdefault(number, _Window())
            self._windows.move_to_end(number)
            if len(self._windows) > _MOST_WINDOWS:
                self._windows.popitem(last=False)
        with window.lock:
            if window.data is None:
                start = number * WINDOW_BYTES
                window.data = self._fetch(start, min(start + WINDOW_BYTES, self._size))
            return window.data

    def _fetch(self, start: int, end: int) -> bytes:
        """Read from a file that no other thread uses."""
        try:
            file = self._idle.pop()
        except IndexError:
            file = self._open()
        try:
            # Past the buffer, which would make several requests of one.
            raw = getattr(file, "raw", file)
            raw.seek(start)
            data: bytes = raw.read(end - start)
            while 0 < len(data) < end - start and (more := raw.read(end - start - len(data))):
                data += more
        except BaseException:
            file.close()
            raise
        self._idle.append(file)
        return data


class GzipReader:
    """An archive that is compressed by gzip: it is inflated forwards, and once more from its beginning to go back.

    Damage costs the piece that holds it, at most 256 KiB of inflated data, and all that follows. The pieces are the
    same for every read, so that a member that was listed can be read.

    Parameters
    ----------
    file : file
        The compressed file; closed with this.
    keep_bytes : int
        How far behind the last position reads are served without beginning again: threads do not come in order.
    """

    def __init__(self, file: BinaryIO, keep_bytes: int = _INFLATED_BYTES) -> None:
        self._file, self._keep_bytes = file, keep_bytes
        self._lock = threading.Lock()
        self._kept: collections.deque[bytes] = collections.deque()
        self._start_over()

    def _start_over(self) -> None:
        self._file.seek(0)
        self._kept.clear()
        self._begin = self._end = 0  # of what is kept
        self._inflater = zlib.decompressobj(wbits=31)
        self._input = b""
        self._problem = ""
        self._is_done = self._is_followed_by_garbage = False

    @property
    def held_bytes(self) -> int:
        """What was kept."""
        return self._end - self._begin

    def at(self, start: int, size: int) -> bytes:
        """Take what is kept, and inflate on."""
        end = start + size
        with self._lock:
            if start < self._begin:
                self._start_over()
            pieces: list[bytes] = []
            first = self._end
            for chunk in reversed(self._kept):
                first -= len(chunk)
                pieces.append(chunk[max(0, start - first) : max(0, end - first)])
                if first <= start:
                    break
            pieces.reverse()
            while self._end < end and (chunk := self._more()):
                first = self._end - len(chunk)
                pieces.append(chunk[max(0, start - first) : end - first])
            return b"".join(pieces)

    def holds(self, end: int) -> bool:
        """Inflate up to there."""
        with self._lock:
            while self._end < end and self._more():
                pass
            return self._end >= end

    def finish(self) -> None:
        """Inflate to the end, where the checksum stands; what follows it is nobody's."""
        with self._lock, contextlib.suppress(_GarbageError):
            while self._more():
                pass

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _more(self) -> bytes:
        """Inflate the next piece and keep it; b"" at the end."""
        chunk = b""
        while not (chunk or self._is_done or self._problem):
            if self._inflater.eof:
                self._begin_next_stream()
            else:
                self._input = self._input or self._file.read(_INPUT_BYTES)
                chunk = self._inflate() if self._input else self._inflate_last()
        if self._problem and not chunk:
            raise (_GarbageError if self._is_followed_by_garbage else BrokenArchiveError)(self._problem)
        if chunk:
            self._kept.append(chunk)
            self._end += len(chunk)
            while self._end - self._begin - len(self._kept[0]) >= self._keep_bytes:
                self._begin += len(self._kept.popleft())
        return chunk

    def _inflate_last(self) -> bytes:
        """Return what is left inside where the file ends too early."""
        chunk = self._inflater.decompress(b"", _INFLATED_BYTES)
        self._is_done = self._file.tell() == 0  # an empty file: whoever reads the archive will say so
        self._problem = "" if chunk or self._is_done else "the compressed data break off"
        return chunk

    def _inflate(self) -> bytes:
        try:
            chunk = self._inflater.decompress(self._input, _INFLATED_BYTES)
        except zlib.error as error:
            reason = str(error).rpartition(": ")[2]
            is_header = reason == "incorrect header check" and self._end == 0
            self._problem = (
                "it is not compressed by gzip" if is_header else f"the compressed data are damaged, {reason}"
            )
            return b""
        self._input = self._inflater.unconsumed_tail
        return chunk

    def _begin_next_stream(self) -> None:
        """Go on where one stream has ended: several may follow one another, zeros may pad them."""
        rest = self._inflater.unused_data.lstrip(b"\0")
        while len(rest) < 2 and (piece := self._file.read(_INPUT_BYTES)):
            rest = (rest + piece).lstrip(b"\0")
        if rest.startswith(b"\x1f\x8b"):
            self._inflater, self._input = zlib.decompressobj(wbits=31), rest
        elif rest:
            self._problem, self._is_followed_by_garbage = "what follows the compressed data is not", True
        else:
            self._is_done = True


class _GarbageError(BrokenArchiveError):
    """What was compressed is whole, but something else comes behind it."""


# -- what stays open -----------------------------------------------------------------------------------------


class _Open:
    """A reader and how many use it at the moment."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reader: ByteReader | None = None
        self.users = 0


class OpenReaders:
    """Readers that stay open for whoever reads on: those that were used last.

    Parameters
    ----------
    most : int
        Readers that may stay open.
    most_bytes : int
        Bytes that they may hold together before the oldest go; two may always stay.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._lock = threading.Lock()
        self._readers: collections.OrderedDict[Hashable, _Open] = collections.OrderedDict()

    @contextlib.contextmanager
    def using(self, name: Hashable, open_reader: Callable[[], ByteReader]) -> Iterator[ByteReader]:
        """Return the reader of this name; it is opened unless it still is, and not closed meanwhile."""
        with self._lock:
            is_new = name not in self._readers
            one = self._readers.setdefault(name, _Open())
            self._readers.move_to_end(name)
            one.users += 1
            for old in self._too_many() if is_new else ():
                old.close()
        try:
            with one.lock:
                reader = one.reader = one.reader or open_reader()
            yield reader
        finally:
            with self._lock:
                one.users -= 1
                if one.users == 0 and one.reader is None:
                    del self._readers[name]

    def _too_many(self) -> Iterator[ByteReader]:
        """Take away the readers that have to go, those first that nobody has used for longest."""
        held = sum(one.reader.held_bytes for one in self._readers.values() if one.reader)
        for name, one in [*self._readers.items()]:
            if len(self._readers) <= 2 or (len(self._readers) <= self._most and held <= self._most_bytes):
                return
            if one.users == 0:
                del self._readers[name]
                if one.reader:
                    held -= one.reader.held_bytes
                    yield one.reader

    def close(self) -> None:
        """Close all that nobody uses."""
        with self._lock:
            for name, one in [*self._readers.items()]:
                if one.users == 0:
                    del self._readers[name]
                    if one.reader:
                        one.reader.close()
