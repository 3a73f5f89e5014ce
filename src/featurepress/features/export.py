"""Export a feature set as files for other tools, with bounded memory; each file is written whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from featurepress.errors import DestinationError, SettingError
from featurepress.features.feature_set import FeatureSet, open_features, record_batches
from featurepress.features.parts import matrix_of
from featurepress.ledger import Plan
from featurepress.ledger.destination import destination_errors
from featurepress.ledger.names import FOLDERS, csv_name
from featurepress.process import send_message
from featurepress.progress import OnProgress, show_progress, step
from featurepress.settings import ExportSettings, nearest
from featurepress.storage import Storage, is_below, open_storage
from featurepress.storage.connection import scheme_of

if TYPE_CHECKING:
    import pyarrow as pa

_OnRows = Callable[[int], None]  # called with the number of rows written since the last call
_Writer = Callable[[FeatureSet, IO[bytes], range, _OnRows], None]

_BATCH_BYTES = 4 * 1024**2  # of features or texts; smaller is slower, and Arrow's CSV holds several copies
_ROW_GROUP_BYTES = 16 * 1024**2  # of features in a row group of Parquet: enough for readers, little for memory
_MAX_BATCH_ROWS = 8192
_CSV_BYTES = 16  # of a feature as text with its separator, at most


def export(
    features: FeatureSet | str | Path, to: str | Path, *, parts: int = 1, progress: bool | OnProgress = True
) -> list[str]:
    """Export a feature set as one file, or as several.

    Parameters
    ----------
    features : FeatureSet, str or path
        A set, or the location of a complete one. Of a set opened with ``allow_incomplete``, the existing rows are
        written.
    to : str or path
        The file, on disk or in a bucket; its ending is the format. Missing folders are created.

        ``.npy``
            The features: array (n_samples, n_features) float32 in the order of `FeatureSet.uris`, which
            ``numpy.load(mmap_mode="r")`` opens without reading it.
        ``.npz``
            Arrays ``X`` (the same), ``uris``, ``y`` if there are labels, and the other fields by their names:
            texts of fixed width, "" for a missing one. Not compressed.
        ``.csv``
            ``uri[,label and other fields],features``, the features a JSON list in text.
        ``.parquet``
            All columns of the parts; zstd level 1, row groups of 16 MB of features.
        ``.arrow``
            The same columns in Arrow's IPC file format, not compressed, so that it can be memory-mapped.
    parts : int
        Number of files, from 1 to 99,999. With 5, ``name.csv`` becomes ``name-00000-of-00005.csv`` and so on. Each
        file holds an equal share of the rows, in order; with more files than rows some have none.
    progress : bool or callable
        True shows one line in a terminal or notebook. A callable gets a `Progress` after each batch.

    Returns
    -------
    list of str
        Locations of the files, in the order of the rows.

    Raises
    ------
    SettingError
        The format is unknown, or `parts` is not allowed.
    DestinationError
        A file exists already, or the destination cannot be written; nothing was written.
    FeatureSetError
        There is no feature set, or (IncompleteError) its run has not finished.
    StorageError
        Writing failed; the files that exist are whole.

    Notes
    -----
    Memory: a few copies of 4 MB of features (16 MB for Parquet), whatever the size of the set. A set takes about
    ``4 * n_samples * n_features`` bytes as .npy, .npz and .arrow, half of that as .parquet and three times as much
    as .csv.

    Examples
    --------
    >>> import featurepress as fp
    >>> fp.export("features/", "features.npy")  # doctest: +SKIP
    """
    ExportSettings(parts=parts)  # checks it
    write = _writer(str(to))
    features = features if isinstance(features, FeatureSet) else open_features(features)
    folder, _, name = open_storage(str(to)).location.rpartition("/")
    storage = open_storage(f"{folder}/")
    names = [name] if parts == 1 else [_numbered(name, number, parts) for number in range(parts)]
    with destination_errors("--to"):
        _refuse_own_folders(features, storage)
        _require_absent(storage, names)
        storage.prepare()
    n_rows, row_bytes, done = len(features), 4 * features.n_features, 0

    def on_rows(n_more: int) -> None:
        nonlocal done
        done += n_more
        on_progress(step(f"exporting to {name}", done * row_bytes, n_rows * row_bytes))

    with show_progress(progress) as on_progress:
        for number, target in enumerate(names):
            with contextlib.ExitStack() as stack:
                with destination_errors("--to") if number == 0 else contextlib.nullcontext():
                    file = stack.enter_context(storage.stream(target))
                write(features, file, _share_of_rows(n_rows, number, parts), on_rows)
                file.flush()
                _require_absent(storage, [target])  # a file created in the meantime is not replaced either
    return [f"{storage.location.rstrip('/')}/{target}" for target in names]


@dataclass(frozen=True)
class ExportCsv:
    """The task that writes one CSV file of a finished set: uri[,label],features, features as a JSON list.

    Parameters
    ----------
    parts : int
        Number of CSV files; each holds an equal share of the rows, in order.
    """

    parts: int

    def __call__(self, plan: Plan, shard: int) -> int:
        """Write file number `shard`; return its number of rows."""
        features = FeatureSet(plan, None)
        rows = _share_of_rows(len(features), shard, self.parts)
        with plan.storage.stream(csv_name(shard)) as file:
            _write_csv(features, file, rows, lambda n_more: send_message(("rows", n_more)))
            file.flush()
        return len(rows)


# -- destination ---------------------------------------------------------------------------------------------


def _writer(to: str) -> _Writer:
    """Return the writer of the format that a file's name ends in."""
    suffix = Path(to).suffix.lower()
    if suffix not in _WRITERS:
        *others, last = _WRITERS
        near = nearest(suffix, list(_WRITERS)) if suffix else "."
        raise SettingError(f"The 'to' setting (--to) must end in {', '.join(others)} or {last}. Got '{to}'{near}")
    return _WRITERS[suffix]


