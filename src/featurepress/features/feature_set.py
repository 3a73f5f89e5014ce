"""Open, check and iterate the features that a run has written."""

from __future__ import annotations

import functools
import hashlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurepress import ledger
from featurepress.errors import FeatureSetError, IncompleteError, PlanMismatchError, RequestError, SettingError
from featurepress.features.notebook import N_ROWS, to_html
from featurepress.features.parts import matrix_of, open_parquet, read_footer
from featurepress.ledger import Plan
from featurepress.ledger.names import FAILURES_FOLDER, FEATURES_FOLDER
from featurepress.ledger.schemas import failure_schema, part_schema
from featurepress.storage import open_storage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import pyarrow as pa

    from featurepress.specs import Features

_STREAM_ROWS = 1024  # of a batch of the Arrow stream: 46 MB with 11,520 features


@dataclass(frozen=True)
class FeatureBatch:
    """A batch of rows of a feature set.

    Attributes
    ----------
    X : array (n_samples, n_features) float32
        The features.
    y : array (n_samples,) of str, or None
        The labels, or None if the set has none.
    uris : array (n_samples,) of str
        The uri of each image, as the source spells it.
    """

    X: Features
    y: npt.NDArray[np.str_] | None
    uris: npt.NDArray[np.str_]


class FeatureSet:
    """The features at a destination; the rows stay on disk until they are read.

    `open_features` opens one. Libraries that speak Arrow read it directly: ``polars.DataFrame(features)``,
    ``pyarrow.table(features)``, or ``SELECT * FROM features`` in DuckDB.

    Parameters
    ----------
    plan : Plan
        The plan at the destination.
    manifest : dict or None
        The manifest; None while the run has not finished.
    summary : object, optional
        Result of the run that has just written this set: a `featurepress.progress.Summary`.
    """

    def __init__(self, plan: Plan, manifest: dict[str, Any] | None, summary: Any = None) -> None:
        self.plan = plan
        self.manifest = manifest
        self.summary = summary

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else "incomplete"
        return (
            f"<FeatureSet '{self.location}': {len(self)} x {self.n_features}, {self.plan.backbone.model}, {state}>"
        )

    def _repr_html_(self) -> str:
        """Return the set as HTML for notebooks: facts, and the first rows with a few of their features."""
        backbone = self.plan.backbone
        facts = {
            "location": self.location,
            "status": "complete" if self.is_complete else "incomplete",
            "rows": len(self),
            "failures": self.failures.num_rows,
            "features": f"{self.n_features:,} float32 per row",
            "model": f"{backbone.model}, {backbone.pooling}",
            "fields": ", ".join(self.schema.names),
            "fingerprint": self.fingerprint,
        }
        first = next(record_batches(self, N_ROWS, self.schema.names), None)
        rows = [] if first is None else first.slice(0, N_ROWS).to_pylist()
        return to_html("FeatureSet", facts, [{**row, "features": _preview(row["features"])} for row in rows])

    @property
    def location(self) -> str:
        """The destination: a folder or the address of one in a bucket."""
        return self.plan.storage.location

    @property
    def is_complete(self) -> bool:
        """Whether the run has finished."""
        return self.manifest is not None and self.manifest.get("status") == "complete"

    @property
    def fingerprint(self) -> str:
        """Identifier of the feature space. Sets with different fingerprints cannot be compared."""
        return self.plan.backbone.fingerprint

    def require_comparable(self, other: FeatureSet) -> None:
        """Check that the features of two sets can be compared, joined or searched together.

        Raises
        ------
        PlanMismatchError
            The feature spaces differ; the message lists the fields that differ.
        """
        if differences := self.plan.backbone.differences(other.plan.backbone):
            raise PlanMismatchError(
                f"The features of '{self.location}' and '{other.location}' cannot be compared; the first has "
                f"{'; '.join(differences)}. Embed both with the same model."
            )

    @property
    def n_features(self) -> int:
        """Number of features per image."""
        return self.plan.backbone.n_features

    def __len__(self) -> int:
        return sum(n_rows for n_rows, _ in self._footers.values())

    @property
    def parts(self) -> dict[str, str]:
        """Name of each part -> a hash that changes whenever the part is rewritten, in order."""
        return {name: digest for name, (_, digest) in self._footers.items()}

    @functools.cached_property
    def _footers(self) -> dict[str, tuple[int, str]]:
        """Name of each part -> its number of rows and its hash, in order."""
        storage = self.plan.storage
        return {entry.name: read_footer(storage, entry.name) for entry in storage.list(FEATURES_FOLDER)}

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        return sum(entry.size for entry in self.plan.storage.list(FEATURES_FOLDER))

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows: uri, label and other fields, width, height, sha256, features."""
        return part_schema(self.plan.field_names, self.n_features)

    @property
    def uris(self) -> npt.NDArray[np.str_]:
        """The uri of each image, as the source spells it: array (n_samples,) of str."""
        return self._column("uri")

    @property
    def labels(self) -> npt.NDArray[np.str_] | None:
        """The labels: array (n_samples,) of str, "" for an image without one; None for a set without labels."""
        return self._column("label") if "label" in self.plan.field_names else None

    def _column(self, name: str) -> npt.NDArray[np.str_]:
        return _texts(self.to_table([name]).column(name))

    def to_table(self, columns: list[str] | None = None) -> pa.Table:
        """Return all rows as one Arrow table.

        Parameters
        ----------
        columns : list of str, optional
            Columns to read; all by default, which takes at least ``4 * n_features`` bytes of memory per row.
        """
        import pyarrow as pa

        names = self.schema.names if columns is None else columns
        if unknown := [name for name in names if name not in self.schema.names]:
            raise SettingError(f"The columns are {', '.join(self.schema.names)}. Got {unknown[0]!r}.")
        tables = [pa.schema([self.schema.field(name) for name in names]).empty_table()]
        for name in self.parts:
            with open_parquet(self.plan.storage, name) as parquet:
                tables.append(parquet.read(names, use_threads=False).replace_schema_metadata())
        return pa.concat_tables(tables)

    def to_pandas(self, columns: list[str] | None = None) -> pd.DataFrame:
        """Return all rows as a pandas DataFrame; the features of a row are an array (n_features,) float32.

        Parameters
        ----------
        columns : list of str, optional
            Columns to read; all by default.

        Raises
        ------
        RequestError
            pandas is not installed.
        """
        return as_pandas(self.to_table(columns))

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return the rows as a PyCapsule stream of Arrow, with bounded memory.

        Parameters
        ----------
        requested_schema : PyCapsule, optional
            A schema to cast to, from a library that asks for one.
        """
        import pyarrow as pa

        schema = self.schema
        batches = (batch.cast(schema) for batch in record_batches(self, _STREAM_ROWS, schema.names))
        return pa.RecordBatchReader.from_batches(schema, batches).__arrow_c_stream__(requested_schema)

    def to_numpy(self) -> Features:
        """Return all features, read part by part: array (n_samples, n_features) float32."""
        import numpy as np

        features = np.empty((len(self), self.n_features), np.float32)
        start = 0
        for record_batch in record_batches(self, 8192, ["features"]):
            rows = matrix_of(record_batch)
            features[start : start + len(rows)] = rows
            start += len(rows)
        return features

    def batches(self, batch_size: int = 8192) -> Iterator[FeatureBatch]:
        """Yield all rows in order, with bounded memory.

        Parameters
        ----------
        batch_size : int
            Maximum rows of a batch; a batch never holds rows of two parts.

        Yields
        ------
        FeatureBatch
            X, y and uris.
        """
        if batch_size < 1:
            raise SettingError(f"The 'batch_size' setting must be an integer of at least 1. Got {batch_size!r}.")
        has_labels = "label" in self.plan.field_names
        columns = ["uri", *(["label"] if has_labels else []), "features"]
        for record_batch in record_batches(self, batch_size, columns):
            y = _texts(record_batch.column("label")) if has_labels else None
            yield FeatureBatch(matrix_of(record_batch), y, _texts(record_batch.column("uri")))

    def to_spark(self, session: Any) -> Any:
        """Return the rows as a Spark DataFrame, read by Spark itself; the features are ``array<float>``.

        Parameters
        ----------
        session : SparkSession
            It reads the files itself, with its own credentials. A set in S3 is read through ``s3a://``; on EMR,
            which has its own file system, through ``s3://``.
        """
        location = self.location
        if location.startswith("s3://") and not _reads_s3(session):
            location = f"s3a{location[2:]}"
        elif location.startswith("az://"):
            account, container, *rest = location[5:].split("/", 2)
            location = "/".join([f"abfss://{container}@{account}.dfs.core.windows.net", *rest])
        elif "://" not in location:
            location = Path(location).as_uri()
        return session.read.schema(self._spark_schema()).parquet(f"{location}/{FEATURES_FOLDER}")

    def _spark_schema(self) -> str:
        """Return the columns as a Spark schema, so that Spark does not open a part to infer it."""
        words = {"string": "string", "int32": "int"}
        kinds = ((field.name, words.get(str(field.type), "array<float>")) for field in self.schema)
        return ", ".join(f"`{name}` {kind}" for name, kind in kinds)

    def to_ray(self) -> Any:
        """Return the rows as a Ray dataset; Ray's workers read the parts through Arrow's file systems."""
        import ray.data

        location = self.location.replace("gs://", "gcs://", 1)
        return ray.data.read_parquet(f"{location}/{FEATURES_FOLDER}", file_extensions=["parquet"])

    @property
    def failures(self) -> pa.Table:
        """The images that could not be embedded: Arrow table with uri, stage, reason."""
        import pyarrow as pa

        tables = [failure_schema().empty_table()]
        for entry in self.plan.storage.list(FAILURES_FOLDER):
            with open_parquet(self.plan.storage, entry.name) as parquet:
                tables.append(parquet.read(use_threads=False))
        return pa.concat_tables(tables)


