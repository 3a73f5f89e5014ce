"""Read archives at any position: files on disk, objects in buckets, and gzip."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

from featurepress.sources.containers import Reader

WINDOW_BYTES = 4 * 1024**2
_DIRECT_BYTES = 1024**2  # a read of this size is one request that bypasses the windows
_MAX_WINDOWS = 4  # the number of threads that read at once
_INPUT_BYTES, _CHUNK_BYTES = 64 * 1024, 256 * 1024


class BrokenArchiveError(Exception):
    """An archive cannot be read beyond some position; the text is the reason."""


class ByteReader(Reader, Protocol):
    """The bytes of an archive, uncompressed; thread-safe."""

    def at(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start`, fewer at the end of the archive."""

    def holds(self, end: int) -> bool:
        """Whether the archive has at least `end` bytes."""

    def finish(self) -> None:
        """Check what follows the last member, such as a checksum."""


class _UncompressedReader:
    """An archive whose size is known."""

    def __init__(self, size: int) -> None:
        self._size = size

    def holds(self, end: int) -> bool:
        """Compare with the size of the file."""
        return end <= self._size

    def finish(self) -> None:
        """Do nothing: there is no checksum."""


class FileReader(_UncompressedReader):
    """An archive on disk. Each read is one system call, without a shared position in the file."""

    held_bytes = 0

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._descriptor = file, file.fileno()
        super().__init__(os.fstat(self._descriptor).st_size)

    def at(self, start: int, size: int) -> bytes:
        """Read from the file."""
        data = os.pread(self._descriptor, size, start)
        while 0 < len(data) < size and (more := os.pread(self._descriptor, size - len(data), start + len(data))):
            data += more  # one call returns at most 2 GiB
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Window:
    """An aligned piece of an archive, filled by the first thread that needs it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.data: bytes | None = None


class WindowReader(_UncompressedReader):
    """An archive in a bucket. Small reads are served from four windows of 4 MiB: a run of them costs one request.

    `open_file` opens it again, for threads that read at the same time.
    """

    def __init__(self, file: BinaryIO, open_file: Callable[[], BinaryIO], size: int) -> None:
        super().__init__(size)
        self._idle, self._open = [file], open_file
        self._lock = threading.Lock()
        self._windows: collections.OrderedDict[int, _Window] = collections.OrderedDict()

    @property
    def held_bytes(self) -> int:
        """The bytes in the windows."""
        with self._lock:
            return sum(len(window.data or b"") for window in self._windows.values())

    def at(self, start: int, size: int) -> bytes:
        """Cut the bytes from windows; fetch a large piece directly."""
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

    def close(self) -> None:
        """Close the files."""
        while self._idle:
            self._idle.pop().close()

    def _window(self, number: int) -> bytes:
        with self._lock:
            window = self._windows.setdefault(number, _Window())
            self._windows.move_to_end(number)
            if len(self._windows) > _MAX_WINDOWS:
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
        with contextlib.ExitStack() as undo:
            undo.callback(file.close)
            raw = getattr(file, "raw", file)  # without the buffer, which would split a request into several
            raw.seek(start)
            data: bytes = raw.read(end - start)
            while 0 < len(data) < end - start and (more := raw.read(end - start - len(data))):
                data += more
            undo.pop_all()
        self._idle.append(file)
        return data


class GzipReader:
    """An archive compressed with gzip. It is decompressed forward; going back starts again at the beginning.

    Damage costs the chunk of at most 256 KiB that contains it, and everything after. Chunks begin at the same
    positions in every read: a member that was listed can be read. Up to `keep_bytes` decompressed bytes are kept
    for threads that read slightly out of order.
    """

    def __init__(self, file: BinaryIO, keep_bytes: int = _CHUNK_BYTES) -> None:
        self._file, self._keep_bytes = file, keep_bytes
        self._lock = threading.Lock()
        self._kept: collections.deque[bytes] = collections.deque()
        self._start_over()

    def _start_over(self) -> None:
        self._file.seek(0)
        self._kept.clear()
        self._begin = self._end = 0  # of the kept chunks
        self._decompressor = zlib.decompressobj(wbits=31)
        self._input = b""
        self._problem = ""
        self._is_done = self._is_followed_by_garbage = False

    @property
    def held_bytes(self) -> int:
        """The bytes of the kept chunks."""
        return self._end - self._begin

    def at(self, start: int, size: int) -> bytes:
        """Return bytes of the kept chunks, and decompress more."""
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
            while self._end < end and (chunk := self._next_chunk()):
                first = self._end - len(chunk)
                pieces.append(chunk[max(0, start - first) : end - first])
            return b"".join(pieces)

    def holds(self, end: int) -> bool:
        """Decompress up to there."""
        with self._lock:
            while self._end < end and self._next_chunk():
                pass
            return self._end >= end

    def finish(self) -> None:
        """Decompress to the end, where the checksum is; bytes after it are ignored."""
        with self._lock, contextlib.suppress(_GarbageError):
            while self._next_chunk():
                pass

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _next_chunk(self) -> bytes:
        """Decompress the next chunk and keep it; b"" at the end."""
        chunk = b""
        while not (chunk or self._is_done or self._problem):
            if self._decompressor.eof:
                self._begin_next_stream()
            else:
                self._input = self._input or self._file.read(_INPUT_BYTES)
                chunk = self._decompress() if self._input else self._decompress_rest()
        if self._problem and not chunk:
            raise (_GarbageError if self._is_followed_by_garbage else BrokenArchiveError)(self._problem)
        if chunk:
            self._kept.append(chunk)
            self._end += len(chunk)
            while self._end - self._begin - len(self._kept[0]) >= self._keep_bytes:
                self._begin += len(self._kept.popleft())
        return chunk

    def _decompress_rest(self) -> bytes:
        """Return the output that is left where the file ends too early."""
        chunk = self._decompressor.decompress(b"", _CHUNK_BYTES)
        self._is_done = self._file.tell() == 0  # an empty file, which the reader of the archive reports
        self._problem = "" if chunk or self._is_done else "the compressed data are cut short"
        return chunk

    def _decompress(self) -> bytes:
        try:
            chunk = self._decompressor.decompress(self._input, _CHUNK_BYTES)
        except zlib.error as error:
            reason = str(error).rpartition(": ")[2]
            is_header = reason == "incorrect header check" and self._end == 0
            self._problem = "it is not a gzip file" if is_header else f"the compressed data are damaged, {reason}"
            return b""
        self._input = self._decompressor.unconsumed_tail
        return chunk

    def _begin_next_stream(self) -> None:
        """Continue after the end of a stream: another one may follow, and zeros as padding."""
        rest = self._decompressor.unused_data.lstrip(b"\0")
        while len(rest) < 2 and (piece := self._file.read(_INPUT_BYTES)):
            rest = (rest + piece).lstrip(b"\0")
        if rest.startswith(b"\x1f\x8b"):
            self._decompressor, self._input = zlib.decompressobj(wbits=31), rest
        elif rest:
            self._problem, self._is_followed_by_garbage = "bytes that are not gzip follow the compressed data", True
        else:
            self._is_done = True


class _GarbageError(BrokenArchiveError):
    """The compressed data are complete, but other bytes follow."""
