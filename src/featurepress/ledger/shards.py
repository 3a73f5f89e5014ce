"""The state of shards: attempts, failures, receipts, and their totals."""

from __future__ import annotations

import functools
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from featurepress.ledger.listing import read_chunk, read_listing, read_revised, require_open
from featurepress.ledger.names import (
    ATTEMPTS_FOLDER,
    FEATURES_FOLDER,
    PLAN_FOLDER,
    RECEIPTS_FOLDER,
    attempt_name,
    failures_name,
    parse_receipt_name,
    parse_revision_name,
    part_name,
    receipt_name,
)
from featurepress.ledger.plan import Plan, dump_json, read_generation
from featurepress.ledger.schemas import failure_schema, text_array
from featurepress.process import when_abandoned
from featurepress.specs import Failure, Receipt
from featurepress.storage import Storage, map_concurrently, reporting_damage, run_concurrently


@contextmanager
def attempt(plan: Plan, shard: int) -> Iterator[int]:
    """Mark that this process embeds a shard. Yield how many earlier attempts at it died.

    The mark is removed when the block ends, also by an error, and when the parent abandons the process. It remains
    if the process is killed. The mark of a process that is still alive, for another driver, does not count; for
    processes of other machines that is unknown.
    """
    prefix = attempt_name(shard, "")
    mark = attempt_name(shard, secrets.token_hex(4))
    about = {"host": socket.gethostname(), "pid": os.getpid(), "start": _start_of(os.getpid()), "time": time.time()}
    with when_abandoned(lambda: plan.storage.delete(mark)):
        try:
            _, n_deaths = run_concurrently(
                plan.storage,
                lambda: plan.storage.create(mark, dump_json(about), durable=False),
                lambda: _n_deaths(plan, prefix, mark),
            )
            yield n_deaths
        finally:
            plan.storage.delete(mark)


def _n_deaths(plan: Plan, prefix: str, own: str) -> int:
    marks = [entry.name for entry in plan.storage.list(ATTEMPTS_FOLDER) if entry.name.startswith(prefix)]
    return sum(not _is_alive(plan.storage.read(mark)) for mark in marks if mark != own)


def _is_alive(mark: bytes | None) -> bool:
    """Whether the process of a mark is alive on this machine, or has just removed the mark."""
    if mark is None:
        return True
    try:
        about = json.loads(mark)
        start = _start_of(about["pid"])
        return about["host"] == socket.gethostname() and start is not None and start == about.get("start")
    except (ValueError, KeyError, TypeError):
        return False


def _start_of(pid: int) -> str | None:
    """Return the start time of a live process, in ticks since boot. Together with the pid it is unique."""
    try:
        state, *values = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else values[18]