def _numbered(name: str, number: int, parts: int) -> str:
    stem, _, suffix = name.rpartition(".")
    return f"{stem}-{number:05d}-of-{parts:05d}.{suffix}"


def _share_of_rows(n_rows: int, number: int, parts: int) -> range:
    return range(n_rows * number // parts, n_rows * (number + 1) // parts)


def _require_absent(storage: Storage, names: Sequence[str]) -> None:
    if existing := [name for name in names if storage.stat(name) is not None]:
        first = f"'{storage.location.rstrip('/')}/{existing[0]}'"
        if len(existing) == 1:
            raise DestinationError(f"{first} already exists. Delete it, or choose another --to.")
        raise DestinationError(
            f"{first} and {len(existing) - 1} more of the files already exist. Delete them, or choose another --to."
        )


def _refuse_own_folders(features: FeatureSet, storage: Storage) -> None:
    """Keep exported files out of the folders of the set, which its readers glob."""
    own, target = (
        location if scheme_of(location) else str(Path(location).resolve())
        for location in (features.location, storage.location)
    )
    for folder in FOLDERS:
        if is_below(f"{target.rstrip('/')}/", f"{own}/{folder}"):
            raise DestinationError(
                f"'{own}/{folder}' is a folder of the feature set itself; it must hold nothing else. Choose "
                "another --to."
            )


# -- formats -------------------------------------------------------------------------------------------------


def _n_rows(row_bytes: int, limit_bytes: int = _BATCH_BYTES) -> int:
    """Return the number of rows that fit."""
    return max(1, min(_MAX_BATCH_ROWS, limit_bytes // row_bytes))


def _write_npy(features: FeatureSet, file: IO[bytes], rows: range, on_rows: _OnRows) -> None:
    n_features = features.n_features
    _write_npy_header(file, "<f4", (len(rows), n_features))
    for batch in record_batches(features, _n_rows(4 * n_features), ["features"], rows):
        file.write(matrix_of(batch).data)
        on_rows(len(batch))


def _write_npy_header(file: IO[bytes], dtype: str, shape: tuple[int, ...]) -> None:
    from numpy.lib import format as npy

    npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})


def _write_npz(features: FeatureSet, file: IO[bytes], rows: range, on_rows: _OnRows) -> None:
    import zipfile

    arrays = _text_arrays(features)
    widths = _text_widths(features, list(arrays.values()), rows)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("X.npy", "w", force_zip64=True) as member:
            _write_npy(features, member, rows, on_rows)
        for name, column in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_texts(features, member, rows, column, widths[column])


def _text_arrays(features: FeatureSet) -> dict[str, str]:
    """Return the arrays of text: name -> column."""
    fields = features.plan.field_names
    arrays = {"uris": "uri"} | ({"y": "label"} if "label" in fields else {})
    others = [name for name in fields if name != "label"]
    if clash := [name for name in others if name in {"X", *arrays}]:
        raise SettingError(
            f"The field '{clash[0]}' of '{features.location}' cannot be an array of an .npz, which already has one "
            "of that name. Export to .parquet, .arrow or .csv."
        )
    return arrays | {name: name for name in others}


def _text_widths(features: FeatureSet, columns: list[str], rows: range) -> dict[str, int]:
    """Return the length of the longest text of each column, in code points; at least 1."""
    import pyarrow.compute as pc

    widths = dict.fromkeys(columns, 1)
    for batch in record_batches(features, _MAX_BATCH_ROWS, columns, rows):
        for name in columns:
            widest = pc.max(pc.utf8_length(batch.column(name))).as_py()
            widths[name] = max(widths[name], widest or 0)
    return widths


def _write_texts(features: FeatureSet, file: IO[bytes], rows: range, column: str, width: int) -> None:
    import numpy as np

    dtype = f"<U{width}"
    _write_npy_header(file, dtype, (len(rows),))
    for batch in record_batches(features, _n_rows(4 * width), [column], rows):
        texts = [text or "" for text in batch.column(column).to_pylist()]
        file.write(np.array(texts, dtype).tobytes())


def _write_csv(features: FeatureSet, file: IO[bytes], rows: range, on_rows: _OnRows) -> None:
    import pyarrow as pa
    import pyarrow.csv

    columns = ["uri", *features.plan.field_names, "features"]
    schema = pa.schema([(name, pa.string()) for name in columns])
    with pyarrow.csv.CSVWriter(file, schema) as writer:
        for batch in record_batches(features, _n_rows(_CSV_BYTES * features.n_features), columns, rows):
            writer.write(_csv_rows(batch, schema))
            on_rows(len(batch))


def _csv_rows(record_batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Convert the features to text: the shortest digits that read back as the same float32."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = record_batch.column("features")
    texts = pc.cast(lists.flatten(), pa.string())
    size = lists.type.list_size
    offsets = pa.array(range(0, len(lists) * size + 1, size), pa.int32())
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ", ")
    features = pc.binary_join_element_wise("[", joined, "]", "")
    others = [record_batch.column(name) for name in schema.names[:-1]]
    return pa.record_batch([*others, features], schema=schema)


def _write_parquet(features: FeatureSet, file: IO[bytes], rows: range, on_rows: _OnRows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = features.plan.field_names
    with pq.ParquetWriter(
        file,
        features.schema,
        use_dictionary=list(names),  # few different values, unlike the other columns
        compression="zstd",
        compression_level=1,
        write_statistics=["uri", *names],
    ) as writer:
        for batches in _row_groups(features, rows):
            table = pa.Table.from_batches(batches, features.schema)
            writer.write_table(table, row_group_size=len(table))
            on_rows(len(table))


def _row_groups(features: FeatureSet, rows: range) -> Iterator[list[pa.RecordBatch]]:
    """Yield the rows in groups of similar size, however small the parts are."""
    n_rows = _n_rows(4 * features.n_features, _ROW_GROUP_BYTES)
    group: list[pa.RecordBatch] = []
    for batch in _whole_batches(features, rows):
        group.append(batch)
        if sum(map(len, group)) >= n_rows:
            yield group
            group = []
    if group:
        yield group


def _whole_batches(features: FeatureSet, rows: range) -> Iterator[pa.RecordBatch]:
    """Yield the rows with all columns, without the metadata of the parts."""
    n_rows = _n_rows(4 * features.n_features)
    for batch in record_batches(features, n_rows, features.schema.names, rows):
        yield batch.cast(features.schema)


def _write_arrow(features: FeatureSet, file: IO[bytes], rows: range, on_rows: _OnRows) -> None:
    import pyarrow as pa

    with pa.ipc.new_file(file, features.schema) as writer:
        for batch in _whole_batches(features, rows):
            writer.write_batch(batch)
            on_rows(len(batch))


_WRITERS: dict[str, _Writer] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".arrow": _write_arrow,
}
