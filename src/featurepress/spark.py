"""Features as a column of a Spark DataFrame.

    from featurepress.spark import featurize
    df = spark.read.format("binaryFile").load("s3://bucket/Test/*/*")
    df = featurize(df, input_column="content", model="mobilenet_v2")

For a collection of images use `featurepress.embed` with the engine `featurepress.engines.Spark`: it can be resumed,
and never embeds an image twice. `featurize` is for images that are already in a DataFrame.
"""

from __future__ import annotations

import atexit
import copy
import functools
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from featurepress.errors import RequestError, SettingError
from featurepress.models import store
from featurepress.runs.verbs import find_backbone
from featurepress.settings import (
    FeatureSettings,
    FeaturizeOptions,
    ImageSettings,
    Settings,
    nearest,
    sorted_options,
)
from featurepress.specs import BackboneSpec
from featurepress.storage import FolderStorage

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

    from featurepress.embedding.values import Answer, Embedder, Value

_IMAGE_FIELDS = ("height", "width", "nChannels", "data")


def featurize(
    df: DataFrame,
    *,
    input_column: str,
    output_column: str = "features",
    error_column: str | None = None,
    as_vector: bool = False,
    **options: Unpack[FeaturizeOptions],
) -> DataFrame:
    """Add the features of the images in a column.

    Parameters
    ----------
    df : DataFrame
        Of a classic session or of Spark Connect. All its columns and rows are kept.
    input_column : str
        Encoded images (``binary``), Spark's ``image`` struct, or paths and urls (``string``). Spark stores pixels
        as blue, green, red; the features are those of the RGB image, as for the file itself.
    output_column : str, default='features'
        Name of the new column: ``array<float>``, null for an image without features.
    error_column : str, optional
        Name of the new column with the reason, null for an image with features; by default
        ``<output_column>_error``.
    as_vector : bool, default=False
        Return a vector of ``pyspark.ml`` instead of an array, for its estimators; null stays null.
    **options
        `model`, `size`, `alpha`, `weights`, `pooling`, `max_pixels`, `max_bytes`, `timeout_seconds`, as for
        `featurepress.embed`; and `precision`, ``float32`` (default) or ``bfloat16``, if the CPUs of the workers
        support it.

    Returns
    -------
    DataFrame
        Spark embeds the images when it needs the rows.

    Raises
    ------
    SettingError
        There is no such column, it has another type, or the name of a new column is taken.

    Notes
    -----
    A worker keeps one model, in a child process. If an image crashes its decoder, the row gets a reason; the job
    does not fail. Spark passes ``spark.sql.execution.arrow.maxRecordsPerBatch`` rows (10,000) at once: set it to
    some hundreds for photographs.
    """
    from pyspark.sql.types import ArrayType, FloatType, StringType

    error_column = error_column or f"{output_column}_error"
    _require_columns(df, input_column, (output_column, error_column))
    precision = options.get("precision", "float32")
    if precision not in ("float32", "bfloat16"):
        raise SettingError(f"The 'precision' of featurize must be 'float32' or 'bfloat16'. Got {precision!r}.")
    settings = Settings(**sorted_options({"features": FeatureSettings, "images": ImageSettings}, options))
    backbone = find_backbone(settings)
    embedder = (backbone, precision, settings.images, _send(df.sparkSession, backbone))
    schema = copy.deepcopy(df.schema).add(output_column, ArrayType(FloatType())).add(error_column, StringType())
    columns = (input_column, output_column, error_column)
    result = df.mapInArrow(_mapper(embedder, columns), schema)
    return _with_vectors(result, output_column) if as_vector else result


def _require_columns(df: Any, input_column: str, added: Sequence[str]) -> None:
    """Raise SettingError unless a DataFrame has the input, of a type for images, and not the new columns."""
    types = {field.name: field.dataType for field in df.schema.fields}
    if input_column not in types:
        raise SettingError(f"The DataFrame has no column '{input_column}'{nearest(input_column, list(types))}")
    kind = types[input_column]
    is_image = set(_IMAGE_FIELDS) <= set(getattr(kind, "names", None) or ())
    if kind.simpleString() not in ("binary", "string") and not is_image:
        raise SettingError(
            f"The column '{input_column}' must hold binary, string, or Spark's image struct. "
            f"Got {kind.simpleString()}."
        )
    for name in added:
        if name in types:
            raise SettingError(
                f"The DataFrame already has a column '{name}'. Choose another name for the new column."
            )


