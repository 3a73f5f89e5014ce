"""Find what has changed since a feature set was embedded: the shards of its next generation.

An update compares the listing of the sources with the references of all parts, both in byte order, and keeps one
part of each generation in memory. A part is revised if one of its images is deleted or has another version; the
other rows of that part are carried over. New images go to new parts. A retry revises the parts that have failures.
Commits are final: an interrupted comparison starts again, and keeps what is committed.
"""

from __future__ import annotations

import contextlib
import heapq
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from featurepress import ledger
from featurepress.ledger import Chunk, Plan, References, Revision
from featurepress.ledger.parts import PartFormat
from featurepress.sources import Listing, open_source
from featurepress.specs import Failure, ImageRef

CONCURRENT_LOOKUPS = 32
_CHECK_SECONDS = 1.0  # between two checks whether another driver has finished the generation


class Known(NamedTuple):
    """An image of a feature set: its reference, its shard, and the generation in which that was new."""

    ref: ImageRef
    shard: int
    generation: int


class History:
    """The references of a complete feature set, over all its generations.

    Parameters
    ----------
    plan : Plan
        Of the generation that follows.
    """

    def __init__(self, plan: Plan) -> None:
        generations = (ledger.read_generation(plan.storage, number) for number in range(1, plan.generation))
        self._plans = [earlier for earlier in generations if earlier is not None]
        self._revised = {earlier.generation: ledger.revised_shards(earlier) for earlier in self._plans}

    def images(self) -> Iterator[Known]:
        """Yield all images in byte order."""
        streams = [self._images_of(plan) for plan in self._plans]
        return streams[0] if len(streams) == 1 else heapq.merge(*streams, key=lambda known: known.ref.order)

    def _images_of(self, plan: Plan) -> Iterator[Known]:
        """Yield the current images of the shards that were new in a generation."""
        listing = ledger.read_listing(plan)
        for number in range(0 if listing is None else listing["chunks"]):
            for shard, refs in ledger.read_chunk_shards(plan, number):
                newest = self._newest(shard)
                for ref in refs if newest is None else ledger.read_revision(newest, shard).refs:
                    yield Known(ref, shard, plan.generation)

    def refs_of(self, shard: int) -> list[ImageRef]:
        """Return the current references of a shard."""
        newest = self._newest(shard)
        return (
            ledger.read_shard(self._origin(shard), shard)
            if newest is None
            else ledger.read_revision(newest, shard).refs
        )

    def count_images(self) -> int:
        """Return the number of images, from the committed references."""
        total = 0
        for plan in self._plans:
            listing = ledger.read_listing(plan) or {"chunks": 0}
            chunks = (ledger.read_chunk(plan, number) for number in range(listing["chunks"]))
            total += sum(chunk.n_images for chunk in chunks if chunk is not None)
            total += sum(
                revision.n_more for revision in ledger.count_revisions(plan, self._revised[plan.generation])
            )
        return total

    @property
    def last_revised(self) -> set[int]:
        """The shards that the last generation has revised."""
        return self._revised[self._plans[-1].generation]

    def generation_of(self, shard: int) -> int:
        """Return the generation that wrote the current part of a shard."""
        return (self._newest(shard) or self._origin(shard)).generation

    def _newest(self, shard: int) -> Plan | None:
        """Return the last generation that has revised a shard, if any."""
        return next((plan for plan in reversed(self._plans) if shard in self._revised[plan.generation]), None)

    def _origin(self, shard: int) -> Plan:
        """Return the generation in which a shard was new."""
        return next(plan for plan in reversed(self._plans) if plan.first_shard <= shard)


@dataclass
class _Part:
    """A part while its images are compared."""

    shard: int
    refs: list[ImageRef] = field(default_factory=list)
    carried: list[bool] = field(default_factory=list)
    n_before: int = 0
    has_changed: bool = False

    def add(self, ref: ImageRef, *, carried: bool) -> None:
        self.refs.append(ref)
        self.carried.append(carried)


