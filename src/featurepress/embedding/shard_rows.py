"""Collect the rows and failures of a shard while it is embedded, and write its part."""

from __future__ import annotations

import collections
import itertools
import socket
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from featurepress.errors import ImageError
from featurepress.ledger import Plan, References
from featurepress.ledger.parts import Account, PartReader, PartWriter, Row
from featurepress.ledger.provenance import cpu_name, library_versions
from featurepress.process import send_message
from featurepress.specs import Failure, ImageRef, Receipt

_REPORT_SECONDS = 0.2


class ShardRows:
    """The rows and failures of a shard, written to a new part as they come."""

    def __init__(self, plan: Plan, number: int, refs: Sequence[ImageRef]) -> None:
        self._plan = plan
        self._number = number
        self._started = time.perf_counter()
        self._part = PartWriter(plan.field_names, plan.backbone.n_features)
        self._reported_at = 0.0
        self.refs = refs
        self.n_listed = len(refs)
        self.n_embedded = 0
        self.n_carried = 0
        self.failures: list[Failure] = []
        self.bytes_read = 0
        self._replaces = ""

    def add(self, embedded: Sequence[Row], features: Any) -> None:
        """Add images with their features. Features that are not finite make the image a failure."""
        good = np.isfinite(features).all(axis=1)
        if not good.all():
            for row, is_good in zip(embedded, good, strict=True):
                if not is_good:
                    self.fail(row.ref, ImageError("infer", "features are not finite"))
            embedded, features = list(itertools.compress(embedded, good)), features[good]
        self._part.add(embedded, features)
        self.n_embedded += len(embedded)
        self._report()

    def is_unchanged(self, ref: ImageRef, sha256: str) -> bool:
        """Whether the existing part has a row of this image, embedded from the same bytes; that row is kept."""
        return False

    def close(self) -> None:
        """Release the memory and the temporary file of the part."""
        self._part.close()

    def fail(self, ref: ImageRef, error: ImageError) -> None:
        """Add an image that cannot be embedded."""
        self.failures.append(Failure(ref.uri, error.stage, " ".join(error.reason.split())))
        self._report()

    def commit(self, precision: str) -> Account:
        """Write the part, and return the account of the part that exists then."""
        self._report(now=True)
        receipt = Receipt(
            shard=self._number,
            generation=self._plan.generation,
            listed=self.n_listed,
            embedded=self.n_embedded,
            failed=len(self.failures),
            failed_by_kind=dict(collections.Counter(failure.kind for failure in self.failures)),
            bytes_read=self.bytes_read,
            seconds=round(time.perf_counter() - self._started, 3),
            precision=precision,
            cpu=cpu_name(),
            host=socket.gethostname(),
            versions=library_versions(),
            carried=self.n_carried,
        )
        return self._part.commit(self._plan.storage, receipt, self.failures, replaces=self._replaces)

    def _report(self, *, now: bool = False) -> None:
        """Send the engine the progress of the shard, a few times a second."""
        clock = time.monotonic()
        if now or clock - self._reported_at > _REPORT_SECONDS:
            self._reported_at = clock
            send_message(("images", self._number, self.n_embedded, len(self.failures)))


class RevisedShardRows(ShardRows):
    """A shard of an earlier generation: unchanged rows are carried over, the other images are embedded.

    The new part holds first the embedded rows, then those carried over. If the existing part is not the one that
    the update has compared the images with, all images are read, and only rows of equal bytes are carried over.
    """

    def __init__(self, plan: Plan, number: int, references: References, existing: PartReader) -> None:
        receipt, failures = existing.account
        failed = {failure.uri: failure for failure in failures}
        kept, pending = {}, []
        for ref, is_carried in zip(references.refs, references.carried, strict=True):
            is_known = ref.uri in existing.hashes or ref.uri in failed
            if is_carried and is_known and receipt.generation == references.base:
                kept[ref.uri] = ref
            else:
                pending.append(ref)
        super().__init__(plan, number, pending)
        self.n_listed = len(references.refs)
        self.failures += [failure for uri, failure in failed.items() if uri in kept]
        self._existing = existing
        self._replaces = existing.version
        self._kept = {uri: ref for uri, ref in kept.items() if uri in existing.hashes}

    def is_unchanged(self, ref: ImageRef, sha256: str) -> bool:
        """Keep the row of an image whose bytes are the same, although its version has changed."""
        if self._existing.hashes.get(ref.uri) != sha256:
            return False
        self._kept[ref.uri] = ref
        return True

    def commit(self, precision: str) -> Account:
        """Carry over the kept rows, and replace the existing part."""
        for rows, features in self._existing.read_rows(self._kept):
            if rows:
                self.n_carried += len(rows)
                self.add(rows, features)
        return super().commit(precision)
