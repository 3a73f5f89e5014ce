"""A long listing by many requests at once, in byte order all the same.

A store gives a thousand keys a request, and says only then where the next request begins: one after the other, a
million keys take minutes. Here the keys are cut into ranges, each of which is listed by requests of its own, and
whoever takes them gets range after range.

Nobody knows beforehand where the keys lie. So a listing begins as one range, and goes on so if it is short. While
it is long, and a thread has nothing to do, that thread cuts the first range that is still being listed: it asks for
the keys after some key between where the range is and where it ends. If there are none, the range ends there from
now on; otherwise they are the beginning of a new range. What is listed ahead waits to be taken, and is bounded.
"""

from __future__ import annotations

import collections
import itertools
import string
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from featurepress.sources.files.awkward_keys import Object, is_awkward

PAGE = 1_000  # keys of a request
STREAMS = 32
PAGES_ALONE = 8  # a listing that is not longer stays one range
# Objects that may wait to be taken, about 300 bytes each: in a range and those before it, and in all.
MOST_BEFORE, MOST_WAITING = 100_000, 200_000
_FIRST_CUTS = 32  # that the first range is granted to find where its keys end; later each page pays for one
_LAST = "~"  # a character behind those of most keys
_USUAL = string.digits + string.ascii_uppercase + string.ascii_lowercase + _LAST

ListFrom = Callable[[str], Iterator[Object]]


def list_in_ranges(list_from: ListFrom, prefix: str, start: str = "", streams: int = STREAMS) -> Iterator[Object]:
    """Yield the objects after a key, in byte order.

    Parameters
    ----------
    list_from : callable
        Yields the objects after a key, in byte order, page by page; called in several threads. It must begin there
        and lists only what remains.
    prefix : str
        With what all keys begin.
    start : str
        The key.
    streams : int
        Most requests at once.

    Raises
    ------
    Exception
        Whatever `list_from` raises while it is iterated, after all that comes before.
    """
    last, n_alone = start, PAGES_ALONE * PAGE
    for one in itertools.islice(list_from(start), n_alone):
        yield one
        last, n_alone = one.key, n_alone - 1
    if n_alone:
        return
    listing = _Ranges(list_from, prefix, last, streams)
    try:
        yield from listing.objects()
    finally:
        listing.stop()


@dataclass
class _Range:
    """Keys after `at`, up to and with `end`; those that are listed already wait to be taken."""

    at: str
    end: str | None
    waiting: collections.deque[list[Object]] = field(default_factory=collections.deque)
    n_waiting: int = 0
    n_cuts: int = 0  # that it may still be given
    is_listed: bool = False  # to its end
    is_being_listed: bool = False
    tried: set[str] = field(default_factory=set)  # where it has been cut, or is being cut
    error: BaseException | None = None

    def add(self, page: Sequence[Object], *, is_last: bool) -> None:
        """Take a page of what lies behind `at`; drop what belongs to the range after this one."""
        own = [one for one in page if self.end is None or one.key <= self.end]
        self.is_listed = self.is_listed or is_last or len(own) < len(page)
        if own:
            self.at = own[-1].key
            self.waiting.append(own)
            self.n_waiting += len(own)
        self.n_cuts += 1

    def cut(self) -> str | None:
        """Say where it shall be cut next, if that is worth it."""
        if self.is_listed or self.error or self.n_cuts < 1:
            return None
        found = next((key for key in cuts(self.at, self.end) if key not in self.tried), None)
        if found is not None:
            self.n_cuts -= 1
            self.tried.add(found)
        return found


