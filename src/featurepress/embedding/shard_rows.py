"""The rows, failures and account of a shard while it is embedded."""

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
from featurepress.ledger.parts import Account, PartFormat, PartReader, Row
from featurepress.ledger.provenance import cpu_name, library_versions
from featurepress.process import send_message
from featurepress.specs import Failure, ImageRef, Receipt

_BEAT_SECONDS = 0.2


class ShardRows:
    """A shard while it is embedded: its part, which is being filled, and its account."""

    def __init__(self, plan: Plan, number: int, refs: Sequence[ImageRef]) -> None:
        self._plan = plan
        self._number = number
        self._started = time.perf_counter()
        self._part = PartFormat(plan.field_names, plan.backbone.n_features).create()
        self._beat_at = 0.0
        self.refs = refs
        self.n_listed = len(refs)
        self.n_embedded = 0
        self.n_carried = 0
        self.failures: list[Failure] = []
        self.bytes_read = 0
        self._replaces = ""

    def add(self, embedded: Sequence[Row], features: Any) -> None:
        """Take the features of some images; those that are no numbers are failures."""
        good = np.isfinite(features).all(axis=1)
        if not good.all():
            for row, is_good in zip(embedded, good, strict=True):
                if not is_good:
                    self.fail(row.ref, ImageError("infer", "features are not finite"))
            embedded, features = list(itertools.compress(embedded, good)), features[good]
        self._part.add(embedded, features)
        self.n_embedded += len(embedded)
        self._beat()

    def carries(self, ref: ImageRef, sha256: str) -> bool:
        """Whether the image has a row already that was embedded from the same bytes."""
        return False

    def close(self) -> None:
        """Give back what the part takes."""
        self._part.close()

    def fail(self, ref: ImageRef, error: ImageError) -> None:
        """Take an image that cannot be embedded."""
        self.failures.append(Failure(ref.uri, error.stage, " ".join(error.reason.split())))
        self._beat()

    def commit(self, precision: str) -> Account:
        """Write the part; give the account of the one that stands."""
        self._beat(now=True)
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

    def _beat(self, *, now: bool = False) -> None:
        """Tell the engine how the shard gets on, a few times a second."""
        clock = time.monotonic()
        if now or clock - self._beat_at > _BEAT_SECONDS:
            self._beat_at = clock
            send_message(("images", self._number, self.n_embedded, len(self.failures)))


class RevisedShardRows(ShardRows):
    """A shard of an earlier generation: what is as it was is carried over, the rest is embedded.

    The new part has the rows that were embedded first, and then those that were carried over. Where the part is not
    the one with which the images were compared, all are read, and only those with the same bytes are carried over.
    """

    def __init__(self, plan: Plan, number: int, references: References, standing: PartReader) -> None:
        receipt, failures = standing.account
        failed = {failure.uri: failure for failure in failures}
        kept, left = {}, []
        for ref, is_carried in zip(references.refs, references.carried, strict=True):
            is_known = ref.uri in standing.hashes or ref.uri in failed
            if is_carried and is_known and receipt.generation == references.base:
                kept[ref.uri] = ref
            else:
                left.append(ref)
        super().__init__(plan, number, left)
        self.n_listed = len(references.refs)
        self.failures += [failure for uri, failure in failed.items() if uri in kept]
        self._standing = standing
        self._replaces = standing.version
        self._kept = {uri: ref for uri, ref in kept.items() if uri in standing.hashes}

    def carries(self, ref: ImageRef, sha256: str) -> bool:
        """Keep the row of an image whose bytes are the same, though its version is another one."""
        if self._standing.hashes.get(ref.uri) != sha256:
            return False
        self._kept[ref.uri] = ref
        return True

    def commit(self, precision: str) -> Account:
        """Carry over what is kept, and put the part in place of the old one."""
        for rows, features in self._standing.rows(self._kept):
            if rows:
                self.n_carried += len(rows)
                self.add(rows, features)
        return super().commit(precision)
