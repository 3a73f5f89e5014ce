"""Readers that stay open between shards."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from featurepress.sources.containers import OpenReaders

TIMEOUT_SECONDS = 20.0


class FakeReader:
    """A reader that knows whether it is closed."""

    def __init__(self, held_bytes: int = 0) -> None:
        self.held_bytes = held_bytes
        self.is_closed = False

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


def opener(readers: list[FakeReader], held_bytes: int = 0) -> Callable[[], FakeReader]:
    def open_reader() -> FakeReader:
        readers.append(FakeReader(held_bytes))
        return readers[-1]

    return open_reader


def test_the_readers_used_last_stay_open() -> None:
    readers: list[FakeReader] = []
    kept: OpenReaders[FakeReader] = OpenReaders(most=3, most_bytes=100)
    for name in "abcabcaad":
        with kept.using(name, opener(readers)) as reader:
            assert not reader.is_closed
    assert [reader.is_closed for reader in readers] == [False, True, False, False]
    kept.close()
    assert all(reader.is_closed for reader in readers)


def test_two_readers_may_hold_more_than_the_limit() -> None:
    readers: list[FakeReader] = []
    kept: OpenReaders[FakeReader] = OpenReaders(most=9, most_bytes=100)
    for name in "abcd":
        with kept.using(name, opener(readers, held_bytes=60)):
            pass
    assert [reader.is_closed for reader in readers] == [True, True, False, False]


def test_a_reader_in_use_is_not_closed() -> None:
    readers: list[FakeReader] = []
    kept: OpenReaders[FakeReader] = OpenReaders(most=2, most_bytes=0)
    with kept.using("a", opener(readers)) as first:
        for name in "bcde":
            with kept.using(name, opener(readers)):
                pass
        kept.close()
    assert [reader.is_closed for reader in readers] == [False, True, True, True, True]
    with kept.using("a", opener(readers)) as again:
        assert again is first


def test_a_reader_that_cannot_be_opened_is_opened_again() -> None:
    readers: list[FakeReader] = []
    kept: OpenReaders[FakeReader] = OpenReaders(most=2, most_bytes=0)

    def fail() -> FakeReader:
        raise OSError("away")

    with kept.using("b", opener(readers)):
        pass
    for name in "aacd":
        with pytest.raises(OSError, match="away"), kept.using(name, fail):
            pass
    assert [reader.is_closed for reader in readers] == [False]
    with kept.using("a", opener(readers)):
        pass
    assert len(readers) == 2


def test_threads_open_a_reader_once() -> None:
    readers: list[FakeReader] = []
    kept: OpenReaders[FakeReader] = OpenReaders(most=2, most_bytes=0)
    barrier = threading.Barrier(8)

    def use(_: int) -> None:
        barrier.wait(TIMEOUT_SECONDS)
        with kept.using("a", opener(readers)):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert len(readers) == 1


FORKED = """
import os
from featurepress.sources.containers import OpenReaders
from tests.sources.test_containers import FakeReader, opener
readers = []
kept = OpenReaders(most=2, most_bytes=0)
def use():
    with kept.using("a", opener(readers)):
        return len(readers)
assert use() == use() == 1
child = os.fork()
if child == 0:
    os._exit(use())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
"""


def test_a_forked_process_opens_its_own_readers() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60)
