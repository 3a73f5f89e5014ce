"""Commit the listing to the destination, chunk by chunk, while its first shards are embedded."""

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


class ShardGroup(Protocol):
    """Shards that can be embedded: those of a chunk of the listing, or a revised one."""

    @property
    def n_images(self) -> int:
        """Number of images in these shards."""

    @property
    def n_more(self) -> int:
        """Number of images by which the feature set grows."""

    @property
    def shards(self) -> range:
        """The numbers of the shards."""


class Lister:
    """Iterates over shard groups in a thread, ahead of the consumer; each is committed before it is yielded."""

    def __init__(self, groups: Iterable[ShardGroup]) -> None:
        self._groups = groups
        self._outbox: queue.SimpleQueue[ShardGroup | BaseException | None] = queue.SimpleQueue()
        self._stopping = False
        self.n_images = 0  # in the groups so far
        self.is_complete = False  # whether that was the last group
        self._thread = threading.Thread(target=self._list, name="featurepress-list", daemon=True)

    def __enter__(self) -> Lister:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()

    def __iter__(self) -> Iterator[ShardGroup]:
        while (item := self._outbox.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _list(self) -> None:
        try:
            for group in self._groups:
                self.n_images += group.n_images
                self._outbox.put(group)
                if self._stopping:
                    break
            else:
                self.is_complete = True
            self._outbox.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again by the iterator
            self._outbox.put(error)


class NewListing:
    """The chunks of a listing: the existing ones, then new ones, each committed when it is taken.

    Without `listing` (a listing that has begun) and `refs` (all of its references), a new listing continues after
    the last existing chunk.
    """

    def __init__(self, plan: Plan, listing: Listing | None = None, refs: Iterator[ImageRef] | None = None) -> None:
        self._plan = plan
        self._listing = listing
        self._refs = refs
        self._last_listed = b""
        self._skipped_before: Mapping[str, int] = {}

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks; at the end record that the listing is complete."""
        plan, n_images = self._plan, 0
        last: Chunk | None = None
        complete = ledger.read_listing(plan)
        for number in itertools.count():
            if complete is not None and number == complete["chunks"]:
                return
            # A chunk that is not full stays the last one, even if the sources have more images now.
            if last is not None and last.n_images < plan.layout.tier(last.number).chunk:
                ledger.finish_listing(plan, number, n_images, last.skipped)
                return
            chunk = ledger.read_chunk(plan, number) if self._refs is None or complete else None
            if chunk is None:
                if self._refs is None:
                    self._continue_after(last, n_images)
                chunk = self._commit(number)
            if not chunk.n_images:  # an empty chunk marks the end
                ledger.finish_listing(plan, number, n_images, chunk.skipped)
                return
            n_images += chunk.n_images
            if chunk.last_key != self._last_listed:
                # This chunk is of another driver or run: the listing continues where it ends.
                self._refs = None
            last = chunk
            yield chunk

    def _continue_after(self, last: Chunk | None, n_images: int) -> None:
        """Start a listing after the last existing chunk."""
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
        """Commit the next chunk; at the end of the listing an empty one."""
        assert self._refs is not None
        refs = list(itertools.islice(self._refs, self._plan.layout.tier(number).chunk))
        self._last_listed = refs[-1].order if refs else b""
        positions = () if self._listing is None else self._listing.positions
        return ledger.commit_chunk(self._plan, number, refs, self._skipped(), positions)

    def _skipped(self) -> dict[str, int]:
        skipped = collections.Counter(self._skipped_before)
        skipped.update({} if self._listing is None else self._listing.skipped)
        return dict(sorted(skipped.items()))
