"""Read and write parts: one Parquet file per shard, created only if absent, with the account in its footer.

Of several attempts at a part, in any processes on any machines, one wins; `commit` returns the account of that
one, from which the worker writes the failures and the receipt. An update replaces a part only if it still has the
version from which rows were carried over.
"""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurepress.errors import ReplacedError, StorageError
from featurepress.ledger.names import part_name
from featurepress.ledger.plan import open_existing
from featurepress.ledger.schemas import number_array, part_schema, text_array
from featurepress.specs import Failure, ImageRef, Receipt
from featurepress.storage import Storage, reporting_damage

if TYPE_CHECKING:
    from featurepress.specs import Features

_FOOTER = "featurepress"
# A row group is compressed as soon as it is full, so this is what a worker holds as float32.
_ROW_GROUP_BYTES = 2 * 1024**2
# Compressed row groups wait for the rest of the part, in memory up to this size and then in a temporary file.
_MEMORY_BYTES = 2 * 1024**2


class Account(NamedTuple):
    """The receipt and the failures of a shard, from the footer of its part."""

    receipt: Receipt
    failures: tuple[Failure, ...]


class Row(NamedTuple):
    """The columns of a row except the features."""

    ref: ImageRef
    width: int
    height: int
    sha256: str


@contextlib.contextmanager
def open_part(storage: Storage, shard: int) -> Iterator[PartReader | None]:
    """Open the part of a shard. None if there is none."""
    name = part_name(shard)
    if (opened := open_existing(storage, name)) is None:
        yield None
        return
    file, version = opened
    with file:
        try:
            parquet = pq.ParquetFile(file, pre_buffer=False)
            account = _account(parquet.metadata.metadata[_FOOTER.encode()])
        except (pa.ArrowInvalid, KeyError, TypeError) as error:
            raise StorageError(
                f"'{storage.location}/{name}' is not a part of a feature set: {error}. Delete it, and resume."
            ) from error
        with parquet:
            yield PartReader(parquet, version, account, functools.partial(reporting_damage, storage, name))


def _account(footer: bytes) -> Account:
    values = json.loads(footer)
    return Account(Receipt(**values["receipt"]), tuple(Failure(*row) for row in values["failures"]))


