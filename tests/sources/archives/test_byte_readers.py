"""Bytes of archives at any position: windows, compressed files, and several threads."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import random
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurepress.errors import StorageError
from featurepress.sources.archives.byte_readers import (
    WINDOW_BYTES,
    BrokenArchiveError,
    FileReader,
    GzipReader,
    WindowReader,
)

DATA = random.Random(7).randbytes(1_500_000) + bytes(500_000) + random.Random(8).randbytes(700_000)
COMPRESSED = gzip.compress(DATA[:900_000], 1) + gzip.compress(DATA[900_000:], 1)


class Requests:
    """An object of a bucket: each read is a request; two concurrent reads of one open file fail."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ranges: list[tuple[int, int]] = []
        self.n_open = self.n_opened = 0
        self.faults: list[Exception] = []

    def open(self) -> Any:
        self.n_open += 1
        self.n_opened += 1
        return io.BufferedReader(_Object(self), 1024**2)


class _Object(io.RawIOBase):
    def __init__(self, requests: Requests) -> None:
        self._requests, self._at, self._busy = requests, 0, threading.Lock()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._requests.data)}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        assert self._busy.acquire(blocking=False)
        try:
            if self._requests.faults:
                raise self._requests.faults.pop()
            piece = self._requests.data[self._at : self._at + len(buffer)]
            self._requests.ranges.append((self._at, self._at + len(piece)))
            buffer[: len(piece)] = piece
            self._at += len(piece)
            return len(piece)
        finally:
            self._busy.release()

    def close(self) -> None:
        if not self.closed:
            self._requests.n_open -= 1
        super().close()


def windows(requests: Requests) -> WindowReader:
    return WindowReader(requests.open(), requests.open, len(requests.data))


# -- windows -------------------------------------------------------------------------------------------------

LARGE = random.Random(1).randbytes(1024**2) * 17 + b"the end"


def test_small_reads_share_requests() -> None:
    requests = Requests(LARGE)
    reader = windows(requests)
    for start in range(0, len(LARGE), 100_000):
        assert reader.at(start, 100_000) == LARGE[start : start + 100_000]
    ends = [*range(0, len(LARGE), WINDOW_BYTES), len(LARGE)]
    assert requests.ranges == list(itertools.pairwise(ends))
    assert reader.held_bytes == 3 * WINDOW_BYTES + ends[-1] - ends[-2]


def test_a_large_read_is_one_request() -> None:
    requests = Requests(LARGE)
    reader = windows(requests)
    assert reader.at(5, 6_000_000) == LARGE[5:6_000_005]
    assert reader.at(1_000_000, 99_000_000) == LARGE[1_000_000:]
    assert requests.ranges == [(5, 6_000_005), (1_000_000, len(LARGE))]
    assert reader.held_bytes == 0


@pytest.mark.parametrize(
    "start", [0, 1, WINDOW_BYTES - 1, WINDOW_BYTES, len(LARGE) - 1, len(LARGE), len(LARGE) + 9]
)
def test_reads_across_windows_and_at_the_ends(start: int) -> None:
    reader = windows(Requests(LARGE))
    for size in (0, 1, 2, 512, 5000):
        assert reader.at(start, size) == LARGE[start : start + size]
    assert reader.holds(len(LARGE))
    assert not reader.holds(len(LARGE) + 1)


def test_threads_share_windows() -> None:
    requests = Requests(LARGE)
    reader = windows(requests)
    starts = [*range(0, 8 * 1024**2 - 500, 500)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda start: reader.at(start, 500), starts))
    assert found == [LARGE[start : start + 500] for start in starts]
    assert sorted(requests.ranges) == [(0, WINDOW_BYTES), (WINDOW_BYTES, 2 * WINDOW_BYTES)]
    assert requests.n_open == requests.n_opened <= 4
    reader.close()
    assert requests.n_open == 0


def test_a_window_that_failed_is_requested_again() -> None:
    requests = Requests(LARGE)
    requests.faults = [StorageError("away")]
    reader = windows(requests)
    with pytest.raises(StorageError, match="away"):
        reader.at(0, 10)
    assert requests.n_open == 0
    assert reader.at(0, 10) == LARGE[:10]


# -- compressed ----------------------------------------------------------------------------------------------

ranges = st.lists(st.tuples(st.integers(0, len(DATA) + 10), st.integers(0, 400_000)), max_size=12)


