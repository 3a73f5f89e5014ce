"""Predictions: how users read them, and the files below the destination, which docs/how-to/predict.md lists.

A part and its receipt depend only on the model, the settings and the part of the features. Repeated attempts write
the same, and a part whose receipt names the current features is not predicted again.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurepress.errors import PlanMismatchError, StoppedError
from featurepress.features.feature_set import FeatureSet, as_pandas
from featurepress.features.notebook import N_ROWS, to_html
from featurepress.learning.model import TrainedModel, open_model
from featurepress.ledger.names import (
    ANNOTATED_FOLDER,
    PREDICTIONS_FOLDER,
    PREDICTIONS_MODEL,
    PREDICTIONS_REQUEST,
    TRAINED_MODEL,
    is_prediction,
    prediction_name,
    shard_of,
)
from featurepress.ledger.plan import read_json
from featurepress.storage import Storage, map_concurrently, open_storage, reporting_damage

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

UNKNOWN = "unknown"


class Predictions:
    """The predictions at a destination; the rows stay on disk until they are read.

    Libraries that speak Arrow read them directly: ``polars.DataFrame(predictions)``,
    ``pyarrow.table(predictions)``, or ``SELECT * FROM predictions`` in DuckDB.

    Attributes
    ----------
    location : str
        The destination; the files are below ``predictions/`` there.
    features : FeatureSet
        The features that were classified.
    summary : dict
        ``rows``, ``images`` (their number), ``labels`` (rows by label), ``unknown``, ``unread`` (images that
        could not be read again for their tiles), ``failed``, ``model``, ``features``, ``settings``, ``versions``.
    seconds : float
        Duration of the call that returned this.
    images_per_second : float
        Speed of embedding in that call; 0.0 if nothing was embedded.
    """

    def __init__(self, storage: Storage, features: FeatureSet, summary: Mapping[str, Any]) -> None:
        self._storage, self.features, self.summary = storage, features, dict(summary)
        self.seconds = self.images_per_second = 0.0

    def __repr__(self) -> str:
        return f"<Predictions '{self.location}': {len(self):,} rows, {len(self.counts):,} labels>"

    def _repr_html_(self) -> str:
        """Return the predictions as HTML for notebooks: facts, and the first rows."""
        counts = [f"{label} {n:,}" for label, n in itertools.islice(self.counts.items(), 10)]
        facts = {
            "location": self.location,
            "rows": len(self),
            "images": self.summary["images"],
            "labels": f"{len(self.counts):,}: {', '.join(counts)}",
            "failed": self.summary["failed"],
            "model": self.summary["model"]["location"],
        }
        first = next(iter(self.tables()), None)
        return to_html("Predictions", facts, () if first is None else first.slice(0, N_ROWS).to_pylist())

    def __len__(self) -> int:
        rows: int = self.summary["rows"]
        return rows

    @property
    def location(self) -> str:
        """The destination."""
        return self._storage.location

    @property
    def counts(self) -> dict[str, int]:
        """Rows by label, the most frequent first; ``unknown`` is one of the labels."""
        counts = {**self.summary["labels"], **({UNKNOWN: n} if (n := self.summary["unknown"]) else {})}
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def failures(self) -> pa.Table:
        """The images that could not be embedded: Arrow table with uri, stage, reason."""
        return self.features.failures

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows."""
        return schema_of(self.summary["settings"])

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows part by part, in the order of the features."""
        for entry in self._storage.list(PREDICTIONS_FOLDER):
            if is_prediction(entry.name):
                yield _read_part(self._storage, entry.name, self.schema)

    def to_table(self) -> pa.Table:
        """Return all rows as one Arrow table, in the order of the features."""
        import pyarrow as pa

        return pa.concat_tables([self.schema.empty_table(), *self.tables()])

    def to_pandas(self) -> pd.DataFrame:
        """Return all rows as a pandas DataFrame, in the order of the features.

        Raises
        ------
        RequestError
            pandas is not installed.
        """
        return as_pandas(self.to_table())

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return the rows as a PyCapsule stream of Arrow, part by part.

        Parameters
        ----------
        requested_schema : PyCapsule, optional
            A schema to cast to, from a library that asks for one.
        """
        import pyarrow as pa

        batches = (batch for table in self.tables() for batch in table.to_batches())
        return pa.RecordBatchReader.from_batches(self.schema, batches).__arrow_c_stream__(requested_schema)


