"""The listing of a feature set: chunks of references, cut into shards, and the revisions of shards."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurepress.errors import StorageError
from featurepress.ledger.plan import Plan, dump_json, read_json
from featurepress.records import ImageRef, chunk_schema, number_array, text_array
from featurepress.storage import undamaged


@dataclass(frozen=True)
class Chunk:
    """One committed piece of the listing.

    Attributes
    ----------
    number : int
        0 for the first of its generation.
    n_images : int
        References in it.
    shards : range
        The numbers of its shards.
    last_key : bytes
        Key of its last reference.
    skipped : mapping
        What the listing had passed over up to its end.
    positions : tuple of bytes
        The last key of each source up to its end.
    """

    number: int
    n_images: int
    shards: range
    last_key: bytes
    skipped: Mapping[str, int]
    positions: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Revision:
    """The committed references of a shard of an earlier generation whose images have changed.

    Attributes
    ----------
    shard : int
        Its number, which it keeps.
    n_images : int
        References in it now.
    """

    shard: int
    n_images: int

    @property
    def shards(self) -> range:
        """Its number, alone."""
        return range(self.shard, self.shard + 1)


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
    about = {"last_key": refs[-1].order.hex(), "skipped": dict(skipped), "positions": [p.hex() for p in positions]}
    runs = [sum(1 for _ in run) for _, run in itertools.groupby(refs, key=lambda ref: ref.container)]
    sizes = plan.layout.cut(number, runs)
    name = _chunk_name(plan, number)
    plan.storage.create(name, _encoded(plan, refs, sizes, about))
    chunk = read_chunk(plan, number)
    if chunk is None:
        raise StorageError(f"'{plan.storage.location}/{name}' vanished after it was written.")
    return chunk


def _encoded(
    plan: Plan, refs: Sequence[ImageRef], sizes: Sequence[int], about: Mapping[str, Any], **more: Any
) -> memoryview:
    """Give references as a Parquet file with row groups of these sizes."""
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
    """Read the footer of a chunk, or give None if it is not there yet."""
    footer = _read_footer(plan, _chunk_name(plan, number))
    if footer is None:
        return None
    with undamaged(plan.storage, _chunk_name(plan, number)):
        about = json.loads(footer.metadata[b"featurepress"])
        last_key, *positions = map(bytes.fromhex, (about["last_key"], *about["positions"]))
    first = plan.first_shard + plan.layout.first_shard(number)
    shards = range(first, first + footer.num_row_groups)
    return Chunk(number, footer.num_rows, shards, last_key, about["skipped"], tuple(positions))


def _read_footer(plan: Plan, name: str) -> Any:
    import pyarrow.parquet as pq

    try:
        with undamaged(plan.storage, name), plan.storage.open(name) as file:
            return pq.read_metadata(file)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def read_shard(plan: Plan, shard: int) -> list[ImageRef]:
    """Read the references of a shard that is new in the plan's generation."""
    import pyarrow.parquet as pq

    chunk, row_group = plan.layout.locate(shard - plan.first_shard)
    name = _chunk_name(plan, chunk)
    with undamaged(plan.storage, name), plan.storage.open(name) as file, pq.ParquetFile(file) as parquet:
        columns = parquet.read_row_group(row_group).to_pydict()
    return _references(plan, columns)


def read_chunk_shards(plan: Plan, number: int) -> Iterator[tuple[int, list[ImageRef]]]:
    """Yield the shards of a chunk with their references, as they were when it was committed."""
    import pyarrow.parquet as pq

    name = _chunk_name(plan, number)
    first = plan.first_shard + plan.layout.first_shard(number)
    with undamaged(plan.storage, name), plan.storage.open(name) as file, pq.ParquetFile(file) as parquet:
        for row_group in range(parquet.num_row_groups):
            yield first + row_group, _references(plan, parquet.read_row_group(row_group).to_pydict())