class PartReader:
    """An open part. One row group is in memory at a time.

    `version` is for `PartWriter.commit`. `reporting` returns a context that names the part if it is damaged.
    """

    def __init__(
        self,
        parquet: pq.ParquetFile,
        version: str,
        account: Account,
        reporting: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._parquet = parquet
        self.version = version
        self.account = account
        self._reporting = reporting

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """The sha256 of each image, by uri."""
        with self._reporting():
            columns = self._parquet.read(["uri", "sha256"], use_threads=False)
        return dict(zip(*(columns.column(i).to_pylist() for i in range(2)), strict=True))

    def read_rows(self, wanted: Mapping[str, ImageRef]) -> Iterator[tuple[list[Row], Features]]:
        """Yield the rows of the uris in `wanted`, in the order of the part, with the fields of those references."""
        if wanted:
            for table in self._row_groups():
                yield self._rows_of(table, wanted)

    def read_all_rows(self, field_names: Sequence[str]) -> Iterator[tuple[list[Row], Features]]:
        """Yield all rows in order, with the fields that the part holds."""
        for table in self._row_groups():
            uris, *fields = (table.column(name).to_pylist() for name in ("uri", *field_names))
            own = zip(*fields, strict=True) if fields else [()] * len(uris)
            refs = (ImageRef(uri, 0, 0, "", values) for uri, values in zip(uris, own, strict=True))
            yield self._rows_of(table, {ref.uri: ref for ref in refs})

    def _row_groups(self) -> Iterator[pa.Table]:
        for number in range(self._parquet.num_row_groups):
            with self._reporting():
                table = self._parquet.read_row_group(number, use_threads=False)
            yield table

    def _rows_of(self, table: pa.Table, wanted: Mapping[str, ImageRef]) -> tuple[list[Row], Features]:
        table = table.combine_chunks()
        names = ("uri", "width", "height", "sha256")
        values = zip(*(table.column(name).to_pylist() for name in names), strict=True)
        rows, chosen = [], []
        for i, (uri, width, height, sha256) in enumerate(values):
            if (ref := wanted.get(uri)) is not None:
                rows.append(Row(ref, width, height, sha256))
                chosen.append(i)
        lists = table.column("features").combine_chunks()
        features = lists.flatten().to_numpy().reshape(-1, lists.type.list_size)
        return rows, features if len(rows) == len(features) else features[chosen]


class PartWriter:
    """A new part: Parquet without dictionary, zstd level 1, the account in the footer.

    `field_names` are the columns between uri and width.

    Time: about 16 microseconds per image of 1,280 features, two thirds of them zstd. Without compression it would
    be 5, and the files 1.3 times (the embedded model) to 2.2 times (sparser features) as large. Memory: a row group
    of 2 MB, and 2 MB of compressed data.
    """

    def __init__(self, field_names: tuple[str, ...], n_features: int) -> None:
        self._field_names = field_names
        self._schema = part_schema(field_names, n_features)
        self._spool = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115 - open until `close`
        self._writer = pq.ParquetWriter(
            self._spool,
            self._schema,
            use_dictionary=False,
            compression="zstd",
            compression_level=1,
            write_statistics=["uri", *field_names],
        )
        n_rows = max(16, _ROW_GROUP_BYTES // (4 * n_features))
        self._features = np.empty((n_rows, n_features), np.float32)
        self._rows: list[Row] = []

    def add(self, rows: Sequence[Row], features: Features) -> None:
        """Add rows with their features: array (n_samples, n_features) float32, copied."""
        start = 0
        while start < len(rows):
            filled = len(self._rows)
            n = min(len(rows) - start, len(self._features) - filled)
            self._features[filled : filled + n] = features[start : start + n]
            self._rows += rows[start : start + n]
            start += n
            if len(self._rows) == len(self._features):
                self._write_row_group()

    def commit(
        self, storage: Storage, receipt: Receipt, failures: Sequence[Failure], *, replaces: str = ""
    ) -> Account:
        """Create the part only if absent, or replace the version `replaces`. Return its account.

        If another attempt has created the part, the account is that of the existing part.
        """
        self._write_row_group()
        footer = {"receipt": receipt.to_json(), "failures": list(failures)}
        self._writer.add_key_value_metadata({_FOOTER: json.dumps(footer)})
        with _spooling():
            self._writer.close()
        name = part_name(receipt.shard)
        if replaces:
            is_ours = storage.replace(name, self._encoded(), replaces)
        else:
            is_ours = storage.create(name, self._encoded())
        if is_ours:
            return Account(receipt, tuple(failures))
        with open_part(storage, receipt.shard) as existing:
            if existing is None:
                raise StorageError(
                    f"'{storage.location}/{name}' has disappeared: another program changes the parts of this "
                    "feature set. Stop it, and resume."
                )
            if existing.account.receipt.generation != receipt.generation:
                raise ReplacedError(
                    f"'{storage.location}/{name}' was replaced by another generation during this run. Stop the "
                    "other run, and resume."
                )
            return existing.account

    def close(self) -> None:
        """Release the memory and the temporary file, whether the part was committed or not."""
        with contextlib.suppress(OSError):
            self._writer.close()
        self._spool.close()

    def _write_row_group(self) -> None:
        if not self._rows:
            return
        refs, widths, heights, hashes = zip(*self._rows, strict=True)
        columns = [
            text_array([ref.uri for ref in refs]),
            *(text_array([ref.fields[i] for ref in refs]) for i in range(len(self._field_names))),
            number_array(np.array(widths, np.int32)),
            number_array(np.array(heights, np.int32)),
            text_array(hashes),
            pa.FixedSizeListArray.from_arrays(
                number_array(self._features[: len(refs)].reshape(-1)), self._features.shape[1]
            ),
        ]
        with _spooling():
            self._writer.write_table(pa.table(columns, schema=self._schema))
        self._rows.clear()

    def _encoded(self) -> Iterator[bytes]:
        """Yield the bytes of the file in pieces."""
        self._spool.seek(0)
        while piece := self._spool.read(1 << 20):
            yield piece


@contextlib.contextmanager
def _spooling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = f" '{tempfile.tempdir}'" if tempfile.tempdir else ""  # set once a file was created there
        raise StorageError(
            f"Cannot write to the temporary folder{folder}: {error.strerror or error}. "
            "Free space there or set TMPDIR, and resume."
        ) from error
