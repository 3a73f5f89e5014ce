"""Commit the listing to the destination, chunk by chunk, while its shards are already being embedded."""

from __future__ import annotations

import collections
import itertools
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from featurepress import ledger
from featurepress.ledger import Chunk, Plan
from featurepress.sources import Listing
from featurepress.specs import ImageRef


class Work(Protocol):
    """Some shards that can be embedded: a chunk of the listing, or a revision of a shard."""

    @property
    def n_images(self) -> int:
        """Images in them."""

    @property
    def n_more(self) -> int:
        """By how many images the set grows with them."""

    @property
    def shards(self) -> range:
        """Their numbers."""


class Lister:
    """Takes work from an iterable in a thread, and hands it out as it comes.

    Parameters
    ----------
    work : iterable of Work
        Commits each piece before it gives it.

    Attributes
    ----------
    n_images : int
        Images in what has come so far.
    is_complete : bool
        Whether there will be no more.
    """

    def __init__(self, work: Iterable[Work]) -> None:
        self._work = work
        self._outbox: queue.SimpleQueue[Work | BaseException | None] = queue.SimpleQueue()
        self._stopping = False
        self.n_images = 0
        self.is_complete = False
        self._thread = threading.Thread(target=self._list, name="featurepress-list", daemon=True)

    def __enter__(self) -> Lister:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()

    def __iter__(self) -> Iterator[Work]:
        while (item := self._outbox.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _list(self) -> None:
        try:
            for piece in self._work:
                self.n_images += piece.n_images
                self._outbox.put(piece)
                if self._stopping:
                    break
            else:
                self.is_complete = True
            self._outbox.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the work is taken
            self._outbox.put(error)


class NewListing:
    """The chunks of a listing: those that stand, and then those that are committed as they are taken.

    Parameters
    ----------
    plan : Plan
        Its destination may already hold chunks; the listing goes on after the last one.
    listing, refs
        A listing that is already under way, and its references from the very first.
    """

    def __init__(self, plan: Plan, listing: Listing | None = None, refs: Iterator[ImageRef] | None = None) -> None:
        self._plan = plan
        self._listing = listing
        self._refs = refs
        self._last_listed = b""
        self._skipped_before: Mapping[str, int] = {}

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks, and at their end say that the listing is complete."""
        plan, n_images = self._plan, 0
        last: Chunk | None = None
        complete = ledger.read_listing(plan)
        for number in itertools.count():
            if complete is not None and number == complete["chunks"]:
                return
            # A chunk that is not full is the last for good, whatever has come to the sources since.
            if last is not None and last.n_images < plan.layout.tier(last.number).chunk:
                ledger.finish_listing(plan, number, n_images, last.skipped)
                return
            chunk = ledger.read_chunk(plan, number) if self._refs is None or complete else None
            if chunk is None:
                if self._refs is None:
                    self._take_up(last, n_images)
                chunk = self._commit(number)
            if not chunk.n_images:  # it marks the end
                ledger.finish_listing(plan, number, n_images, chunk.skipped)
                return
            n_images += chunk.n_images
            if chunk.last_key != self._last_listed:
                # Another driver's chunk, or an earlier run's: the listing goes on where that one ended.
                self._refs = None
            last = chunk
            yield chunk

    def _take_up(self, last: Chunk | None, n_images: int) -> None:
        """List on after the last chunk that stands."""
        self._listing = Listing(
            self._plan.sources,
            self._plan.settings.listing,
            start_after=b"" if last is None else last.last_key,
            positions=() if last is None else last.positions,
            n_before=n_images,
            limits=self._plan.settings.images,
        )
        self._refs = iter(self._listing)
        self._skipped_before = {} if last is None else last.skipped

    def _commit(self, number: int) -> Chunk:
        """Commit the next chunk, or at the end of the listing an empty one."""
        assert self._refs is not None
        refs = list(itertools.islice(self._refs, self._plan.layout.tier(number).chunk))
        self._last_listed = refs[-1].order if refs else b""
        positions = () if self._listing is None else self._listing.positions
        return ledger.commit_chunk(self._plan, number, refs, self._skipped(), positions)

    def _skipped(self) -> dict[str, int]:
        skipped = collections.Counter(self._skipped_before)
        skipped.update({} if self._listing is None else self._listing.skipped)
        return dict(sorted(skipped.items()))
