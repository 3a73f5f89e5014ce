"""Read one part of a feature set, with bounded memory and without Arrow's threads."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from featurepress.ledger import Plan
from featurepress.storage import Storage, reporting_damage

if TYPE_CHECKING:
    import pyarrow as pa

    from featurepress.specs import Features


@contextlib.contextmanager
def open_parquet(storage: Storage, name: str) -> Iterator[Any]:
    """Open a Parquet file. Read it without threads: a process that ends while they start is aborted."""
    import pyarrow.parquet as pq

    with (
        reporting_damage(storage, name),
        storage.open(name) as file,
        pq.ParquetFile(file, pre_buffer=False) as parquet,
    ):
        yield parquet


def read_footer(storage: Storage, name: str) -> tuple[int, str]:
    """Return the number of rows of a part, and a hash that changes whenever the part is rewritten."""
    import pyarrow.parquet as pq

    with reporting_damage(storage, name), storage.open(name) as file:
        footer = pq.read_metadata(file)
    row_groups = json.dumps([footer.row_group(i).to_dict() for i in range(footer.num_row_groups)], default=str)
    account = (footer.metadata or {}).get(b"featurepress", b"")
    return footer.num_rows, hashlib.sha256(account + row_groups.encode()).hexdigest()


def part_batches(
    plan: Plan, name: str, columns: list[str], batch_size: int = 8192
) -> Iterator[tuple[Features, pa.RecordBatch]]:
    """Yield the features of a part, in order, with other columns of the same rows."""
    with open_parquet(plan.storage, name) as parquet:
        for batch in parquet.iter_batches(batch_size, columns=[*columns, "features"], use_threads=False):
            yield matrix_of(batch), batch.select(columns)


def matrix_of(batch: pa.RecordBatch) -> Features:
    """Return the features of a record batch: array (n_samples, n_features) float32."""
    column = batch.column("features")
    features: Features = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    return features
