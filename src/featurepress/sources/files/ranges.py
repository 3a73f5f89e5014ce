"""A long listing made by many concurrent requests, in byte order.

A store returns a thousand keys per request, and only then where the next request begins: sequentially, a million
keys take minutes. Here the keys are split into ranges that are listed concurrently, and yielded range after range.

The distribution of the keys is not known. So a listing begins as one range. While it is long and a thread is idle,
this thread splits the first range that is still being listed: it requests the keys after some key between the
current position of the range and its end. If there are none, the range ends at that key; otherwise they are the
beginning of a new range. The number of objects that wait for the consumer is bounded.
"""

from __future__ import annotations

import collections
import itertools
import string
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from featurepress.sources.files.awkward_keys import Object, is_awkward

PAGE = 1_000  # keys per request
STREAMS = 32
PAGES_ALONE = 8  # a listing that is not longer stays one range
# Most objects, of about 300 bytes, that may wait: in a range and those before it, and in total.
MAX_BEFORE, MAX_WAITING = 100_000, 200_000
_FIRST_SPLITS = 32  # allowed for the first range, to find where its keys end; later, each page allows one more
_LAST = "~"  # a character that sorts after those of most keys
_USUAL = string.digits + string.ascii_uppercase + string.ascii_lowercase + _LAST

ListFrom = Callable[[str], Iterator[Object]]


def list_in_ranges(list_from: ListFrom, prefix: str, start: str = "", streams: int = STREAMS) -> Iterator[Object]:
    """Yield the objects after the key `start`, in byte order, by at most `streams` concurrent requests.

    `list_from` yields the objects after a key page by page, and is called from several threads; an error that it
    raises is raised after all objects before that position. All keys begin with `prefix`.
    """
    last, n_left = start, PAGES_ALONE * PAGE
    for found in itertools.islice(list_from(start), n_left):
        yield found
        last, n_left = found.key, n_left - 1
    if n_left:
        return
    listing = _Ranges(list_from, prefix, last, streams)
    try:
        yield from listing.objects()
    finally:
        listing.stop()


@dataclass
class _Range:
    """The keys after `at`, up to and including `end`; pages that are already listed wait for the consumer."""

    at: str
    end: str | None
    waiting: collections.deque[list[Object]] = field(default_factory=collections.deque)
    n_waiting: int = 0
    n_splits: int = 0  # that are still allowed
    is_listed: bool = False  # to its end
    is_being_listed: bool = False
    tried: set[str] = field(default_factory=set)  # keys at which it was split, or is being split
    error: BaseException | None = None

    def add(self, page: Sequence[Object], *, is_last: bool) -> None:
        """Add a page of objects after `at`; drop those that belong to the next range."""
        own = [found for found in page if self.end is None or found.key <= self.end]
        self.is_listed = self.is_listed or is_last or len(own) < len(page)
        if own:
            self.at = own[-1].key
            self.waiting.append(own)
            self.n_waiting += len(own)
        self.n_splits += 1

    def next_split(self) -> str | None:
        """Return the key at which to split next, or None if it is not worthwhile."""
        if self.is_listed or self.error or self.n_splits < 1:
            return None
        found = next((key for key in split_keys(self.at, self.end) if key not in self.tried), None)
        if found is not None:
            self.n_splits -= 1
            self.tried.add(found)
        return found