class _Ranges:
    """The ranges of a listing, in order, and the threads that list and cut them."""

    def __init__(self, list_from: ListFrom, prefix: str, start: str, streams: int) -> None:
        self._list_from = list_from
        end = prefix + _LAST  # what lies behind is a range of its own
        self._ranges = [_Range(start, end if start < end else None, n_cuts=_FIRST_CUTS)]
        if start < end:
            self._ranges.append(_Range(end, None))
        self._changed = threading.Condition()
        self._stopped = False
        for _ in range(streams):  # none of them is waited for: a request that hangs may take minutes
            threading.Thread(target=self._work, name="featurepress-list", daemon=True).start()

    def objects(self) -> Iterator[Object]:
        """Yield the objects, range by range."""
        while page := self._next_page():
            yield from page

    def stop(self) -> None:
        """Let the threads end, after the requests that are under way."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _next_page(self) -> list[Object]:
        """Wait for a page of the first range, and take it; an empty one is the end."""
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
                while not self._stopped and (chosen := self._choose()) is None:
                    self._changed.wait()
            if chosen is None:
                return
            own, cut_at = chosen
            if cut_at is None:
                self._list(own)
            else:
                self._cut(own, cut_at)

    def _choose(self) -> tuple[_Range, str | None] | None:
        """Return a range to list, or one to cut and where; mark it as taken."""
        near = list(self._with_room())
        for one in near:
            if not (one.is_being_listed or one.is_listed or one.error):
                one.is_being_listed = True
                return one, None
        for one in near:
            if (cut_at := one.cut()) is not None:
                return one, cut_at
        return None

    def _with_room(self) -> Iterator[_Range]:
        """Yield the ranges that may list on: nothing that is far from being taken may crowd out what is near."""
        before, total = 0, sum(one.n_waiting for one in self._ranges)
        for one in self._ranges:
            before += one.n_waiting
            if before >= MOST_BEFORE or (total >= MOST_WAITING and one is not self._ranges[0]):
                return
            yield one

    def _list(self, own: _Range) -> None:
        """List a range, until it is listed or there is no room."""
        found, goes_on = self._list_from(own.at), True
        while goes_on:
            page, error = _pull(found)
            with self._changed:
                own.add(page, is_last=error is None and len(page) < PAGE)
                own.error = None if own.is_listed else error
                goes_on = not (own.is_listed or own.error or self._stopped)
                goes_on = goes_on and any(one is own for one in self._with_room())
                own.is_being_listed = goes_on
                self._changed.notify_all()

    def _cut(self, own: _Range, cut_at: str) -> None:
        """Cut a range in two, or find that there is nothing behind the cut."""
        page, error = _pull(self._list_from(cut_at))
        with self._changed:
            # Whoever lists the range meets the error as well, in its place.
            is_inside = own.at < cut_at and (own.end is None or cut_at < own.end)  # still, with others at work
            if is_inside and not (error or own.error or own.is_listed):
                self._divide(own, cut_at, page)
            self._changed.notify_all()

    def _divide(self, own: _Range, cut_at: str, page: list[Object]) -> None:
        behind = _Range(cut_at, own.end)
        behind.add(page, is_last=len(page) < PAGE)
        own.end = cut_at
        if behind.waiting or not behind.is_listed:
            self._ranges.insert(self._ranges.index(own) + 1, behind)


def _pull(found: Iterator[Object]) -> tuple[list[Object], BaseException | None]:
    """Return the next page of a listing, and what went wrong in it."""
    page: list[Object] = []
    try:
        page.extend(itertools.islice(found, PAGE))
    except BaseException as error:  # noqa: BLE001 - raised again where the objects are taken, a library's panic too
        return page, error
    return page, None


def cuts(low: str, high: str | None) -> Iterator[str]:
    """Yield keys between two at which to cut: the ends of folders, then other characters where both differ.

    Parameters
    ----------
    low : str
        The lower one.
    high : str or None
        The upper one; None for no end.
    """
    if high is not None and low >= high:
        return
    n = next(
        (i for i, (a, b) in enumerate(zip(low, high or "", strict=False)) if a != b), min(len(low), len(high or ""))
    )
    for i in range(n, len(low)):
        if low[i] == "/":
            yield from _spoken(low[: i + 1], [_LAST] * (low[i + 1 :] < _LAST))
    above = high[n] if high else None
    while True:
        yield from _spoken(low[:n], _between(low[n : n + 1], above))
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


def _spoken(head: str, chars: Iterable[str]) -> Iterator[str]:
    """Yield keys of a head and a character that can be asked for."""
    return (head + char for char in chars if not is_awkward(head + char))
