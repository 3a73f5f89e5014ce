"""Reading ahead: order, exactly once, and reads that hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurepress.errors import ImageError, StorageError
from featurepress.sources.base import MAX_TIMEOUTS, read_ahead
from featurepress.specs import ImageRef

TIMEOUT_SECONDS = 0.25


def make_refs(n: int, size: int = 10) -> list[ImageRef]:
    return [ImageRef(f"{i:04d}", 0, size, "1") for i in range(n)]


earlier: set[threading.Thread] = set()  # threads of other tests, whose reads hang for an hour


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "featurepress-read" and t not in earlier]


def wait_for_no_threads(but: int = 0) -> None:
    end = time.monotonic() + 10
    while len(threads()) > but:
        assert time.monotonic() < end, f"threads go on: {threads()}"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    earlier.update(threads())
    yield
    wait_for_no_threads()


class Reads:
    """A source whose reads hang, by uri, or are slow; `release` ends the hanging."""

    def __init__(self, *, hang: set[int] = frozenset(), slow: float = 0.0) -> None:  # type: ignore[assignment]
        self.hang, self.slow = {f"{i:04d}" for i in hang}, slow
        self.release = threading.Event()
        self.started: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self._lock = threading.Lock()

    def __call__(self, ref: ImageRef) -> bytes:
        with self._lock:
            self.started.append(ref.uri)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if ref.uri in self.hang:
            self.release.wait(60)
        if self.slow:
            time.sleep(self.slow)
        with self._lock:
            self.in_flight -= 1
        return ref.uri.encode()

    def __enter__(self) -> Reads:
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()


def run(read: Any, refs: list[ImageRef], **options: Any) -> list[tuple[ImageRef, bytes | ImageError]]:
    values = {"threads": 2, "ahead_bytes": 1000, "timeout_seconds": TIMEOUT_SECONDS, **options}
    return list(read_ahead(read, iter(refs), **values))


@pytest.mark.parametrize("n_threads", [1, 2, 8])
@pytest.mark.parametrize("group_size", [1, 3, 16])
@pytest.mark.parametrize("n", [0, 1, 2, 16, 17, 100])
def test_every_image_comes_once_in_order(n: int, n_threads: int, group_size: int) -> None:
    refs = make_refs(n)
    outcomes = run(Reads(), refs, threads=n_threads, group_size=group_size)
    assert outcomes == [(ref, ref.uri.encode()) for ref in refs]


def test_slow_reads_run_concurrently() -> None:
    refs = make_refs(40)
    reads = Reads(slow=0.01)
    outcomes = run(reads, refs, threads=4, group_size=2, timeout_seconds=10)
    assert [ref for ref, _ in outcomes] == refs
    assert 2 <= reads.most_in_flight <= 4


def test_failures_are_in_order() -> None:
    def read(ref: ImageRef) -> bytes:
        number = int(ref.uri)
        if number % 3 == 0:
            raise ImageError("read", f"no {number}")
        if number % 3 == 1:
            raise {1: ZeroDivisionError("nobody\nexpects"), 4: OSError(5, "bad disk")}.get(number, KeyError("x"))
        return b"good"

    outcomes = run(read, make_refs(9), group_size=4)
    texts = [str(outcome) if isinstance(outcome, ImageError) else outcome for _, outcome in outcomes]
    assert texts == [
        "read: no 0", "read: ZeroDivisionError: nobody\nexpects", b"good", "read: no 3",
        "read: OSError: [Errno 5] bad disk", b"good", "read: no 6", "read: KeyError: 'x'", b"good",
    ]  # fmt: skip


@pytest.mark.parametrize("n_threads", [1, 2, 4])
@pytest.mark.parametrize("hang", [{0}, {5}, {15}, {16}, {3, 4}, {0, 15, 16, 31}, {38, 39}], ids=str)
def test_a_read_that_hangs_is_abandoned_and_the_others_are_read(hang: set[int], n_threads: int) -> None:
    refs = make_refs(40)
    with Reads(hang=hang) as reads:
        outcomes = run(reads, refs, threads=n_threads)
    assert [ref for ref, _ in outcomes] == refs
    for i, (ref, outcome) in enumerate(outcomes):
        if i in hang:
            assert isinstance(outcome, ImageError)
            assert str(outcome) == f"read: timed out: no answer in {TIMEOUT_SECONDS:g} seconds"
        else:
            assert outcome == ref.uri.encode()
    assert sorted(reads.started) == [ref.uri for ref in refs]  # each was read once


def test_slow_reads_are_not_abandoned_while_they_make_progress() -> None:
    refs = make_refs(6)
    outcomes = run(Reads(slow=0.25), refs, threads=1, timeout_seconds=1.0)
    assert outcomes == [(ref, ref.uri.encode()) for ref in refs]


def test_the_result_of_an_abandoned_read_is_ignored() -> None:
    refs = make_refs(20)
    with Reads(hang={2}) as reads:
        stream = read_ahead(reads, refs, threads=1, ahead_bytes=1000, timeout_seconds=TIMEOUT_SECONDS)
        outcomes = [next(stream) for _ in range(3)]
        reads.release.set()
        outcomes += list(stream)
    assert [ref for ref, _ in outcomes] == refs
    assert [i for i, (_, outcome) in enumerate(outcomes) if isinstance(outcome, ImageError)] == [2]


def test_too_many_hanging_reads_stop_the_reading() -> None:
    with (
        Reads(hang=set(range(100))) as reads,
        pytest.raises(StorageError, match=r"stopped answering: 9 reads took longer than 0\.05 .* for '0008'\."),
    ):
        run(reads, make_refs(100), timeout_seconds=0.05)
    assert MAX_TIMEOUTS == 8


@pytest.mark.parametrize("n_threads", [1, 4])
def test_a_storage_error_stops_the_reading(n_threads: int) -> None:
    def read(ref: ImageRef) -> bytes:
        if int(ref.uri) >= 20:
            raise StorageError("The source is gone.")
        return ref.uri.encode()

    refs = make_refs(100)
    taken = []
    with pytest.raises(StorageError, match="is gone"):
        for outcome in read_ahead(read, refs, threads=n_threads, ahead_bytes=500, timeout_seconds=10):
            taken.append(outcome)
    assert taken == [(ref, ref.uri.encode()) for ref in refs[:20]]


def test_the_allowed_number_of_hanging_reads() -> None:
    with Reads(hang=set(range(0, 40, 5))) as reads:
        outcomes = run(reads, make_refs(40), timeout_seconds=0.2)
    assert sum(isinstance(outcome, ImageError) for _, outcome in outcomes) == MAX_TIMEOUTS


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 30),
    group_size=st.integers(1, 7),
    n_threads=st.integers(1, 3),
    hang=st.sets(st.integers(0, 29), max_size=3),
    ahead=st.integers(1, 500),
)
def test_every_image_comes_once_in_order_whatever_hangs(
    n: int, group_size: int, n_threads: int, hang: set[int], ahead: int
) -> None:
    refs = make_refs(n)
    with Reads(hang=hang) as reads:
        outcomes = run(
            reads, refs, threads=n_threads, group_size=group_size, ahead_bytes=ahead, timeout_seconds=0.03
        )
    assert [ref for ref, _ in outcomes] == refs
    assert {i for i, (_, o) in enumerate(outcomes) if isinstance(o, ImageError)} >= hang & set(range(n))


# -- bounds --------------------------------------------------------------------------------------------------


def settle(reads: Reads) -> int:
    """Wait until no more reads start; return their number."""
    seen = -1
    while seen != len(reads.started):
        seen = len(reads.started)
        time.sleep(0.05)
    return seen


@pytest.mark.parametrize(("ahead_bytes", "most"), [(100, 20), (1, 16), (1000, 112)])
def test_the_bytes_that_wait_are_limited(ahead_bytes: int, most: int) -> None:
    """A group of 16 may exceed the limit, and one group may always wait."""
    reads = Reads()
    stream = read_ahead(reads, make_refs(1000), threads=2, ahead_bytes=ahead_bytes, timeout_seconds=10)
    for taken in range(1, 6):
        next(stream)
        assert settle(reads) <= max(most, 16) + 16 + (taken + 15) // 16 * 16
    stream.close()  # type: ignore[attr-defined]


def test_large_images_are_read_in_small_groups() -> None:
    reads = Reads()
    refs = make_refs(50, size=3 * 1024**2)
    stream = read_ahead(reads, refs, threads=2, ahead_bytes=10 * 1024**2, timeout_seconds=10)
    next(stream)
    assert settle(reads) <= 6
    stream.close()  # type: ignore[attr-defined]


def test_references_are_consumed_as_needed() -> None:
    taken: list[int] = []

    def refs() -> Iterator[ImageRef]:
        for i, ref in enumerate(make_refs(100_000)):
            taken.append(i)
            yield ref

    stream = read_ahead(Reads(), refs(), threads=2, ahead_bytes=1000, timeout_seconds=10)
    next(stream)
    assert len(taken) <= 200
    stream.close()  # type: ignore[attr-defined]


def test_an_error_of_the_references_reaches_the_consumer() -> None:
    def refs() -> Iterator[ImageRef]:
        yield from make_refs(5)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(read_ahead(Reads(), refs(), threads=2, ahead_bytes=1000, timeout_seconds=10))


def test_threads_end_when_the_consumer_stops_early() -> None:
    stream = read_ahead(Reads(slow=0.001), make_refs(1000), threads=4, ahead_bytes=1000, timeout_seconds=10)
    for _ in range(3):
        next(stream)
    assert threads()
    stream.close()  # type: ignore[attr-defined]
    wait_for_no_threads()


def test_threads_end_when_everything_is_read() -> None:
    assert len(run(Reads(), make_refs(100))) == 100
    wait_for_no_threads()