class _Generation:
    """The shard groups of an update or a retry, which begins with the first change.

    Another driver may do the same at the same time. The commits of both are valid, and all totals are computed from
    what is committed.
    """

    def __init__(self, plan: Plan, begin: Callable[[set[int]], None] | None = None) -> None:
        self.plan = plan
        self._begin = begin
        self.has_begun = begin is None
        self._revised: set[int] = set()  # whose revision is committed and was yielded
        self._n_images = 0
        self._n_before = 0  # images of the set before this generation
        self._n_chunks = 0
        self._is_ended = False  # the last chunk is committed
        self._checked_at = 0.0

    def __iter__(self) -> Iterator[Chunk | Revision]:
        """Yield what is committed, then find, commit and yield the rest; at the end complete the listing."""
        for work in self._all():
            self._n_images += work.n_images
            yield work

    def _all(self) -> Iterator[Chunk | Revision]:
        is_complete = self.has_begun and ledger.read_listing(self.plan) is not None
        yield from self._committed()  # read after the listing: when that is complete, so are they
        if is_complete:
            return
        with contextlib.suppress(_FinishedError):
            yield from self._found()
        if self.has_begun:
            self._finish()
            yield from self._committed()  # also by another driver in the meantime

    def _committed(self) -> Iterator[Chunk | Revision]:
        """Yield what is committed and was not yielded yet."""
        if not self.has_begun:
            return
        for shard in sorted(ledger.revised_shards(self.plan) - self._revised):
            self._revised.add(shard)
            yield ledger.count_revision(self.plan, shard)
        while not self._is_ended and (chunk := ledger.read_chunk(self.plan, self._n_chunks)) is not None:
            yield from self._take(chunk)

    def _take(self, chunk: Chunk) -> Iterator[Chunk]:
        """Yield a committed chunk, unless it only marks the end."""
        self._is_ended = chunk.n_images < self.plan.layout.tier(chunk.number).chunk
        if chunk.n_images:
            self._n_chunks += 1
            yield chunk

    def _found(self) -> Iterator[Chunk | Revision]:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def _revise(self, part: _Part, history: History) -> Iterator[Revision]:
        """Commit the revision of a part, unless there is one."""
        if part.has_changed and part.shard not in self._revised:
            self._begin_now(history)
            self._require_open()
            base = history.generation_of(part.shard)
            references = References(part.refs, part.carried, base)
            self._revised.add(part.shard)
            yield ledger.commit_revision(self.plan, part.shard, references, part.n_before)

    def _begin_now(self, history: History) -> None:
        if not self.has_begun and self._begin is not None:
            self._begin(history.last_revised)
            self.has_begun = True

    def _require_open(self) -> None:
        """Raise _FinishedError if another driver has finished the generation, as while this one was suspended."""
        if abs(time.time() - self._checked_at) < _CHECK_SECONDS:
            return
        if ledger.read_listing(self.plan) is not None:
            raise _FinishedError
        self._checked_at = time.time()


class _FinishedError(Exception):
    """Another driver has completed this generation; later changes belong to the next one."""


class Comparison(_Generation):
    """The shard groups of an update: each is committed when it is taken.

    Parameters
    ----------
    plan : Plan
        Of the new generation.
    begin : callable, optional
        Called once before the first commit, with the shards that the generation before has revised; never called if
        nothing has changed. None if an earlier run has begun the generation.

    Attributes
    ----------
    n_new, n_changed, n_deleted : int
        Images so far. Changed are those with another version, even if their bytes are the same.

    Notes
    -----
    Time: a few microseconds per image. Memory: the largest part of each generation, and a chunk of new images.
    """

    def __init__(self, plan: Plan, begin: Callable[[set[int]], None] | None = None) -> None:
        super().__init__(plan, begin)
        self.n_new = self.n_changed = self.n_deleted = 0
        settings = plan.settings
        self._listing = Listing(plan.sources, settings.listing, limits=settings.images)
        self._open: dict[int, _Part] = {}  # by generation
        self._new: list[ImageRef] = []
        self._last_new = b""  # in the committed chunks

    @property
    def skipped(self) -> dict[str, int]:
        """Number of skipped files, by reason."""
        return self._listing.skipped

    def _take(self, chunk: Chunk) -> Iterator[Chunk]:
        self._last_new = chunk.last_key
        self.n_new += chunk.n_images
        self._new = [ref for ref in self._new if ref.order > chunk.last_key]
        return super()._take(chunk)

    def _found(self) -> Iterator[Chunk | Revision]:
        history = History(self.plan)
        for known, ref in _merged(history.images(), iter(self._listing)):
            if known is not None:
                part = self._open.get(known.generation)
                if part is None or part.shard != known.shard:
                    yield from self._revise(part, history) if part is not None else ()
                    part = self._open[known.generation] = _Part(known.shard)
                self._compare(part, known.ref, ref)
            elif ref is not None and ref.order > self._last_new and not self._is_ended:
                self._new.append(ref)
                while len(self._new) >= self._chunk_size and not self._is_ended:
                    yield from self._commit(history)
        for part in self._open.values():
            yield from self._revise(part, history)
        while not self._is_ended and (self._new or self.has_begun):
            yield from self._commit(history)

    @property
    def _chunk_size(self) -> int:
        return self.plan.layout.tier(self._n_chunks).chunk

    def _compare(self, part: _Part, old: ImageRef, new: ImageRef | None) -> None:
        self._n_before += 1
        part.n_before += 1
        if new is None:
            part.has_changed = True
            self.n_deleted += 1
            return
        is_same = (old.version, old.size, old.problem) == (new.version, new.size, new.problem)
        part.has_changed |= not is_same or old.fields != new.fields
        part.add(new, carried=is_same)
        self.n_changed += not is_same

    def _commit(self, history: History) -> Iterator[Chunk]:
        """Commit a chunk of new images, or the end; if another driver was faster, its chunk is used instead."""
        self._begin_now(history)
        refs = self._new[: self._chunk_size]
        yield from self._take(ledger.commit_chunk(self.plan, self._n_chunks, refs, self.skipped))

    def _finish(self) -> None:
        counts = {"new": self.n_new, "changed": self.n_changed, "deleted": self.n_deleted}
        ledger.finish_listing(
            self.plan, self._n_chunks, self._n_images, self.skipped, before=self._n_before, **counts
        )


