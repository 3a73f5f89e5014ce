"""Commit the listing to the destination, chunk by chunk, while its shards are already being pressed."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator

from featurepress import ledger
from featurepress.ledger import Chunk, Plan
from featurepress.records import ImageRef
from featurepress.sources import Listing


class Lister:
    """Commits the listing chunk by chunk in a thread, and hands out the chunks that stand.

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
        self._outbox: queue.SimpleQueue[Chunk | BaseException | None] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="featurepress-list", daemon=True)

    def __enter__(self) -> Lister:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()

    def __iter__(self) -> Iterator[Chunk]:
        while (item := self._outbox.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _work(self) -> None:
        try:
            for chunk in self._chunks():
                self._outbox.put(chunk)
                if self._stopping:
                    break
            self._outbox.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the chunks are taken
            self._outbox.put(error)

    def _chunks(self) -> Iterator[Chunk]:
        """Yield the chunks that stand, then those that this listing adds, then say that it is complete."""
        plan, n_images, last_key = self._plan, 0, b""
        skipped_before: dict[str, int] = {}
        complete = ledger.read_listing(plan)
        for number in itertools.count():
            if complete is not None and number == complete["chunks"]:
                return
            chunk = ledger.read_chunk(plan, number) if self._refs is None or complete else None
            if chunk is None:
                if self._refs is None:
                    skipped_before = self._take_up(last_key, n_images, skipped_before)
                chunk = self._commit(number, skipped_before)
            if chunk is None:
                ledger.finish_listing(plan, number, n_images, self._skipped(skipped_before))
                return
            n_images += chunk.n_images
            if self._refs is None or chunk.last_key != self._last_listed:
                # Another driver's chunk, or an earlier run's: the listing goes on where that one ended.
                self._refs, last_key, skipped_before = None, chunk.last_key, dict(chunk.skipped)
            yield chunk

    def _take_up(self, last_key: bytes, n_images: int, skipped: dict[str, int]) -> dict[str, int]:
        self._listing = Listing(
            self._plan.sources, self._plan.settings.listing, start_after=last_key, n_before=n_images
        )
        self._refs = iter(self._listing)
        return skipped

    def _commit(self, number: int, skipped_before: dict[str, int]) -> Chunk | None:
        assert self._refs is not None
        size = self._plan.layout.tier(number).chunk
        refs = list(itertools.islice(self._refs, size))
        if not refs:
            return None
        self._last_listed = refs[-1].order
        return ledger.commit_chunk(self._plan, number, refs, self._skipped(skipped_before))

    def _skipped(self, before: dict[str, int]) -> dict[str, int]:
        skipped = dict(before)
        for reason, count in (self._listing.skipped if self._listing else {}).items():
            skipped[reason] = skipped.get(reason, 0) + count
        return skipped