def open_features(location: str | Path, *, allow_incomplete: bool = False) -> FeatureSet:
    """Open a feature set of any kind; see `featurepress.open_features`."""
    storage = open_storage(str(location))
    plan = ledger.read_plan(storage)
    if plan is None:
        raise FeatureSetError(
            f"'{location}' is not a feature set: there is no {ledger.PLAN} in it. "
            "Name the folder that was --out of an embed."
        )
    manifest = ledger.read_manifest(storage)
    features = FeatureSet(plan, manifest)
    if not features.is_complete and not allow_incomplete:
        state = "being updated" if manifest else "not complete"
        verb = f"featurepress resume {shlex.quote(str(location))}"
        if plan.backbone.projection:
            verb = "the same featurepress reduce"
        raise IncompleteError(
            f"The feature set '{location}' is {state}. Finish it with: {verb} "
            "(or open it with allow_incomplete=True)."
        )
    return features


def embedded_set(features: FeatureSet) -> FeatureSet:
    """Return the set whose rows were embedded: itself, or the one that a reduced set was made from."""
    origin = features.plan.certificate.get("reduced")
    return features if origin is None else open_features(origin["features"], allow_incomplete=True)


def record_batches(
    features: FeatureSet, batch_size: int, columns: list[str], rows: range | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield rows of a set in order as Arrow record batches, with bounded memory.

    A batch has at most `batch_size` rows and never those of two parts. `columns` are names of its `schema`; `rows`
    are numbers of rows, all by default.
    """
    rows = range(len(features)) if rows is None else rows
    first = 0
    for name, (n_rows, _) in features._footers.items():
        own = range(max(rows.start, first), min(rows.stop, first + n_rows))
        if own:
            with open_parquet(features.plan.storage, name) as parquet:
                row = first
                for record_batch in parquet.iter_batches(batch_size, columns=columns, use_threads=False):
                    low, high = max(own.start - row, 0), min(own.stop - row, len(record_batch))
                    if low < high:
                        yield record_batch.slice(low, high - low)
                    row += len(record_batch)
        first += n_rows


def parts_hash(features: FeatureSet) -> str:
    """Return a hash that changes whenever a part of a set is added, removed or rewritten."""
    return hashlib.sha256(json.dumps(features.parts).encode()).hexdigest()


def as_pandas(table: pa.Table) -> pd.DataFrame:
    """Return a table as a pandas DataFrame; RequestError if pandas is not installed."""
    try:
        return table.to_pandas()
    except ImportError as error:
        raise RequestError("to_pandas needs pandas. Install it with: pip install pandas") from error


def _reads_s3(session: Any) -> bool:
    """Whether a Spark session has a file system for ``s3://``, as on EMR."""
    return bool(session.conf.get("spark.hadoop.fs.s3.impl", "")) or "emr" in session.version


def _preview(features: list[float]) -> str:
    """Return the first features of a row as text."""
    return ", ".join(f"{value:.3g}" for value in features[:4]) + (", …" if len(features) > 4 else "")


def _texts(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.str_]:
    """Return a column as an array of str, "" for a missing text."""
    import numpy as np

    return np.array([text or "" for text in column.to_pylist()], np.str_)