class _Ranges:
    """The ranges of a listing, in order, and the threads that list and split them."""

    def __init__(self, list_from: ListFrom, prefix: str, start: str, streams: int) -> None:
        self._list_from = list_from
        end = prefix + _LAST  # keys after it are a separate range
        self._ranges = [_Range(start, end if start < end else None, n_splits=_FIRST_SPLITS)]
        if start < end:
            self._ranges.append(_Range(end, None))
        self._changed = threading.Condition()
        self._is_stopped = False
        for _ in range(streams):  # not joined at the end: a request that hangs may take minutes
            threading.Thread(target=self._work, name="featurepress-list", daemon=True).start()

    def objects(self) -> Iterator[Object]:
        """Yield the objects, range by range."""
        while page := self._next_page():
            yield from page

    def stop(self) -> None:
        """End the threads after their current requests."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def _next_page(self) -> list[Object]:
        """Wait for a page of the first range, and return it; return an empty one at the end."""
        with self._changed:
            while self._ranges:
                first = self._ranges[0]
                if first.waiting:
                    page = first.waiting.popleft()
                    first.n_waiting -= len(page)
                    self._changed.notify_all()
                    return page
                if first.error:
                    raise first.error
                if first.is_listed:
                    self._ranges.pop(0)
                else:
                    self._changed.wait()
        return []

    # -- in the threads --------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                chosen = None
                while not self._is_stopped and (chosen := self._choose()) is None:
                    self._changed.wait()
            if chosen is None:
                return
            one, split_at = chosen
            if split_at is None:
                self._list(one)
            else:
                self._split(one, split_at)

    def _choose(self) -> tuple[_Range, str | None] | None:
        """Return a range to list, or one to split and the key; mark it as taken."""
        near = list(self._below_limits())
        for one in near:
            if not (one.is_being_listed or one.is_listed or one.error):
                one.is_being_listed = True
                return one, None
        for one in near:
            if (split_at := one.next_split()) is not None:
                return one, split_at
        return None

    def _below_limits(self) -> Iterator[_Range]:
        """Yield the ranges that may continue: far ones must not use up the memory that near ones need."""
        n_before, total = 0, sum(one.n_waiting for one in self._ranges)
        for one in self._ranges:
            n_before += one.n_waiting
            if n_before >= MAX_BEFORE or (total >= MAX_WAITING and one is not self._ranges[0]):
                return
            yield one

    def _list(self, one: _Range) -> None:
        """List a range to its end, or until the limits are reached."""
        found, continues = self._list_from(one.at), True
        while continues:
            page, error = _pull(found)
            with self._changed:
                one.add(page, is_last=error is None and len(page) < PAGE)
                one.error = None if one.is_listed else error
                continues = not (one.is_listed or one.error or self._is_stopped)
                continues = continues and any(other is one for other in self._below_limits())
                one.is_being_listed = continues
                self._changed.notify_all()

    def _split(self, one: _Range, key: str) -> None:
        """Split a range in two, or find that there is nothing after the key."""
        page, error = _pull(self._list_from(key))
        with self._changed:
            # After an error, the thread that lists the range meets it too, at the right position.
            is_inside = one.at < key and (one.end is None or key < one.end)  # still, while others work
            if is_inside and not (error or one.error or one.is_listed):
                rest = _Range(key, one.end)
                rest.add(page, is_last=len(page) < PAGE)
                one.end = key
                if rest.waiting or not rest.is_listed:
                    self._ranges.insert(self._ranges.index(one) + 1, rest)
            self._changed.notify_all()


def _pull(found: Iterator[Object]) -> tuple[list[Object], BaseException | None]:
    """Return the next page of a listing, and the error that ended it."""
    page: list[Object] = []
    try:
        page.extend(itertools.islice(found, PAGE))
    except BaseException as error:  # noqa: BLE001 - raised again for the consumer; even a panic of the library
        return page, error
    return page, None


def split_keys(low: str, high: str | None) -> Iterator[str]:
    """Yield keys between two at which to split: the ends of folders, then characters where the keys differ."""
    if high is not None and low >= high:
        return
    n = next(
        (i for i, (a, b) in enumerate(zip(low, high or "", strict=False)) if a != b), min(len(low), len(high or ""))
    )
    for i in range(n, len(low)):
        if low[i] == "/":
            yield from _addressable(low[: i + 1], [_LAST] * (low[i + 1 :] < _LAST))
    above = high[n] if high else None
    while True:
        yield from _addressable(low[:n], _between(low[n : n + 1], above))
        if n >= len(low):
            return
        n, above = n + 1, None


def _between(below: str, above: str | None) -> list[str]:
    """Return characters between two, each far from those before it."""
    found = [char for char in _USUAL if below < char and (above is None or char < above)]
    if above is not None and above > _LAST:
        middle = (max(ord(below or _LAST), ord(_LAST)) + ord(above)) // 2
        found += [chr(middle)] * (below < chr(middle) < above and not 0xD800 <= middle < 0xE000)
    width = len(found).bit_length()
    return [found[i] for i in sorted(range(len(found)), key=lambda i: f"{i:0{width}b}"[::-1])]


def _addressable(head: str, chars: Iterable[str]) -> Iterator[str]:
    """Yield the head with each character, where a request can contain this key."""
    return (head + char for char in chars if not is_awkward(head + char))