# -- sending the model --------------------------------------------------------------------------------------


def _send(session: Any, backbone: BackboneSpec) -> str:
    """Send the model to the workers as a file of Spark; return its name, or "" if every worker has it."""
    key = backbone.file
    if (store.BUNDLED / key).is_file():
        return ""
    archive = _archive(key)
    try:
        if _is_classic(session):
            session.sparkContext.addFile(str(archive))
        else:
            session.addArtifacts(str(archive), file=True)
    except Exception as error:
        if "already" not in str(error):  # the same content, by its name
            raise RequestError(f"The model cannot be sent to the workers: {str(error)[:300]}") from error
    return archive.name


@functools.cache
def _archive(key: str) -> Path:
    """Pack a model, in a folder that is deleted at the end of this process: Spark reads it for each new worker."""
    folder = Path(tempfile.mkdtemp(prefix="featurepress-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    store.put_into(FolderStorage(str(folder / "model")), key)
    return Path(shutil.make_archive(str(folder / f"featurepress-{key}"), "tar", folder / "model"))


def _is_classic(session: Any) -> bool:
    try:
        return session.sparkContext is not None
    except AttributeError:
        return False


def _fetched(archive: str, key: str) -> None:
    """Unpack the model from Spark's file into the store of this machine."""
    from pyspark import SparkFiles

    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(SparkFiles.get(archive), folder, filter="data")
        store.take_from(FolderStorage(folder), key)


# -- on the workers ------------------------------------------------------------------------------------------


def _mapper(embedder: tuple[Any, ...], columns: tuple[str, str, str]) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """Return the function that Spark runs on the batches of a task; Spark pickles it by value."""

    def run(batches: Iterator[Any]) -> Iterator[Any]:
        try:
            from featurepress.spark import featurize_batch
        except ImportError as error:
            raise RuntimeError(f"The worker {socket.gethostname()} cannot import featurepress: {error}") from None
        for batch in batches:
            yield featurize_batch(batch, embedder, columns)

    return run


def featurize_batch(
    batch: pa.RecordBatch, embedder: tuple[Any, ...], columns: tuple[str, str, str]
) -> pa.RecordBatch:
    """Add the two columns to a record batch; runs on a worker."""
    import pyarrow as pa

    values = _values(batch.column(batch.schema.get_field_index(columns[0])))
    answers = _embedder(*embedder).embed(values)
    features = pa.array([_numbers(answer) for answer in answers], pa.list_(pa.float32()))
    reasons = pa.array([reason for _, reason in answers], pa.string())
    return pa.RecordBatch.from_arrays([*batch.columns, features, reasons], [*batch.schema.names, *columns[1:]])


def _values(column: pa.Array) -> list[Value]:
    from featurepress.embedding.values import Raw

    values = column.to_pylist()
    return [
        Raw(*(value[name] for name in _IMAGE_FIELDS))
        if isinstance(value, dict) and value["data"] is not None
        else (None if isinstance(value, dict) else value)
        for value in values
    ]


def _numbers(answer: Answer) -> Any:
    import numpy as np

    return None if answer[0] is None else np.frombuffer(answer[0], np.float32)


@functools.lru_cache(maxsize=1)
def _embedder(backbone: BackboneSpec, precision: str, limits: Any, archive: str) -> Embedder:
    """Return the embedder of this worker process, with a model that stays loaded."""
    from featurepress.embedding.values import Embedder

    if archive:
        _fetched(archive, backbone.file)
    return Embedder(backbone, precision, limits)


def _with_vectors(df: Any, column: str) -> Any:
    """Turn an array column into a column of dense vectors of pyspark.ml."""
    from pyspark.ml.functions import array_to_vector
    from pyspark.sql import functions

    values = functions.col(column)
    vector = functions.when(values.isNotNull(), array_to_vector(functions.coalesce(values, functions.array())))
    return df.withColumn(column, vector)
