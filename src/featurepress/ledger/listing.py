"""The listing of a feature set: chunks of references, split into shards, and revisions of shards."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from featurepress.errors import StorageError
from featurepress.ledger.names import (
    chunk_name,
    listing_name,
    parse_revision_name,
    plan_folder,
    previous_revisions_name,
    revision_name,
)
from featurepress.ledger.plan import Plan, dump_json, open_existing, read_json, superseded
from featurepress.ledger.schemas import chunk_schema, number_array, text_array
from featurepress.specs import ImageRef
from featurepress.storage import Storage, map_concurrently, reporting_damage


@dataclass(frozen=True)
class Chunk:
    """A committed chunk of the listing."""

    number: int  # 0 for the first of its generation
    n_images: int
    shards: range
    last_key: bytes  # of its last image
    skipped: Mapping[str, int]  # number of files skipped up to the end of the chunk, by reason
    positions: tuple[bytes, ...] = ()  # the last key of each source up to the end of the chunk

    @property
    def n_more(self) -> int:
        """Number of images that the feature set gains: all of them."""
        return self.n_images


@dataclass(frozen=True)
class Revision:
    """The committed references of a shard of an earlier generation whose images have changed."""

    shard: int
    n_images: int  # after the revision
    n_before: int  # before the revision

    @property
    def shards(self) -> range:
        """The number of the shard, as a range."""
        return range(self.shard, self.shard + 1)

    @property
    def n_more(self) -> int:
        """Number of images that the feature set gains; negative if it loses some."""
        return self.n_images - self.n_before


class References(NamedTuple):
    """The references of a shard, in order."""

    refs: list[ImageRef]
    carried: list[bool]  # whether the row or failure of each is carried over without reading the image
    base: int = 0  # generation of the part from which they are carried over; 0 for a new shard


def commit_chunk(
    plan: Plan,
    number: int,
    refs: Sequence[ImageRef],
    skipped: Mapping[str, int],
    positions: Sequence[bytes] = (),
) -> Chunk:
    """Write a chunk only if absent, and return the chunk that exists, which may be that of another driver.

    `refs` are in order, at most as many as the layout allows. A chunk that is not full ends the listing; if the
    last one is full, an empty chunk follows. So all drivers agree on where the listing ends. An interrupted listing
    continues from `positions`.
    """
    last_key = refs[-1].order if refs else b""
    about = {"last_key": last_key.hex(), "skipped": dict(skipped), "positions": [p.hex() for p in positions]}
    runs = [sum(1 for _ in run) for _, run in itertools.groupby(refs, key=lambda ref: ref.container)]
    sizes = plan.layout.split(number, runs)
    name = chunk_name(plan.generation, number)
    plan.storage.create(name, _encoded(plan, refs, sizes, about))
    chunk = read_chunk(plan, number)
    if chunk is None:
        raise StorageError(f"'{plan.storage.location}/{name}' disappeared after it was written.")
    return chunk


def _encoded(
    plan: Plan, refs: Sequence[ImageRef], sizes: Sequence[int], about: Mapping[str, Any], **more: Any
) -> memoryview:
    """Return references as a Parquet file with row groups of these sizes."""
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
    table = pa.table(columns, schema=schema)
    for name, values in more.items():
        table = table.append_column(name, values)
    table = table.replace_schema_metadata({"featurepress": json.dumps(about)})
    sink, start = pa.BufferOutputStream(), 0
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        for size in sizes:
            writer.write_table(table.slice(start, size), row_group_size=size)
            start += size
    return memoryview(sink.getvalue())


def read_chunk(plan: Plan, number: int) -> Chunk | None:
    """Read the footer of a chunk. None if the chunk does not exist yet."""
    name = chunk_name(plan.generation, number)
    if (footer := _read_footer(plan, name)) is None:
        return None
    with reporting_damage(plan.storage, name):
        about = json.loads(footer.metadata[b"featurepress"])
        last_key, *positions = map(bytes.fromhex, (about["last_key"], *about["positions"]))
    first = plan.first_shard + plan.layout.first_shard(number)
    shards = range(first, first + footer.num_row_groups)
    return Chunk(number, footer.num_rows, shards, last_key, about["skipped"], tuple(positions))


def _read_footer(plan: Plan, name: str) -> Any:
    import pyarrow.parquet as pq

    if (opened := open_existing(plan.storage, name)) is None:
        return None
    with opened[0] as file, reporting_damage(plan.storage, name):
        return pq.read_metadata(file)


@contextlib.contextmanager
def _opened(plan: Plan, name: str) -> Iterator[Any]:
    """Open a Parquet file of the listing."""
    import pyarrow.parquet as pq

    with reporting_damage(plan.storage, name), plan.storage.open(name) as file, pq.ParquetFile(file) as parquet:
        yield parquet


def read_shard(plan: Plan, shard: int) -> list[ImageRef]:
    """Read the references of a shard that is new in the plan's generation."""
    chunk, row_group = plan.layout.locate(shard - plan.first_shard)
    with _opened(plan, chunk_name(plan.generation, chunk)) as parquet:
        return _references(plan, parquet.read_row_group(row_group).to_pydict())