# -- columns -------------------------------------------------------------------------------------------------


def schema_of(settings: Mapping[str, Any]) -> pa.Schema:
    """Return the Arrow schema of predictions with these settings."""
    import pyarrow as pa

    uri, label, probability = ("uri", pa.string()), ("label", pa.string()), ("probability", pa.float32())
    columns = [uri, label, probability]
    if settings["regions"] or settings["tiles"]:
        columns += [(name, pa.int32()) for name in ("left", "top", "right", "bottom")] + [("kind", pa.string())]
    elif settings["top_k"] > 1 or settings["threshold"] is not None:
        columns += [
            (f"{name}_{i + 1}", kind) for i in range(settings["top_k"]) for name, kind in (label, probability)
        ]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])


# -- the request ---------------------------------------------------------------------------------------------


def require_same(storage: Storage, request: Mapping[str, Any]) -> bool:
    """Return whether a destination already holds this request.

    Raises
    ------
    PlanMismatchError
        It holds another one; the differences are named.
    """
    existing = read_json(storage, PREDICTIONS_REQUEST)
    if existing is None:
        return False
    old, new = _identity(existing), _identity(request)
    differences = [f"{name}: {old.get(name)!r}, not {new[name]!r}" for name in new if new[name] != old.get(name)]
    if differences:
        raise PlanMismatchError(
            f"'{storage.location}' holds other predictions, with {'; '.join(differences)}. Choose another --out."
        )
    return True


def create_request(storage: Storage, request: Mapping[str, Any]) -> None:
    """Write the request if there is none; an existing one must be the same."""
    if not storage.create(PREDICTIONS_REQUEST, _dump(request)):
        require_same(storage, request)


