"""What a sink is: it writes the part of a shard exactly once.

The life of a part:

1. A worker looks with `standing` whether the part of its shard stands already; then there is nothing to press.
2. Else it calls `begin` and gives the new part rows with `add`, as they are pressed.
3. `commit` creates the part only if absent. Of several attempts at the shard, in any processes on any
   machines, one wins; the others throw their rows away.
4. `commit` returns the account in the footer of the part that stands, whoever wrote it. From it the worker
   writes the failures and the receipt.
5. `close` gives back what the part took, committed or not.

An update replaces a part: of the old one, which `standing` has opened, rows are carried over by `add`, and
`commit` succeeds only over the version that was opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from featurepress.records import Failure, ImageRef, Receipt
from featurepress.storage import Storage

if TYPE_CHECKING:
    from featurepress.records import Features


class Account(NamedTuple):
    """What the footer of a part says of its shard."""

    receipt: Receipt
    failures: tuple[Failure, ...]


class Row(NamedTuple):
    """What a row says of its image beside the features."""

    ref: ImageRef
    width: int
    height: int
    sha256: str


class PartWriter(Protocol):
    """A part that is being filled; nothing is visible before `commit`."""

    def add(self, rows: Sequence[Row], features: Features) -> None:
        """Take some rows, with their features: (n_samples, n_features) float32, copied."""

    def commit(
        self, storage: Storage, receipt: Receipt, failures: Sequence[Failure], *, replaces: str = ""
    ) -> Account:
        """Create the part only if absent, or replace the version `replaces`; give the account of what stands.

        Raises ReplacedError where that is of another generation.
        """

    def close(self) -> None:
        """Give back what the part takes, committed or not."""


class StandingPart(Protocol):
    """A part as it stands, open for carrying rows over."""

    @property
    def account(self) -> Account:
        """What its footer says of its shard."""

    @property
    def version(self) -> str:
        """What `commit` is told to replace."""

    @property
    def hashes(self) -> Mapping[str, str]:
        """Each uri with the sha256 of its image."""

    def rows(self, wanted: Mapping[str, ImageRef]) -> Iterator[tuple[list[Row], Features]]:
        """Yield the rows of the wanted uris, in the part's order, with the fields of the references given."""

    def every_row(self, field_names: Sequence[str]) -> Iterator[tuple[list[Row], Features]]:
        """Yield all rows in the part's order, with the named fields as they stand there."""


class Sink(Protocol):
    """Writes parts to a storage."""

    def begin(self) -> PartWriter:
        """Give an empty part."""

    def standing(self, storage: Storage, shard: int) -> AbstractContextManager[StandingPart | None]:
        """Open the part of a shard, or give None if there is none."""