def read_chunk_shards(plan: Plan, number: int) -> Iterator[tuple[int, list[ImageRef]]]:
    """Yield the shards of a chunk with their references, as they were when it was committed."""
    first = plan.first_shard + plan.layout.first_shard(number)
    with _opened(plan, chunk_name(plan.generation, number)) as parquet:
        for row_group in range(parquet.num_row_groups):
            yield first + row_group, _references(plan, parquet.read_row_group(row_group).to_pydict())


def _references(plan: Plan, columns: Mapping[str, list[Any]]) -> list[ImageRef]:
    n_refs = len(columns["uri"])
    own = zip(*(columns[name] for name in plan.field_names), strict=True) if plan.field_names else [()] * n_refs
    names = ("uri", "source", "size", "version")
    rows = zip(*(columns[name] for name in names), own, columns["key"], columns["problem"], strict=True)
    return [ImageRef(*row) for row in rows]


# -- revisions -----------------------------------------------------------------------------------------------


def commit_revision(plan: Plan, shard: int, references: References, n_before: int) -> Revision:
    """Write the new references of an earlier shard only if absent; return the revision that exists."""
    import numpy as np
    import pyarrow as pa

    refs, carried, base = references
    about, flags = {"base": base, "before": n_before}, pa.array(np.array(carried, bool))
    sizes = [len(refs)] if refs else []
    plan.storage.create(revision_name(plan.generation, shard), _encoded(plan, refs, sizes, about, carried=flags))
    return count_revision(plan, shard)


def read_revision(plan: Plan, shard: int) -> References:
    """Return the references of a revised shard."""
    with _opened(plan, revision_name(plan.generation, shard)) as parquet:
        columns, about = parquet.read().to_pydict(), json.loads(parquet.metadata.metadata[b"featurepress"])
        return References(_references(plan, columns), columns["carried"], about["base"])


def read_references(plan: Plan, shard: int) -> References:
    """Return the references of a shard that this generation embeds."""
    if shard < plan.first_shard:
        return read_revision(plan, shard)
    refs = read_shard(plan, shard)
    return References(refs, [False] * len(refs))


def revised_shards(plan: Plan) -> set[int]:
    """Return the shards that the plan's generation has revised: so far, or finally once the next one has begun."""
    if plan.generation == 1:
        return set()
    frozen = read_revised(plan.storage, plan.generation)
    if frozen is not None:
        return frozen
    names = (parse_revision_name(entry.name) for entry in plan.storage.list(plan_folder(plan.generation)))
    return {name[1] for name in names if name is not None and name[0] == plan.generation}


def record_revised(plan: Plan, revised: set[int]) -> bool:
    """Record the revisions of the previous generation with which the plan's generation begins.

    Return whether the recorded revisions are these. A revision that a slow driver of the previous generation
    commits later is ignored.
    """
    name = previous_revisions_name(plan.generation)
    plan.storage.create(name, dump_json({"revised": sorted(revised)}))
    return read_revised(plan.storage, plan.generation - 1) == revised


def read_revised(storage: Storage, generation: int) -> set[int] | None:
    """Return the shards that a generation has revised once the next generation has begun; else None."""
    values = read_json(storage, previous_revisions_name(generation + 1))
    return None if values is None else set(values["revised"])


def require_open(plan: Plan) -> None:
    """Raise StoppedError if the next generation has begun, which ends this one."""
    if plan.storage.stat(previous_revisions_name(plan.generation + 1)) is not None:
        raise superseded(plan, plan.generation + 1)


def count_revision(plan: Plan, shard: int) -> Revision:
    """Return a committed revision."""
    name = revision_name(plan.generation, shard)
    if (footer := _read_footer(plan, name)) is None:
        raise StorageError(f"'{plan.storage.location}/{name}' disappeared after it was written.")
    with reporting_damage(plan.storage, name):
        return Revision(shard, footer.num_rows, json.loads(footer.metadata[b"featurepress"])["before"])


def count_revisions(plan: Plan, shards: Collection[int]) -> Iterator[Revision]:
    """Yield the committed revisions of shards."""
    return map_concurrently(plan.storage, lambda shard: count_revision(plan, shard), sorted(shards))


# -- end of the listing --------------------------------------------------------------------------------------


def finish_listing(plan: Plan, n_chunks: int, n_images: int, skipped: Mapping[str, int], **more: int) -> None:
    """Declare the listing of this generation complete.

    `n_images` counts the references in chunks and revisions: all that the generation embeds. `more` are, of a later
    generation, the number of images ``before`` it; of an update, also those ``new``, ``changed`` and ``deleted``.
    """
    values = {"chunks": n_chunks, "images": n_images, "skipped": dict(skipped), **more}
    plan.storage.create(listing_name(plan.generation), dump_json(values))


def read_listing(plan: Plan) -> dict[str, Any] | None:
    """Read what `finish_listing` wrote. None while the listing is not complete."""
    return read_json(plan.storage, listing_name(plan.generation))
