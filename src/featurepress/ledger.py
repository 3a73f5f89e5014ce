"""The plan, parts, receipts and manifest of a feature set: what is done, what is left, does it balance.

What lies at the destination, in the order in which it appears:

    plan/plan.json                  the plan, created only if absent
    plan/chunk-00000000.parquet     the listing, a row group a shard, created only if absent
    plan/listing.json               the listing is complete: chunks, images, what was skipped
    attempts/part-00000000-…        somebody is at this shard; what stays behind tells of a death
    features/part-00000000.parquet  the rows of a shard, its account in the footer, created only if absent
    failures/part-00000000.parquet  the failures of a shard, from that footer
    receipts/part-00000000.json     the shard is done, from that footer
    manifest.json                   everything is done

The part decides: failures and receipt are copies for people and for quick listing, and can be made again.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurepress.child import when_abandoned
from featurepress.errors import FeatureSetError, StorageError
from featurepress.layout import Layout, Tier
from featurepress.records import (
    FORMAT_VERSION,
    BackboneSpec,
    Failure,
    ImageRef,
    Receipt,
    SourceSpec,
    chunk_schema,
    failure_schema,
    number_array,
    part_name,
    text_array,
)
from featurepress.settings import Settings
from featurepress.storage import Storage, undamaged

PLAN = "plan/plan.json"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Plan:
    """Everything a worker needs to press a shard: settings and descriptions, no live objects.

    Parameters
    ----------
    storage : Storage
        The destination; it is not part of plan.json.
    run_id : str
        Names this plan; workers compare it with the one at the destination.
    created : str
        Time of the plan, UTC, ISO 8601.
    sources : tuple of SourceSpec
        Where the images are.
    backbone : BackboneSpec
        What is computed.
    precision : str
        ``float32`` or ``bfloat16``, as decided.
    certificate : mapping
        How the precision was decided, with the measured cosines.
    settings : Settings
        As the user asked.
    layout : Layout
        How the listing is cut.
    field_names : tuple of str
        Names of the columns between uri and width.
    library_version : str
        The featurepress that made the plan.
    generation : int
        1 for the first run.
    """

    storage: Storage
    run_id: str
    created: str
    sources: tuple[SourceSpec, ...]
    backbone: BackboneSpec
    precision: str
    certificate: Mapping[str, Any]
    settings: Settings
    layout: Layout
    field_names: tuple[str, ...]
    library_version: str
    generation: int = 1

    def to_json(self) -> dict[str, Any]:
        """Give the plan as JSON values, `format` first."""
        return {
            "format": "featurepress",
            "format_version": FORMAT_VERSION,
            "run_id": self.run_id,
            "created": self.created,
            "generation": self.generation,
            "fingerprint": self.backbone.fingerprint,
            "library_version": self.library_version,
            "precision": self.precision,
            "certificate": dict(self.certificate),
            "sources": [spec.to_json() for spec in self.sources],
            "backbone": self.backbone.to_json(),
            "settings": self.settings.to_json(),
            "layout": [list(tier) for tier in self.layout.tiers],
            "field_names": list(self.field_names),
        }

    def differences(self, other: Plan) -> list[str]:
        """Name what makes `other` another plan, as lines ``what: here, there``."""
        mine, theirs = self._identity(), other._identity()
        found = [f"{name}: {mine[name]!r}, not {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]
        space = self.backbone.differences(other.backbone)
        return found + [line for line in space if not line.startswith("pooling:")]  # which is a setting, too

    def _identity(self) -> dict[str, Any]:
        return {"sources": [str(spec) for spec in self.sources], **self.settings.identity()}


def new_plan(storage: Storage, **parts: Any) -> Plan:
    """Give a plan with a fresh run id and the present time."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Plan(storage=storage, run_id=secrets.token_hex(8), created=now, **parts)


def create_plan(plan: Plan) -> bool:
    """Write plan.json only if there is none; say whether this call did it."""
    return plan.storage.create(PLAN, _dump(plan.to_json()))


