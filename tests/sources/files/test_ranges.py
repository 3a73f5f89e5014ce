"""A listing by concurrent requests equals a sequential one, and its memory is limited."""

from __future__ import annotations

import bisect
import itertools
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from featurepress.sources.files import ranges
from featurepress.sources.files.awkward_keys import Object, is_awkward
from featurepress.sources.files.ranges import list_in_ranges, split_keys

PAGE = 20
ALONE = ranges.PAGES_ALONE * PAGE


class Store:
    """List keys page by page, slowly, and count."""

    def __init__(self, keys: list[str], seconds: float = 0.0, fails_at: str = "\U0010ffff") -> None:
        self.keys, self.seconds, self.fails_at = sorted(keys), seconds, fails_at
        self.n_pages = self.n_now = self.most_now = self.n_given = 0
        self._lock = threading.Lock()

    def list_from(self, start: str) -> Iterator[Object]:
        position = bisect.bisect_right(self.keys, start)
        while True:
            page = self._page(position)
            for key in page:
                if key >= self.fails_at:
                    raise OSError(f"at {self.fails_at}")
                yield Object(key, 1, "")
            position += PAGE
            if len(page) < PAGE:
                return

    def _page(self, position: int) -> list[str]:
        with self._lock:
            self.n_pages += 1
            self.n_now += 1
            self.most_now = max(self.most_now, self.n_now)
        time.sleep(self.seconds)
        page = self.keys[position : position + PAGE]
        with self._lock:
            self.n_now -= 1
            self.n_given += len(page)
        return page


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ranges, "PAGE", PAGE)
    before = threading.active_count()
    yield
    end = time.monotonic() + 20
    while threading.active_count() > before:
        assert time.monotonic() < end, "threads are left"
        time.sleep(0.01)


def numbers(n: int) -> list[str]:
    return [f"in/{number:09d}.jpg" for number in range(n)]


def folders(n: int) -> list[str]:
    draw = random.Random(5)
    names = [
        f"in/{name}" for name in ("Apple Braeburn", "Apple Golden 1", "Banana", "Kiwi", "zwetschge", "Öl", "香蕉")
    ]
    return [f"{draw.choice(names)}/{draw.randrange(10 * n)}_100.jpg" for _ in range(n)]


def hashes(n: int) -> list[str]:
    draw = random.Random(6)
    return [f"in/{draw.getrandbits(64):016x}" for _ in range(n)]


def odd(n: int) -> list[str]:
    """Short keys of various characters, many of which are prefixes of others."""
    draw = random.Random(7)
    characters = " !+-.0159AZ_az~é\u4e2d\ue000\U0001f34e"
    found = (f"in/{''.join(draw.choices(characters, k=draw.randint(1, 6)))}" for _ in itertools.count())
    return list(itertools.islice((key for key in found if not is_awkward(key)), n))


LAYOUTS = [numbers, folders, hashes, odd]


@pytest.mark.parametrize("make", LAYOUTS)
@pytest.mark.parametrize("n", [0, 1, PAGE - 1, PAGE, ALONE, ALONE + 1, 100 * PAGE])
def test_every_key_comes_once_and_in_order(make: type, n: int) -> None:
    keys = sorted(set(make(n)))
    for start in ("", *keys[:: max(1, len(keys) // 4)]):
        found = [one.key for one in list_in_ranges(Store(keys).list_from, "in/", start)]
        assert found == [key for key in keys if key > start]


@pytest.mark.parametrize("make", LAYOUTS)
def test_pages_are_listed_concurrently_with_few_more_requests(make: type) -> None:
    keys = sorted(set(make(400 * PAGE)))
    store = Store(keys, seconds=0.01)
    begun = time.monotonic()
    assert [one.key for one in list_in_ranges(store.list_from, "in/")] == keys
    seconds, n_least = time.monotonic() - begun, len(keys) / PAGE
    assert store.n_pages < 2 * n_least + 30
    assert 8 <= store.most_now <= ranges.STREAMS
    assert seconds < store.n_pages * 0.01 / 2  # sequential requests take at least twice as long


def test_a_short_listing_makes_no_extra_requests() -> None:
    store = Store(numbers(2 * PAGE + 5))
    assert len(list(list_in_ranges(store.list_from, "in/"))) == 2 * PAGE + 5
    assert (store.n_pages, store.most_now) == (3, 1)


@pytest.mark.parametrize("make", LAYOUTS)
def test_an_error_is_raised_in_order(make: type) -> None:
    keys = sorted(set(make(100 * PAGE)))
    bad = keys[len(keys) * 2 // 3]
    found = []
    with pytest.raises(OSError, match="at "):
        for one in list_in_ranges(Store(keys, fails_at=bad).list_from, "in/"):
            found.append(one.key)
    assert found == [key for key in keys if key < bad]


def test_the_objects_that_wait_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "MAX_BEFORE", 10 * PAGE)
    monkeypatch.setattr(ranges, "MAX_WAITING", 20 * PAGE)
    listings: list[ranges._Ranges] = []

    class Watched(ranges._Ranges):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            listings.append(self)

    monkeypatch.setattr(ranges, "_Ranges", Watched)
    most = n_taken = 0
    for _ in list_in_ranges(Store(numbers(2_000 * PAGE)).list_from, "in/"):
        n_taken += 1
        if listings and n_taken % PAGE == 0:
            if n_taken % 2_000 == 0:
                time.sleep(0.01)  # the requests run ahead
            most = max(most, sum(one.n_waiting for one in list(listings[0]._ranges)))
    assert n_taken == 2_000 * PAGE
    assert 10 * PAGE <= most <= (20 + ranges.STREAMS) * PAGE  # each request in flight may add a page


def test_stopping_early_stops_the_requests() -> None:
    store = Store(numbers(3_000 * PAGE), seconds=0.001)
    listing = list_in_ranges(store.list_from, "in/")
    assert len(list(itertools.islice(listing, 10 * PAGE))) == 10 * PAGE
    listing.close()  # type: ignore[attr-defined]
    time.sleep(0.1)
    n_pages = store.n_pages
    time.sleep(0.2)
    assert store.n_pages == n_pages < 2_000


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("in/0001", "in/0009"),
        ("in/0001", "in/0002"),
        ("in/0001", None),
        ("in/a", "in/aa"),
        ("in/-x", "in/0"),
        ("in/.x", "in/0"),
        ("in/~~", None),
        ("in/é", "in/ê"),
        ("in/\ud7ff", "in/\ue000"),
        ("in/", "in/~"),
    ],
)
def test_split_keys_are_between_both(low: str, high: str | None) -> None:
    found = list(split_keys(low, high))
    assert found
    for key in found:
        assert low < key
        assert high is None or key < high
        key.encode()
        assert not is_awkward(key)


def test_ends_of_folders_are_tried_first() -> None:
    assert list(itertools.islice(split_keys("Test/apple/0003.jpg", None), 2)) == ["Test/~", "Test/apple/~"]
    assert next(split_keys("Test/apple/0003.jpg", "Test/~")) == "Test/apple/~"


def test_there_is_no_split_key_between_neighbours() -> None:
    assert list(split_keys("in/a", "in/a")) == []
    assert list(split_keys("in/b", "in/a")) == []
    assert list(split_keys("in/a", "in/a ")) == []