def _merged(known: Iterable[Known], listed: Iterable[ImageRef]) -> Iterator[tuple[Known | None, ImageRef | None]]:
    """Merge known and listed images, both in byte order; yield pairs, with None where one side is missing."""
    ours = ((image.ref.order, image) for image in known)
    theirs = ((ref.order, ref) for ref in listed)
    (key, one), (other_key, other) = next(ours, _END), next(theirs, _END)
    while one is not None or other is not None:
        if other is None or (one is not None and key < other_key):
            yield one, None
            key, one = next(ours, _END)
        elif one is None or other_key < key:
            yield None, other
            other_key, other = next(theirs, _END)
        else:
            yield one, other
            (key, one), (other_key, other) = next(ours, _END), next(theirs, _END)


_END: Any = (b"", None)


def _failures_of(plan: Plan, shard: int) -> tuple[Failure, ...]:
    """Return the failures in the footer of a part, which are authoritative."""
    with PartFormat(plan.field_names, plan.backbone.n_features).open(plan.storage, shard) as part:
        return () if part is None else part.account.failures


class FailedParts(_Generation):
    """The shard groups of a retry: the parts that have failures, whose images are looked up again.

    Parameters
    ----------
    plan, begin
        As for `Comparison`.
    """

    def __init__(self, plan: Plan, begin: Callable[[set[int]], None] | None = None) -> None:
        super().__init__(plan, begin)
        self.n_failed = 0

    def _found(self) -> Iterator[Chunk | Revision]:
        before, history = ledger.read_generation(self.plan.storage, self.plan.generation - 1), History(self.plan)
        assert before is not None
        sources = [open_source(spec, self.plan.settings.images) for spec in self.plan.sources]
        with ThreadPoolExecutor(CONCURRENT_LOOKUPS) as pool:
            for receipt in ledger.newest_receipts(before):
                if not receipt.failed:
                    continue
                refs = history.refs_of(receipt.shard)
                failed = {failure.uri for failure in _failures_of(before, receipt.shard)}
                self.n_failed += receipt.failed
                now = pool.map(
                    lambda ref, failed=failed: sources[ref.source].stat(ref) if ref.uri in failed else ref, refs
                )
                carried = [ref.uri not in failed for ref in refs]
                part = _Part(receipt.shard, list(now), carried, len(refs), has_changed=True)
                yield from self._revise(part, history)

    def _finish(self) -> None:
        self._n_before = History(self.plan).count_images()
        before = ledger.read_generation(self.plan.storage, self.plan.generation - 1)
        listing = (before and ledger.read_listing(before)) or {"skipped": {}}
        ledger.finish_listing(self.plan, 0, self._n_images, listing["skipped"], before=self._n_before)