def finalize_shard(plan: Plan, receipt: Receipt, failures: Sequence[Failure], *, repair: bool = False) -> None:
    """Write the failures and the receipt of a shard whose part exists, replacing those of a lost part.

    With `repair`, a driver of a later generation does that for an earlier one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not repair and (failures or plan.generation > 1):  # a later generation's file stays
        require_open(plan)
    if not failures and plan.generation > 1:
        plan.storage.delete(failures_name(receipt.shard))
    if failures:
        columns = list(zip(*failures, strict=True))
        table = pa.table([text_array(column) for column in columns], schema=failure_schema())
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        plan.storage.write(failures_name(receipt.shard), memoryview(sink.getvalue()))
    name, values = receipt_name(receipt.shard, plan.generation), dump_json(receipt.to_json())
    is_first = plan.storage.create(name, values, durable=False)
    if not is_first and read_receipt(plan, receipt.shard) != receipt:
        if not failures:
            plan.storage.delete(failures_name(receipt.shard))
        plan.storage.write(name, values)


def read_failures(plan: Plan, shard: int) -> list[Failure]:
    """Read the failures of a shard."""
    import pyarrow.parquet as pq

    name = failures_name(shard)
    if plan.storage.stat(name) is None:
        return []
    with reporting_damage(plan.storage, name), plan.storage.open(name) as file:
        rows = pq.read_table(file).to_pylist()
    return [Failure(**row) for row in rows]


# -- receipts ------------------------------------------------------------------------------------------------


def clear_attempts(plan: Plan) -> None:
    """Delete the marks of attempts, once the set is complete."""
    for entry in plan.storage.list(ATTEMPTS_FOLDER):
        plan.storage.delete(entry.name)


def finished_shards(plan: Plan) -> set[int]:
    """Return the shards that have both a receipt of this generation and a part."""
    parts = {entry.name for entry in plan.storage.list(FEATURES_FOLDER)}
    return {
        shard
        for shard, generation in _receipts(plan.storage)
        if generation == plan.generation and part_name(shard) in parts
    }


def _receipts(storage: Storage) -> Iterator[tuple[int, int]]:
    """Yield shard and generation of each receipt. Skip a receipt that a power cut left empty."""
    for entry in storage.list(RECEIPTS_FOLDER):
        if entry.size and (parsed := parse_receipt_name(entry.name)) is not None:
            yield parsed


def unfinished_shards(storage: Storage) -> dict[int, set[int]]:
    """Return the shards without a part or receipt, by the generation that should have written both.

    A complete set has none, unless a file was lost, or a driver was killed that had found one more revision while
    another driver declared the set complete. Embedding these shards again repairs the set. Generations whose
    listing is not complete are ignored. Costs three listings, and one request per chunk.
    """
    finished: dict[int, int] = {}
    for shard, generation in _receipts(storage):
        finished[shard] = max(generation, finished.get(shard, 0))
    parts = {entry.name for entry in storage.list(FEATURES_FOLDER)}
    revised = _newest_revisions(storage)
    left: dict[int, set[int]] = {}
    for shard, origin in _known_shards(storage):
        newest = max(origin, revised.get(shard, 0))
        if part_name(shard) not in parts or finished.get(shard, 0) < newest:
            left.setdefault(newest, set()).add(shard)
    return left


def _known_shards(storage: Storage) -> Iterator[tuple[int, int]]:
    """Yield the shards of all generations, each with the generation in which it was new."""
    number = 1
    while (plan := read_generation(storage, number)) is not None:
        numbers = range((read_listing(plan) or {"chunks": 0})["chunks"])
        for chunk in map_concurrently(storage, functools.partial(read_chunk, plan), numbers):
            if chunk is not None:
                yield from ((shard, number) for shard in chunk.shards)
        number += 1


def _newest_revisions(storage: Storage) -> dict[int, int]:
    """Return the last generation that has revised each shard."""
    names = [parse_revision_name(entry.name) for entry in storage.list(PLAN_FOLDER)]
    revisions = [name for name in names if name is not None]
    frozen = {generation: read_revised(storage, generation) for generation in {g for g, _ in revisions}}
    newest: dict[int, int] = {}
    for generation, shard in revisions:
        counted = frozen.get(generation)
        if counted is None or shard in counted:
            newest[shard] = max(generation, newest.get(shard, 0))
    return newest


def read_receipt(plan: Plan, shard: int) -> Receipt | None:
    """Read a receipt. None if there is none, or if a power cut left it empty."""
    data = plan.storage.read(receipt_name(shard, plan.generation))
    try:
        return None if not data else Receipt(**json.loads(data))
    except (ValueError, TypeError):
        return None


def read_receipts(plan: Plan, shards: Sequence[int]) -> Iterator[Receipt | None]:
    """Yield the receipts of shards, in their order."""
    return map_concurrently(plan.storage, lambda shard: read_receipt(plan, shard), shards)


def newest_receipts(plan: Plan) -> Iterator[Receipt]:
    """Yield the newest receipt of each part. Skip lost receipts."""
    newest: dict[int, int] = {}
    for shard, generation in _receipts(plan.storage):
        if generation <= plan.generation:
            newest[shard] = max(generation, newest.get(shard, 1))
    plans = {generation: replace(plan, generation=generation) for generation in set(newest.values())}
    found = map_concurrently(plan.storage, lambda shard: read_receipt(plans[newest[shard]], shard), sorted(newest))
    return (receipt for receipt in found if receipt is not None)


def delete_receipt(plan: Plan, shard: int) -> None:
    """Delete a receipt, so that its shard is embedded again."""
    plan.storage.delete(receipt_name(shard, plan.generation))


@dataclass
class Totals:
    """The sum of the receipts of a run."""

    parts: int = 0
    listed: int = 0
    embedded: int = 0
    carried: int = 0
    failed: int = 0
    failed_by_kind: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    precisions: dict[str, int] = field(default_factory=dict)  # number of images, by precision
    cpus: dict[str, int] = field(default_factory=dict)

    def add(self, receipt: Receipt) -> None:
        """Add one receipt."""
        self.parts += 1
        self.listed += receipt.listed
        self.embedded += receipt.embedded
        self.carried += receipt.carried
        self.failed += receipt.failed
        self.bytes_read += receipt.bytes_read
        for kind, count in receipt.failed_by_kind.items():
            self.failed_by_kind[kind] = self.failed_by_kind.get(kind, 0) + count
        for tally, name in ((self.precisions, receipt.precision), (self.cpus, receipt.cpu)):
            tally[name] = tally.get(name, 0) + receipt.embedded
