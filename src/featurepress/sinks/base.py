"""What a sink is: it writes the part of a shard exactly once.

The life of a part:

1. A worker has pressed a shard and holds its `Part`.
2. `write` creates the part only if absent. Of several attempts at the shard, in any processes on any
   machines, one wins; the others throw their rows away.
3. `write` returns the account in the footer of the part that stands, whoever wrote it. From it the worker
   writes the failures and the receipt.
4. A worker that finds a part before it starts asks `account` and presses nothing.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from featurepress.records import Failure, Part, Receipt
from featurepress.storage import Storage


class Account(NamedTuple):
    """What the footer of a part says of its shard."""

    receipt: Receipt
    failures: tuple[Failure, ...]


class Sink(Protocol):
    """Writes parts to a storage."""

    def write(self, storage: Storage, part: Part) -> Account:
        """Create the part only if absent; give the account of the one that stands."""

    def account(self, storage: Storage, shard: int) -> Account | None:
        """Give the account of the part of a shard, or None if there is none."""