def read_plan(storage: Storage) -> Plan | None:
    """Read the plan at a destination.

    Returns
    -------
    Plan or None
        None if there is no plan.

    Raises
    ------
    FeatureSetError
        plan.json is no featurepress plan, or of a later format.
    """
    data = storage.read(PLAN)
    if data is None:
        return None
    where = f"'{storage.location}/{PLAN}'"
    try:
        values = json.loads(data)
        if values["format"] != "featurepress":
            raise KeyError("format")
        if values["format_version"] > FORMAT_VERSION:
            raise FeatureSetError(
                f"{where} has format version {values['format_version']}; this featurepress reads up to "
                f"{FORMAT_VERSION}. Update featurepress."
            )
        return Plan(
            storage=storage,
            sources=tuple(SourceSpec(**spec) for spec in values["sources"]),
            backbone=BackboneSpec.from_json(values["backbone"]),
            settings=Settings.from_json(values["settings"]),
            layout=Layout(tuple(Tier(*tier) for tier in values["layout"])),
            field_names=tuple(values["field_names"]),
            **{
                name: values[name]
                for name in ("run_id", "created", "precision", "certificate", "library_version", "generation")
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FeatureSetError(f"{where} is no featurepress plan: {error}.") from error


# -- the listing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """One committed piece of the listing."""

    number: int
    n_images: int
    n_shards: int
    last_key: bytes
    skipped: Mapping[str, int]
    positions: tuple[bytes, ...] = ()

    def shards(self, layout: Layout) -> range:
        """Give the numbers of its shards."""
        first = layout.first_shard(self.number)
        return range(first, first + self.n_shards)


def commit_chunk(
    plan: Plan,
    number: int,
    refs: Sequence[ImageRef],
    skipped: Mapping[str, int],
    positions: Sequence[bytes] = (),
) -> Chunk:
    """Write a chunk only if absent, and give the one that stands, which may be another driver's.

    Parameters
    ----------
    plan : Plan
        Its layout gives the size of the shards.
    number : int
        Number of the chunk.
    refs : sequence of ImageRef
        At most as many as the layout allows, in order.
    skipped : mapping
        What the listing has passed over up to the end of this chunk.
    positions : sequence of bytes
        The last key of each source up to the end of this chunk, from which an interrupted listing goes on.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = chunk_schema(plan.field_names)
    columns = {
        "uri": text_array([ref.uri for ref in refs]),
        "source": number_array(np.array([ref.source for ref in refs], np.int32)),
        "size": number_array(np.array([ref.size for ref in refs], np.int64)),
        "version": text_array([ref.version for ref in refs]),
        **{name: text_array([ref.fields[i] for ref in refs]) for i, name in enumerate(plan.field_names)},
    }
    for name in ("key", "problem"):
        values, kind = [getattr(ref, name) for ref in refs], schema.field(name).type
        columns[name] = pa.array(values, kind) if any(values) else pa.nulls(len(refs), kind)
    about = {"last_key": refs[-1].order.hex(), "skipped": dict(skipped), "positions": [p.hex() for p in positions]}
    table = pa.table(columns, schema=schema).replace_schema_metadata({"featurepress": json.dumps(about)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=plan.layout.tier(number).part_of(len(refs)), compression="zstd")
    plan.storage.create(_chunk_name(plan, number), memoryview(sink.getvalue()))
    chunk = read_chunk(plan, number)
    if chunk is None:
        raise StorageError(f"'{plan.storage.location}/{_chunk_name(plan, number)}' vanished after it was written.")
    return chunk


def read_chunk(plan: Plan, number: int) -> Chunk | None:
    """Read the footer of a chunk, or give None if it is not there yet."""
    import pyarrow.parquet as pq

    name = _chunk_name(plan, number)
    try:
        with undamaged(plan.storage, name), plan.storage.open(name) as file:
            footer = pq.read_metadata(file)
            about = json.loads(footer.metadata[b"featurepress"])
            last_key, *positions = map(bytes.fromhex, (about["last_key"], *about["positions"]))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    return Chunk(
        number, footer.num_rows, footer.num_row_groups, last_key, about["skipped"], positions=tuple(positions)
    )


def read_shard(plan: Plan, shard: int) -> list[ImageRef]:
    """Read the references of a shard."""
    import pyarrow.parquet as pq

    chunk, row_group = plan.layout.locate(shard)
    name = _chunk_name(plan, chunk)
    with undamaged(plan.storage, name), plan.storage.open(name) as file, pq.ParquetFile(file) as parquet:
        columns = parquet.read_row_group(row_group).to_pydict()
    n_refs = len(columns["uri"])
    own = zip(*(columns[name] for name in plan.field_names), strict=True) if plan.field_names else [()] * n_refs
    names = ("uri", "source", "size", "version")
    rows = zip(*(columns[name] for name in names), own, columns["key"], columns["problem"], strict=True)
    return [ImageRef(*row) for row in rows]


def finish_listing(plan: Plan, n_chunks: int, n_images: int, skipped: Mapping[str, int]) -> None:
    """Say that the listing is complete."""
    values = {"chunks": n_chunks, "images": n_images, "skipped": dict(skipped)}
    plan.storage.create(f"{_plan_folder(plan)}/listing.json", _dump(values))


def read_listing(plan: Plan) -> dict[str, Any] | None:
    """Read what `finish_listing` wrote, or give None while the listing is not complete."""
    return _read_json(plan.storage, f"{_plan_folder(plan)}/listing.json")


def _plan_folder(plan: Plan) -> str:
    return "plan" if plan.generation == 1 else f"plan/g{plan.generation}"


def _chunk_name(plan: Plan, number: int) -> str:
    return f"{_plan_folder(plan)}/chunk-{number:08d}.parquet"


# -- shards --------------------------------------------------------------------------------------------------


def _receipt_name(plan: Plan, shard: int) -> str:
    return f"receipts/part-{shard:08d}{'' if plan.generation == 1 else f'.g{plan.generation}'}.json"


@contextmanager
def attempt(plan: Plan, shard: int) -> Iterator[int]:
    """Mark that this process is at a shard; give the number of deaths that earlier attempts met at it.

    The mark is taken away when the block ends, by an error too, and when the process is given up by its
    parent. It stays when the process is killed. A mark whose process is still at work, for another driver, is
    no death; on other machines that cannot be told.
    """
    prefix = f"attempts/part-{shard:08d}-"
    marks = [entry.name for entry in plan.storage.list("attempts") if entry.name.startswith(prefix)]
    n_deaths = sum(not _is_at_work(plan.storage.read(mark)) for mark in marks)
    mark = f"{prefix}{secrets.token_hex(4)}"
    about = {"host": socket.gethostname(), "pid": os.getpid(), "start": _start_of(os.getpid()), "time": time.time()}
    with when_abandoned(lambda: plan.storage.delete(mark)):
        try:
            plan.storage.create(mark, _dump(about), durable=False)
            yield n_deaths
        finally:
            plan.storage.delete(mark)


def _is_at_work(mark: bytes | None) -> bool:
    """Whether the process that left a mark is alive on this machine, or has just taken the mark away."""
    if mark is None:
        return True
    try:
        about = json.loads(mark)
        start = _start_of(about["pid"])
        return about["host"] == socket.gethostname() and start is not None and start == about.get("start")
    except (ValueError, KeyError, TypeError):
        return False


def _start_of(pid: int) -> str | None:
    """Give when a live process began, in ticks since the machine did; with its number that names it for good."""
    try:
        state, *values = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else values[18]


def settle_shard(plan: Plan, receipt: Receipt, failures: Sequence[Failure]) -> None:
    """Write the failures and the receipt of a shard whose part stands, in place of those of a lost part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = f"part-{receipt.shard:08d}"
    if failures:
        columns = list(zip(*failures, strict=True))
        table = pa.table([text_array(column) for column in columns], schema=failure_schema())
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        plan.storage.write(f"failures/{name}.parquet", memoryview(sink.getvalue()))
    receipt_name, values = _receipt_name(plan, receipt.shard), _dump(receipt.to_json())
    is_first = plan.storage.create(receipt_name, values, durable=False)
    if not is_first and read_receipt(plan, receipt.shard) != receipt:
        if not failures:
            plan.storage.delete(f"failures/{name}.parquet")
        plan.storage.write(receipt_name, values)


def clear_attempts(plan: Plan) -> None:
    """Take away the marks of deaths, once everything is done."""
    for entry in plan.storage.list("attempts"):
        plan.storage.delete(entry.name)


def finished_shards(plan: Plan) -> set[int]:
    """Give the shards that have both a receipt of this generation and a part."""
    ending = _receipt_name(plan, 0).partition("part-00000000")[2]
    parts = {entry.name for entry in plan.storage.list("features")}
    shards = set()
    for entry in plan.storage.list("receipts"):
        digits, _, rest = entry.name.removeprefix("receipts/part-").partition(".")
        if digits.isdecimal() and f".{rest}" == ending and part_name(int(digits)) in parts:
            shards.add(int(digits))
    return shards


def read_receipt(plan: Plan, shard: int) -> Receipt | None:
    """Read a receipt; None if there is none, or if a power cut left it empty."""
    data = plan.storage.read(_receipt_name(plan, shard))
    try:
        return None if not data else Receipt(**json.loads(data))
    except (ValueError, TypeError):
        return None


def delete_receipt(plan: Plan, shard: int) -> None:
    """Take a receipt away, so that its shard is pressed again."""
    plan.storage.delete(_receipt_name(plan, shard))


# -- the end -------------------------------------------------------------------------------------------------


@dataclass
class Totals:
    """The sum of the receipts of a run."""

    parts: int = 0
    listed: int = 0
    pressed: int = 0
    failed: int = 0
    failed_by_kind: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    precisions: dict[str, int] = field(default_factory=dict)
    cpus: dict[str, int] = field(default_factory=dict)

    def add(self, receipt: Receipt) -> None:
        """Add one receipt."""
        self.parts += 1
        self.listed += receipt.listed
        self.pressed += receipt.pressed
        self.failed += receipt.failed
        self.bytes_read += receipt.bytes_read
        for kind, count in receipt.failed_by_kind.items():
            self.failed_by_kind[kind] = self.failed_by_kind.get(kind, 0) + count
        for tally, name in ((self.precisions, receipt.precision), (self.cpus, receipt.cpu)):
            tally[name] = tally.get(name, 0) + receipt.pressed


def write_manifest(plan: Plan, values: Mapping[str, Any]) -> None:
    """Declare the feature set complete."""
    plan.storage.write(MANIFEST, _dump(values))


def read_manifest(storage: Storage) -> dict[str, Any] | None:
    """Read the manifest, or give None if there is none."""
    return _read_json(storage, MANIFEST)


def _read_json(storage: Storage, name: str) -> dict[str, Any] | None:
    data = storage.read(name)
    with undamaged(storage, name):
        return None if data is None else json.loads(data)


def _dump(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=1).encode() + b"\n"
