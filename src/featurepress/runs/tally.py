"""The counts of a run and its progress, from any thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

from featurepress import ledger
from featurepress.ledger import Plan, Totals
from featurepress.progress import OnProgress, Progress
from featurepress.runs.lister import Lister, ShardGroup
from featurepress.specs import Receipt


class Tally:
    """Counts the images and shards of a run, and reports its progress.

    Engines take shards, and pass on the messages of workers, in their own threads.
    """

    def __init__(self, on_progress: OnProgress) -> None:
        self.progress = Progress()
        self.totals = Totals()  # of the receipts
        self.shards: set[int] = set()  # of this generation, as far as they are listed
        self.unbalanced: set[int] = set()  # whose receipt does not balance
        self.n_images = 0  # in these shards
        self.n_added = 0  # by which the feature set grows
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._counts: dict[int, tuple[int, int]] = {}  # images embedded and failed, by shard
        self._lister: Lister | None = None

    def follow(self, lister: Lister) -> None:
        """Take the number of listed images from a lister from now on."""
        self._lister = lister

    def report(self, stage: str | None = None) -> None:
        """Report the progress; a new stage begins with its name."""
        if stage is not None:
            self.progress.stage = stage
        if self._lister is not None:
            self.progress.listed = self._lister.n_images
            self.progress.listing = not self._lister.is_complete
        self._on_progress(self.progress)

    def pending(self, plan: Plan, groups: Iterable[ShardGroup], finished: set[int]) -> Iterator[int]:
        """Yield the shards without a valid receipt as their groups are committed; count the others."""
        for group in groups:
            self.shards.update(group.shards)
            self.n_images += group.n_images
            self.n_added += group.n_more
            receipts = ledger.read_receipts(plan, [shard for shard in group.shards if shard in finished])
            for shard in group.shards:
                receipt = next(receipts) if shard in finished else None
                if receipt is None or not receipt.balances:
                    yield shard
                else:
                    self._add_finished(receipt)
            self.report()

    def _add_finished(self, receipt: Receipt) -> None:
        """Add the receipt of an earlier run."""
        with self._lock:
            self.totals.add(receipt)
            self.progress.embedded += receipt.embedded
            self.progress.failed += receipt.failed
            self.progress.done_before += receipt.listed

    def add(self, receipt: Receipt) -> None:
        """Add the receipt of a shard that this run has embedded."""
        self._count(receipt.shard, receipt.embedded, receipt.failed)
        if receipt.balances:
            with self._lock:
                self.totals.add(receipt)
        else:
            self.unbalanced.add(receipt.shard)
        self.report()

    def on_message(self, message: Any) -> None:
        """Count the images of a shard in progress, from the message of a worker."""
        if message[0] == "images":
            self._count(*message[1:])
            self.report()

    def _count(self, shard: int, embedded: int, failed: int) -> None:
        """Set the counts of a shard; they start at zero again with a second attempt."""
        with self._lock:
            embedded_before, failed_before = self._counts.get(shard, (0, 0))
            self._counts[shard] = (embedded, failed)
            self.progress.embedded += embedded - embedded_before
            self.progress.failed += failed - failed_before

    def recount(self, plan: Plan) -> None:
        """Sum the receipts again, as they are stored."""
        self.totals = Totals()
        for receipt in ledger.read_receipts(plan, sorted(self.shards)):
            if receipt is not None:
                self.totals.add(receipt)