def _references(plan: Plan, columns: Mapping[str, list[Any]]) -> list[ImageRef]:
    n_refs = len(columns["uri"])
    own = zip(*(columns[name] for name in plan.field_names), strict=True) if plan.field_names else [()] * n_refs
    names = ("uri", "source", "size", "version")
    rows = zip(*(columns[name] for name in names), own, columns["key"], columns["problem"], strict=True)
    return [ImageRef(*row) for row in rows]


# -- revisions -----------------------------------------------------------------------------------------------


def commit_revision(plan: Plan, shard: int, refs: Sequence[ImageRef], carried: Sequence[bool]) -> Revision:
    """Write the references that a shard has from now on, only if absent, and give the revision that stands.

    Parameters
    ----------
    plan : Plan
        Of this generation.
    shard : int
        A shard of an earlier one.
    refs : sequence of ImageRef
        In order; images that are gone are not among them.
    carried : sequence of bool
        For each whether its row, or its failure, is carried over without a look at it.
    """
    import numpy as np
    import pyarrow as pa

    name = _revision_name(plan, shard)
    flags = pa.array(np.array(carried, bool))
    plan.storage.create(name, _encoded(plan, refs, [len(refs)] if refs else [], {}, carried=flags))
    footer = _read_footer(plan, name)
    if footer is None:
        raise StorageError(f"'{plan.storage.location}/{name}' vanished after it was written.")
    return Revision(shard, footer.num_rows)


def read_revision(plan: Plan, shard: int) -> tuple[list[ImageRef], list[bool]]:
    """Give the references of a revised shard, and which of them are carried over."""
    import pyarrow.parquet as pq

    name = _revision_name(plan, shard)
    with undamaged(plan.storage, name), plan.storage.open(name) as file, pq.ParquetFile(file) as parquet:
        columns = parquet.read().to_pydict()
    return _references(plan, columns), columns["carried"]


def read_references(plan: Plan, shard: int) -> tuple[list[ImageRef], list[bool]]:
    """Give the references of a shard that this generation presses, and which of them are carried over."""
    if shard < plan.first_shard:
        return read_revision(plan, shard)
    refs = read_shard(plan, shard)
    return refs, [False] * len(refs)


def revised_shards(plan: Plan) -> set[int]:
    """Give the shards whose revision stands in the plan's generation."""
    found = set()
    for entry in plan.storage.list(plan.folder) if plan.generation > 1 else ():
        digits = entry.name.removeprefix(f"{plan.folder}/part-").removesuffix(".parquet")
        if digits.isdecimal():
            found.add(int(digits))
    return found


def count_revision(plan: Plan, shard: int) -> Revision:
    """Give a revision that stands."""
    return Revision(shard, _read_footer(plan, _revision_name(plan, shard)).num_rows)


def _revision_name(plan: Plan, shard: int) -> str:
    return f"{plan.folder}/part-{shard:08d}.parquet"


# -- its end -------------------------------------------------------------------------------------------------


def finish_listing(plan: Plan, n_chunks: int, n_images: int, skipped: Mapping[str, int], **more: int) -> None:
    """Say that the listing of this generation is complete.

    Parameters
    ----------
    plan : Plan
        Of this generation.
    n_chunks, n_images : int
        Chunks, and references in them and in revisions: all that this generation has to press.
    skipped : mapping
        What the listing has passed over.
    **more
        Of an update: counts of images ``new``, ``changed``, ``deleted`` and ``unchanged``.
    """
    values = {"chunks": n_chunks, "images": n_images, "skipped": dict(skipped), **more}
    plan.storage.create(f"{plan.folder}/listing.json", dump_json(values))


def read_listing(plan: Plan) -> dict[str, Any] | None:
    """Read what `finish_listing` wrote, or give None while the listing is not complete."""
    return read_json(plan.storage, f"{plan.folder}/listing.json")


def _chunk_name(plan: Plan, number: int) -> str:
    return f"{plan.folder}/chunk-{number:08d}.parquet"
