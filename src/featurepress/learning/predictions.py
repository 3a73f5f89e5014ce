"""What `predict` writes below its destination, in the order in which it appears.

    predictions/request.json          which model, which features, which settings; created only if absent
    predictions/model/                the model, file by file: workers read it there
    predictions/part-00000000.parquet the answers for a part of the features (or .csv), row for row
    predictions/part-00000000.json    its receipt: of which features it was made, and how often which label is in it
    predictions/summary.json          everything is there: the receipts added up
    annotated/00000000-00000-name.jpg the first picture of the first part, with its regions drawn in, if asked

A part and its receipt depend on nothing but the model, the settings and the part of the features. So any number of
attempts write the same, and one whose receipt names the features as they stand need not be made again.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurepress.errors import PlanMismatchError, StoppedError
from featurepress.features.feature_set import FeatureSet
from featurepress.learning.model import TrainedModel, open_model
from featurepress.ledger.names import (
    ANNOTATED_FOLDER,
    PREDICTIONS_FOLDER,
    PREDICTIONS_MODEL,
    PREDICTIONS_REQUEST,
    PREDICTIONS_SUMMARY,
    TRAINED_MODEL,
    is_prediction,
    prediction_name,
    shard_of,
)
from featurepress.storage import Storage, map_concurrently, open_storage, reporting_damage

if TYPE_CHECKING:
    import pyarrow as pa

UNKNOWN = "unknown"


class Predictions:
    """The predictions at a destination, as they lie there.

    Attributes
    ----------
    location : str
        Where they lie; the files are below ``predictions/`` there.
    features : FeatureSet
        What they were made of.
    summary : dict
        ``rows``, ``pictures``, ``labels`` (how often each was told), ``unknown``, ``unread`` (pictures that could
        not be read again for their tiles), ``failed``, the ``model`` and the ``features`` they are of, and
        ``versions``.
    seconds : float
        What the call that gave this took.
    images_per_second : float
        Pictures that were embedded in that call, a second of it; 0.0 if none were.
    """

    def __init__(self, storage: Storage, features: FeatureSet, summary: Mapping[str, Any]) -> None:
        self._storage, self.features, self.summary = storage, features, dict(summary)
        self.seconds = self.images_per_second = 0.0

    def __repr__(self) -> str:
        return f"<Predictions '{self.location}': {len(self)} rows, {len(self.counts)} labels>"

    def __len__(self) -> int:
        rows: int = self.summary["rows"]
        return rows

    @property
    def location(self) -> str:
        """Where they lie."""
        return self._storage.location

    @property
    def counts(self) -> dict[str, int]:
        """How often each label was told, the most frequent first; ``unknown`` is one of them."""
        counts = {**self.summary["labels"], **({UNKNOWN: n} if (n := self.summary["unknown"]) else {})}
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def failures(self) -> pa.Table:
        """The pictures that could not be embedded: Arrow table with uri, stage, reason."""
        return self.features.failures

    def to_table(self) -> pa.Table:
        """Give all rows as one Arrow table, in the order of the features."""
        import pyarrow as pa

        tables = [
            read_part(self._storage, entry.name)
            for entry in self._storage.list(PREDICTIONS_FOLDER)
            if is_prediction(entry.name)
        ]
        return pa.concat_tables(tables)


# -- the request ---------------------------------------------------------------------------------------------


def read_request(storage: Storage) -> dict[str, Any] | None:
    """Read which request a destination holds, or give None if it holds none."""
    return _read_json(storage, PREDICTIONS_REQUEST)


def require_same(storage: Storage, request: Mapping[str, Any]) -> bool:
    """Say whether a destination holds the same request already.

    Raises
    ------
    PlanMismatchError
        It holds another one; what makes it another is named.
    """
    standing = read_request(storage)
    if standing is None:
        return False
    mine, theirs = (_flat(one) for one in (request, standing))
    different = [
        f"{name}: {theirs.get(name)!r}, not {mine[name]!r}" for name in mine if mine[name] != theirs.get(name)
    ]
    if different:
        raise PlanMismatchError(
            f"'{storage.location}' holds other predictions; they have {'; '.join(different)}. Choose another --out."
        )
    return True


def create_request(storage: Storage, request: Mapping[str, Any]) -> None:
    """Write the request only if there is none, and make sure that the one that stands is the same."""
    if not storage.create(PREDICTIONS_REQUEST, _dump(request)):
        require_same(storage, request)


def _flat(request: Mapping[str, Any]) -> dict[str, Any]:
    """Give what makes two requests different; where the features lie does not, they may have been moved."""
    return {"model": request["model"]["sha256"], "features": request["features"]["run_id"], **request["settings"]}


# -- the model -----------------------------------------------------------------------------------------------


def bring(storage: Storage, model: TrainedModel) -> None:
    """Lay a model where workers find it, unless it is there.

    Raises
    ------
    AnalysisError, StoppedError
        It was changed since it was opened.
    """
    if storage.stat(f"{PREDICTIONS_MODEL}/{TRAINED_MODEL}") is not None:
        return
    source = open_storage(model.location)
    text = source.read(TRAINED_MODEL) or b"{}"
    if hashlib.sha256(text).hexdigest() != model.sha256:
        raise StoppedError(f"The model '{model.location}' was changed while it was read. Run the same again.")
    for name in json.loads(text)["files"]:
        storage.write(f"{PREDICTIONS_MODEL}/{name}", source.read(name) or b"")
    storage.write(f"{PREDICTIONS_MODEL}/{TRAINED_MODEL}", text)  # last, since it stands for all
    _brought(storage, model.sha256)


def brought(storage: Storage, sha256: str) -> TrainedModel:
    """Give the model that was laid there; kept, since a worker predicts many parts."""
    if sha256 not in _MODELS:
        _MODELS.clear()
        _MODELS[sha256] = _brought(storage, sha256)
    return _MODELS[sha256]


def _brought(storage: Storage, sha256: str) -> TrainedModel:
    model = open_model(f"{storage.location.rstrip('/')}/{PREDICTIONS_MODEL}")
    if model.sha256 != sha256:
        raise StoppedError(
            f"The model in '{model.location}' is not the one of these predictions. Predict into another --out."
        )
    return model


_MODELS: dict[str, TrainedModel] = {}  # by their hash; one at a time


# -- parts ---------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What a part holds, added up while it is written.

    Parameters
    ----------
    part : str
        Hash of the features that it is made of.
    pictures, rows : int
        So many.
    unread : int
        Pictures that could not be read again for what was asked.
    """

    part: str
    pictures: int = 0
    rows: int = 0
    unread: int = 0

    def __post_init__(self) -> None:
        self._labels: collections.Counter[str] = collections.Counter()

    def add(self, labels: list[str], n_pictures: int) -> None:
        """Take the labels of some rows."""
        self._labels.update(labels)
        self.rows += len(labels)
        self.pictures += n_pictures

    def to_json(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Give the receipt; `told` says what else made the part what it is."""
        unknown = self._labels.pop(UNKNOWN, 0)
        labels = dict(sorted(self._labels.items()))
        return {
            "part": self.part,
            **told,
            "pictures": self.pictures,
            "rows": self.rows,
            "labels": labels,
            "unknown": unknown,
            "unread": self.unread,
        }


@contextlib.contextmanager
def writing(storage: Storage, shard: int, schema: pa.Schema, suffix: str) -> Iterator[Callable[[pa.Table], None]]:
    """Give what writes rows into a part, ``parquet`` or ``csv``; it appears when the block ends well."""
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


def read_part(storage: Storage, name: str) -> pa.Table:
    """Read a part, of either format."""
    with reporting_damage(storage, name), storage.open(name) as file:
        if name.endswith(".parquet"):
            import pyarrow.parquet as pq

            with pq.ParquetFile(file, pre_buffer=False) as parquet:
                return parquet.read(use_threads=False).replace_schema_metadata()
        from pyarrow import csv

        lines = csv.ParseOptions(newlines_in_values=True)
        columns = csv.open_csv(file, parse_options=lines).schema.names
        file.seek(0)
        schema = schema_of(columns)
        kinds = csv.ConvertOptions(column_types=schema, strings_can_be_null=False)
        return csv.read_csv(file, parse_options=lines, convert_options=kinds).cast(schema)


def _kind(column: str) -> pa.DataType:
    """Give the type of a column of a part."""
    import pyarrow as pa

    if column.startswith("probability"):
        return pa.float32()
    return pa.int32() if column in ("left", "top", "right", "bottom") else pa.string()


def schema_of(columns: list[str]) -> pa.Schema:
    """Give the Arrow schema of parts with these columns."""
    import pyarrow as pa

    return pa.schema([pa.field(name, _kind(name), nullable=False) for name in columns])


def write_receipt(storage: Storage, shard: int, receipt: Mapping[str, Any]) -> None:
    """Say that a part is written, and of what."""
    storage.write(prediction_name(shard, "json"), _dump(receipt))


def read_receipts(storage: Storage, shards: Sequence[int]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield parts with their receipts, None where there is none."""
    found = map_concurrently(storage, lambda shard: _read_json(storage, prediction_name(shard, "json")), shards)
    return zip(shards, found, strict=True)


def left(storage: Storage, digests: Mapping[int, str]) -> list[int]:
    """Give the parts that are still to be predicted, of those whose features have these hashes.

    Parts with pictures that could not be read are among them: those may be back.
    """
    there = {shard_of(entry.name) for entry in storage.list(PREDICTIONS_FOLDER) if is_prediction(entry.name)}
    done = {  # by number alone: receipts of many labels would fill the memory
        shard
        for shard, receipt in read_receipts(storage, sorted(there & set(digests)))
        if receipt and receipt["part"] == digests[shard] and not receipt.get("unread")
    }
    return [shard for shard in digests if shard not in done]


def forget(storage: Storage, shards: set[int]) -> None:
    """Delete all parts but these, with their receipts and annotated copies."""
    gone = [
        entry.name
        for entry in storage.list(PREDICTIONS_FOLDER)
        if entry.name.startswith(f"{PREDICTIONS_FOLDER}/part-")
    ]
    gone = [name for name in gone if shard_of(name) not in shards]
    if gone:
        forget_annotated(storage, {shard_of(name) for name in gone})  # first: their parts tell of them
    for name in gone:
        storage.delete(name)


def annotated_shards(storage: Storage) -> Iterator[tuple[str, int]]:
    """Yield the annotated copies that are there, each with the number of its part."""
    for entry in storage.list(ANNOTATED_FOLDER):
        number = Path(entry.name).name.partition("-")[0]
        if number.isdigit():
            yield entry.name, int(number)


def forget_annotated(storage: Storage, shards: set[int], kept: Collection[str] = ()) -> None:
    """Delete the annotated copies of the pictures of some parts, but for those to be kept."""
    for name in [name for name, shard in annotated_shards(storage) if shard in shards]:
        if name not in kept:
            storage.delete(name)


# -- JSON ----------------------------------------------------------------------------------------------------


def read_summary(storage: Storage) -> dict[str, Any] | None:
    """Read the summary of complete predictions, or give None if there is none."""
    return _read_json(storage, PREDICTIONS_SUMMARY)


def write_summary(storage: Storage, summary: Mapping[str, Any]) -> None:
    """Say that the predictions are complete."""
    storage.write(PREDICTIONS_SUMMARY, _dump(summary))


def _read_json(storage: Storage, name: str) -> dict[str, Any] | None:
    data = storage.read(name)
    with reporting_damage(storage, name):
        return None if data is None else json.loads(data)


def _dump(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n"