@settings(max_examples=30, deadline=None)
@given(ranges=ranges, keep_bytes=st.sampled_from([1, 300_000, 16 * 1024**2]))
def test_compressed_bytes_are_read_in_any_order(ranges: list[tuple[int, int]], keep_bytes: int) -> None:
    reader = GzipReader(io.BytesIO(COMPRESSED), keep_bytes)
    for start, size in ranges:
        assert reader.at(start, size) == DATA[start : start + size]
        assert reader.held_bytes <= keep_bytes + 256 * 1024
    assert reader.holds(len(DATA))
    assert not reader.holds(len(DATA) + 1)


class Watched(io.BytesIO):
    """A file that counts how often it is read from its beginning."""

    n_beginnings = -1  # the first is not counted

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self.n_beginnings += 1
        return super().seek(offset, whence)


def test_reads_slightly_out_of_order_do_not_start_over() -> None:
    file = Watched(COMPRESSED)
    reader = GzipReader(file, keep_bytes=1024**2)
    starts = [*range(0, len(DATA), 10_000)]
    for i in range(0, len(starts), 50):
        for start in reversed(starts[i : i + 50]):
            assert reader.at(start, 10_000) == DATA[start : start + 10_000]
    assert file.n_beginnings == 0
    reader.at(0, 1)
    assert file.n_beginnings == 1


def test_threads_share_a_compressed_reader() -> None:
    reader = GzipReader(io.BytesIO(COMPRESSED), keep_bytes=1024**2)
    starts = [*range(0, len(DATA), 7000)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda start: reader.at(start, 7000), starts))
    assert found == [DATA[start : start + 7000] for start in starts]


WORDS = random.Random(5).choices([b"apple ", b"banana ", b"cherry\n", *(bytes([i]) for i in range(200))], k=400_000)


@pytest.mark.parametrize("steps", [61, 512, 100_000, 10_000_000])
@pytest.mark.parametrize("damage", ["break", "flip", "checksum"])
def test_damage_is_found_at_the_same_byte_by_all_reads(damage: str, steps: int) -> None:
    expected = b"".join(WORDS)
    compressed = bytearray(gzip.compress(expected, 1))
    assert len(compressed) > 300_000
    if damage == "break":
        del compressed[len(compressed) // 2 :]
    elif damage == "flip":
        compressed[len(compressed) // 2 :] = b"\xff" * 9000
    else:
        compressed[-6] ^= 0x55
    readers = [GzipReader(io.BytesIO(compressed)) for _ in range(2)]
    n_good = [bytes_before_damage(readers[0], steps), bytes_before_damage(readers[1], 777)]
    assert n_good[0] == n_good[1]
    assert len(expected) // 3 < n_good[0] < len(expected)
    assert readers[0].at(0, n_good[0])[: len(expected) // 3] == expected[: len(expected) // 3]
    with pytest.raises(BrokenArchiveError):
        readers[0].at(n_good[0], 1)


def test_everything_before_the_end_of_truncated_data_is_read() -> None:
    compressed = gzip.compress(bytes(600_000))
    for end in range(10, len(compressed)):
        n_bytes = len(zlib.decompressobj(wbits=31).decompress(compressed[:end]))
        reader = GzipReader(io.BytesIO(compressed[:end]))
        assert len(reader.at(0, n_bytes)) == n_bytes
        with pytest.raises(BrokenArchiveError, match="cut short"):
            reader.at(n_bytes, 1)


def bytes_before_damage(reader: GzipReader, steps: int) -> int:
    """Read forward in steps until there is damage, then find its position byte by byte."""
    low, high = 0, 10_000_000
    at = 0
    while True:
        try:
            reader.at(at, steps)
            at += steps
        except BrokenArchiveError:
            break
    low, high = at, at + steps
    while low < high:
        middle = (low + high + 1) // 2
        try:
            reader.at(at, middle - at)
            low = middle
        except BrokenArchiveError:
            high = middle - 1
    return low


# -- on disk -------------------------------------------------------------------------------------------------


def test_a_file_is_read_at_any_position(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        reader = FileReader(file)
        assert reader.at(5, 1_000_000) == DATA[5:1_000_005]
        assert reader.at(len(DATA) - 3, 10) == DATA[-3:]
        assert reader.at(len(DATA) + 3, 10) == b""
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0