def _identity(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two requests must share; the features may have been moved."""
    return {"model": request["model"]["sha256"], "features": request["features"]["run_id"], **request["settings"]}


# -- the model -----------------------------------------------------------------------------------------------


def copy_model(storage: Storage, model: TrainedModel) -> None:
    """Copy a model into the destination, where workers read it, unless it is there; refuse one that has changed."""
    if storage.stat(f"{PREDICTIONS_MODEL}/{TRAINED_MODEL}") is not None:
        return
    source = open_storage(model.location)
    text = source.read(TRAINED_MODEL) or b"{}"
    if hashlib.sha256(text).hexdigest() != model.sha256:
        raise StoppedError(f"The model '{model.location}' changed while it was read. Run the same command again.")
    for name in json.loads(text)["files"]:
        storage.write(f"{PREDICTIONS_MODEL}/{name}", source.read(name) or b"")
    storage.write(f"{PREDICTIONS_MODEL}/{TRAINED_MODEL}", text)  # last: it declares the copy complete
    copied_model(storage.location, model.sha256)


@functools.lru_cache(maxsize=1)
def copied_model(location: str, sha256: str) -> TrainedModel:
    """Return the model at a destination, which has this hash; a worker reads it once for many parts."""
    model = open_model(f"{location.rstrip('/')}/{PREDICTIONS_MODEL}")
    if model.sha256 != sha256:
        raise StoppedError(
            f"The model in '{model.location}' is not the model of these predictions. Predict into another --out."
        )
    return model


# -- parts ---------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Counts of a part, added up while it is written; `part` is the hash of the part of the features."""

    part: str
    images: int = 0
    rows: int = 0
    unread: int = 0
    labels: collections.Counter[str] = field(default_factory=collections.Counter)

    def add(self, labels: Sequence[str], n_images: int, n_unread: int) -> None:
        """Count the labels of some rows."""
        self.labels.update(labels)
        self.rows += len(labels)
        self.images += n_images
        self.unread += n_unread

    def to_receipt(self, model: str) -> dict[str, Any]:
        """Return the receipt of the part, predicted by the model with this hash."""
        labels = dict(sorted(self.labels.items()))
        unknown = labels.pop(UNKNOWN, 0)
        return {
            "part": self.part,
            "model": model,
            "images": self.images,
            "rows": self.rows,
            "labels": labels,
            "unknown": unknown,
            "unread": self.unread,
        }


@contextlib.contextmanager
def part_writer(
    storage: Storage, shard: int, schema: pa.Schema, suffix: str
) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that writes rows into a part, ``parquet`` or ``csv``; the part appears at the end."""
    with storage.stream(prediction_name(shard, suffix)) as file:
        if suffix == "csv":
            import pyarrow.csv

            with pyarrow.csv.CSVWriter(file, schema) as lines:
                yield lines.write
        else:
            import pyarrow.parquet as pq

            with pq.ParquetWriter(file, schema, compression="zstd", compression_level=1) as parquet:
                yield parquet.write_table
        file.flush()


def _read_part(storage: Storage, name: str, schema: pa.Schema) -> pa.Table:
    """Read a part, Parquet or CSV."""
    with reporting_damage(storage, name), storage.open(name) as file:
        if name.endswith(".parquet"):
            import pyarrow.parquet as pq

            with pq.ParquetFile(file, pre_buffer=False) as parquet:
                return parquet.read(use_threads=False).replace_schema_metadata()
        from pyarrow import csv

        lines = csv.ParseOptions(newlines_in_values=True)
        types = csv.ConvertOptions(column_types=schema, strings_can_be_null=False)
        return csv.read_csv(file, parse_options=lines, convert_options=types).cast(schema)


def read_receipts(storage: Storage, shards: Sequence[int]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield parts with their receipts; None where there is none."""
    receipts = map_concurrently(storage, lambda shard: read_json(storage, prediction_name(shard, "json")), shards)
    return zip(shards, receipts, strict=True)


def unfinished_parts(storage: Storage, digests: Mapping[int, str]) -> list[int]:
    """Return the parts that have no predictions for features with these hashes.

    Parts with images that could not be read are included: the images may be readable now.
    """
    existing = {shard_of(entry.name) for entry in storage.list(PREDICTIONS_FOLDER) if is_prediction(entry.name)}
    finished = {  # numbers only: receipts with many labels would fill the memory
        shard
        for shard, receipt in read_receipts(storage, sorted(existing & set(digests)))
        if receipt and receipt["part"] == digests[shard] and not receipt.get("unread")
    }
    return [shard for shard in digests if shard not in finished]


def delete_other_parts(storage: Storage, shards: Collection[int]) -> None:
    """Delete all parts but these, with their receipts and annotated copies."""
    prefix = f"{PREDICTIONS_FOLDER}/part-"
    names = [entry.name for entry in storage.list(PREDICTIONS_FOLDER) if entry.name.startswith(prefix)]
    obsolete = [name for name in names if shard_of(name) not in shards]
    if obsolete:  # the copies first: without their parts nobody would find them again
        delete_annotated(storage, {shard_of(name) for name in obsolete})
    for name in obsolete:
        storage.delete(name)


def annotated_copies(storage: Storage) -> Iterator[tuple[str, int]]:
    """Yield the names of the annotated copies, each with the number of its part."""
    for entry in storage.list(ANNOTATED_FOLDER):
        number = Path(entry.name).name.partition("-")[0]
        if number.isdigit():
            yield entry.name, int(number)


def delete_annotated(storage: Storage, shards: Collection[int], kept: Collection[str] = ()) -> None:
    """Delete the annotated copies of some parts, except those named in `kept`."""
    for name in [name for name, shard in annotated_copies(storage) if shard in shards]:
        if name not in kept:
            storage.delete(name)


def write_json(storage: Storage, name: str, values: Mapping[str, Any]) -> None:
    """Write a receipt, which declares its part complete, or the summary, which declares all parts complete."""
    storage.write(name, _dump(values))


def _dump(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n"
