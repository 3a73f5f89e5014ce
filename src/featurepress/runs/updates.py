"""Find what has changed since a feature set was embedded: the shards of its next generation.

An update compares the listing of the sources with the references of all parts, both in byte order, and keeps one
part of each generation in memory. A part is revised if one of its images is deleted or has another version; the
other rows of that part are carried over. New images go to new parts. A retry revises the parts that have failures.
Commits are final: an interrupted comparison starts again, and keeps what is committed.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import heapq
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from featurepress import ledger
from featurepress.ledger import Chunk, Plan, References, Revision
from featurepress.ledger.parts import open_part
from featurepress.sources import Listing, open_source
from featurepress.specs import ImageRef

CONCURRENT_LOOKUPS = 32
_CHECK_SECONDS = 1.0  # between two checks whether another driver has finished the generation


class Known(NamedTuple):
    """An image of a feature set: its reference, its shard, and the generation in which that was new."""

    ref: ImageRef
    shard: int
    generation: int


class History:
    """The references of a complete feature set, over all generations before that of `plan`."""

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
        if (newest := self._newest(shard)) is not None:
            return ledger.read_revision(newest, shard).refs
        return ledger.read_shard(self._origin(shard), shard)

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

    def compare(self, old: ImageRef, new: ImageRef | None) -> str:
        """Add an image of the part as it is now; return whether it is ``same``, ``changed`` or ``deleted``."""
        self.n_before += 1
        if new is None:
            self.has_changed = True
            return "deleted"
        is_same = (old.version, old.size, old.problem) == (new.version, new.size, new.problem)
        self.has_changed |= not is_same or old.fields != new.fields
        self.refs.append(new)
        self.carried.append(is_same)
        return "same" if is_same else "changed"


class _FinishedError(Exception):
    """Another driver has completed this generation; later changes belong to the next one."""


class NextGeneration:
    """The shard groups of an update or a retry: each is committed when it is taken.

    Another driver may do the same at the same time. The commits of both are valid, and all totals are computed from
    what is committed. Time: a few microseconds per image. Memory: the largest part of each generation, and a chunk
    of new images.

    `begin` is called once before the first commit, with the plan and the shards that the generation before has
    revised; never if nothing has changed. It is None if an earlier run has begun the generation.
    """

    def __init__(self, plan: Plan, begin: Callable[[Plan, set[int]], None] | None = None) -> None:
        self.plan = plan
        self.has_begun = begin is None
        self.n_new = 0  # images in committed chunks
        self.last_new = b""  # key of the last one
        self.is_ended = False  # the last chunk is committed
        self._begin = begin
        self._revised: set[int] = set()  # whose revision is committed and was yielded
        self._n_images = 0
        self._n_chunks = 0
        self._checked_at = 0.0

    @functools.cached_property
    def history(self) -> History:
        """The images of the generations before."""
        return History(self.plan)

    def __iter__(self) -> Iterator[Chunk | Revision]:
        """Yield what is committed, then find, commit and yield the rest; at the end complete the listing."""
        for group in self._groups():
            self._n_images += group.n_images
            yield group

    def _groups(self) -> Iterator[Chunk | Revision]:
        is_complete = self.has_begun and ledger.read_listing(self.plan) is not None
        yield from self._committed()  # read after the listing: when that is complete, so are they
        if not is_complete:
            find = find_changes if self.plan.purpose == "update" else find_failed
            with contextlib.suppress(_FinishedError):
                yield from find(self)
            yield from self._committed()  # also by another driver in the meantime

    def _committed(self) -> Iterator[Chunk | Revision]:
        """Yield what is committed and was not yielded yet."""
        if not self.has_begun:
            return
        for shard in sorted(ledger.revised_shards(self.plan) - self._revised):
            self._revised.add(shard)
            yield ledger.count_revision(self.plan, shard)
        while not self.is_ended and (chunk := ledger.read_chunk(self.plan, self._n_chunks)) is not None:
            yield from self._take(chunk)

    def _take(self, chunk: Chunk) -> Iterator[Chunk]:
        """Yield a committed chunk, unless it only marks the end."""
        self.is_ended = chunk.n_images < self.chunk_size
        self.last_new = chunk.last_key
        if chunk.n_images:
            self._n_chunks += 1
            self.n_new += chunk.n_images
            yield chunk

    @property
    def chunk_size(self) -> int:
        """Number of images in the next chunk, unless it is the last one."""
        return self.plan.layout.tier(self._n_chunks).chunk

    def commit_chunk(
        self, refs: list[ImageRef], skipped: Mapping[str, int]
    ) -> Generator[Chunk, None, list[ImageRef]]:
        """Commit a chunk of new images, or the end; return the images after it.

        If another driver was faster, its chunk is used instead.
        """
        self._begin_now()
        chunk = ledger.commit_chunk(self.plan, self._n_chunks, refs[: self.chunk_size], skipped)
        yield from self._take(chunk)
        return [ref for ref in refs if ref.order > self.last_new]

    def revise(self, part: _Part) -> Iterator[Revision]:
        """Commit the revision of a part that has changed, unless there is one."""
        if part.has_changed and part.shard not in self._revised:
            self._begin_now()
            self._require_open()
            references = References(part.refs, part.carried, self.history.generation_of(part.shard))
            self._revised.add(part.shard)
            yield ledger.commit_revision(self.plan, part.shard, references, part.n_before)

    def finish(self, skipped: Mapping[str, int], **counts: int) -> None:
        """Complete the listing of the generation, if it has begun."""
        if self.has_begun:
            ledger.finish_listing(self.plan, self._n_chunks, self._n_images, skipped, **counts)

    def _begin_now(self) -> None:
        if not self.has_begun and self._begin is not None:
            self._begin(self.plan, self.history.last_revised)
            self.has_begun = True

    def _require_open(self) -> None:
        """Raise _FinishedError if another driver has finished the generation, as while this one was suspended."""
        if abs(time.time() - self._checked_at) < _CHECK_SECONDS:
            return
        if ledger.read_listing(self.plan) is not None:
            raise _FinishedError
        self._checked_at = time.time()


def find_changes(generation: NextGeneration) -> Iterator[Chunk | Revision]:
    """Compare the listing of the sources with the images of a set; commit and yield what has changed.

    An image has changed if it has another version, even if its bytes are the same.
    """
    settings = generation.plan.settings
    listing = Listing(generation.plan.sources, settings.listing, limits=settings.images)
    parts: dict[int, _Part] = {}  # the current one of each generation
    new: list[ImageRef] = []
    counts = collections.Counter[str]()
    for known, ref in _merged(generation.history.images(), iter(listing)):
        if known is not None:
            part = parts.get(known.generation)
            if part is None or part.shard != known.shard:
                yield from generation.revise(part) if part is not None else ()
                part = parts[known.generation] = _Part(known.shard)
            counts[part.compare(known.ref, ref)] += 1
        elif ref is not None and ref.order > generation.last_new and not generation.is_ended:
            new.append(ref)
            while len(new) >= generation.chunk_size and not generation.is_ended:
                new = yield from generation.commit_chunk(new, listing.skipped)
    for part in parts.values():
        yield from generation.revise(part)
    while not generation.is_ended and (new or generation.has_begun):
        new = yield from generation.commit_chunk(new, listing.skipped)
    generation.finish(
        listing.skipped,
        before=counts.total(),
        new=generation.n_new,
        changed=counts["changed"],
        deleted=counts["deleted"],
    )


def find_failed(generation: NextGeneration) -> Iterator[Revision]:
    """Look the failed images of a set up again; commit and yield a revision of each part that has some."""
    plan = generation.plan
    before = ledger.read_generation(plan.storage, plan.generation - 1)
    assert before is not None
    sources = [open_source(spec, plan.settings.images) for spec in plan.sources]
    with ThreadPoolExecutor(CONCURRENT_LOOKUPS) as pool:
        for receipt in ledger.newest_receipts(before):
            if not receipt.failed:
                continue
            with open_part(plan.storage, receipt.shard) as part:
                # The footer is authoritative.
                failed = set() if part is None else {failure.uri for failure in part.account.failures}

            def find_again(ref: ImageRef, failed: set[str] = failed) -> ImageRef:
                return sources[ref.source].stat(ref) if ref.uri in failed else ref

            refs = generation.history.refs_of(receipt.shard)
            carried = [ref.uri not in failed for ref in refs]
            found = list(pool.map(find_again, refs))
            yield from generation.revise(_Part(receipt.shard, found, carried, len(refs), has_changed=True))
    listing = ledger.read_listing(before) or {"skipped": {}}
    generation.finish(listing["skipped"], before=generation.history.count_images())


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
