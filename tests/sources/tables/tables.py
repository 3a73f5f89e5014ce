"""Tables for tests, in every format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq

HF_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(table: pa.Table, path: Path, **options: Any) -> None:
    pq.write_table(table, path, row_group_size=4, **options)


def write_stream(table: pa.Table, path: Path, **options: Any) -> None:
    with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=4)


def write_file(table: pa.Table, path: Path, **options: Any) -> None:
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=4)


# What the file is called -> how it is written.
FORMATS: dict[str, Callable[[pa.Table, Path], None]] = {
    "snappy.parquet": write_parquet,
    "zstd.parquet": lambda table, path: write_parquet(table, path, compression="zstd", use_dictionary=False),
    "stream.arrow": write_stream,
    "zstd-stream.arrow": lambda table, path: write_stream(table, path, compression="zstd"),
    "file.arrow": write_file,
    "old.ipc": lambda table, path: write_file(table, path, use_legacy_format=True),
    "lz4.feather": lambda table, path: pa.feather.write_feather(table, path, compression="lz4", chunksize=4),
}
ARROW = [name for name in FORMATS if not name.endswith(".parquet")]


def hugging_face(images: list[tuple[bytes | None, str | None] | None]) -> pa.Array:
    """Return a column of structs of bytes and path."""
    return pa.array([None if one is None else {"bytes": one[0], "path": one[1]} for one in images], HF_TYPE)
