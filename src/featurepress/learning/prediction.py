"""Predict labels with a trained model, from pictures or from a feature set.

From pictures it is an embed with the model's own backbone, into the destination, and then a task over the parts;
from a feature set it is the task alone. `learning.predictions` defines what is written.
"""

from __future__ import annotations

import contextlib
import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from featurepress import ledger
from featurepress._version import __version__
from featurepress.engines import Engine
from featurepress.errors import (
    AnalysisError,
    DestinationError,
    PlanMismatchError,
    SettingError,
    StoppedError,
    StorageError,
    TooManyFailuresError,
)
from featurepress.features.feature_set import FeatureSet, open_features
from featurepress.learning import predictions
from featurepress.learning.model import TrainedModel, open_model
from featurepress.learning.predictions import UNKNOWN, Predictions, Tally
from featurepress.learning.regions import BACKGROUND, RegionPart, pooling_of, require_apart, require_regions
from featurepress.learning.runner import Runner
from featurepress.ledger import Plan
from featurepress.ledger.destination import require_free_destination
from featurepress.ledger.names import PREDICTIONS_SUMMARY, part_name, shard_of
from featurepress.process import send_message
from featurepress.progress import OnProgress, show_progress, step
from featurepress.runs.verbs import Request, expand_time, prepare, run_plan
from featurepress.settings import IMAGE_SETTINGS, PredictionSettings, PredictOptions, Settings
from featurepress.sources import Locations
from featurepress.storage import Storage, open_storage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

DEFAULT_OUT = "predictions{time}"
IMAGES_PER_PART_OF_TILES = 8
# As many numbers in as many parts are predicted before a worker process has started.
_NUMBERS_AT_ONCE, _PARTS_AT_ONCE = 16_000_000, 64


def predict(
    model: TrainedModel | str | Path,
    sources: FeatureSet | Locations,
    out: str | Path = DEFAULT_OUT,
    *,
    engine: Engine | None = None,
    progress: bool | OnProgress = True,
    **options: Unpack[PredictOptions],
) -> Predictions:
    """Predict the labels of pictures, or of the rows of a feature set.

    The same call again finishes what was interrupted. After an update of the features it predicts the parts that
    have changed.

    Parameters
    ----------
    model : TrainedModel, str or path
        The model, or where it lies.
    sources : FeatureSet, str, path, or sequence of them
        A complete feature set, or where one lies; or pictures, as for `featurepress.embed`: these are embedded into
        `out` first, with the model's own backbone.
    out : str or path
        The destination; ``{time}`` in it becomes the date and time.
    engine : Engine, optional
        Where to run; by default worker processes on this machine.
    progress : bool or callable
        True shows one line in a terminal or notebook. A callable gets a `Progress` several times a second.
    **options
        `top_k` (1), `threshold`, `format` (``parquet`` or ``csv``); or `regions`, `tiles` and `annotate`, for
        several labels a picture, with boxes. Of pictures also what `embed` knows of listing and reading them,
        `images_per_part`, `max_failures`, `workers` and `memory_bytes`; of features `workers`.

    Returns
    -------
    Predictions
        All of them, complete.

    Raises
    ------
    AnalysisError
        There is no model, it was changed since it was trained, or the feature set is empty.
    PlanMismatchError
        The features, or the backbone that is found here under the model's name, are of another feature space; or
        `out` holds other predictions.
    RequestError
        The request cannot be served; nothing was written.
    StoppedError
        It stopped; the same call finishes it.
    TooManyFailuresError
        All is written, but more pictures failed than `max_failures` allows; its `features` are the `Predictions`.

    Examples
    --------
    >>> import featurepress as fp
    >>> predictions = fp.predict("fruit-model/", "photos/", "predictions/", top_k=3)  # doctest: +SKIP
    >>> predictions.to_table().to_pandas()  # doctest: +SKIP
    """
    with show_progress(progress) as on_progress:
        return _predict(model, sources, out, engine=engine, on_progress=on_progress, options=options)


def _predict(
    model: TrainedModel | str | Path,
    sources: FeatureSet | Locations,
    out: str | Path,
    *,
    engine: Engine | None,
    on_progress: OnProgress,
    options: Mapping[str, Any],
) -> Predictions:
    started = time.perf_counter()
    asked, others = _sorted(options)
    model = model if isinstance(model, TrainedModel) else open_model(model)
    if asked.top_k > len(model.labels):
        raise SettingError(
            f"The 'top_k' setting (--top-k) can be {len(model.labels)} at most, of so many labels the model knows. "
            f"Got {asked.top_k}."
        )
    pooling = pooling_of(asked, model)
    storage = open_storage(expand_time(str(out)))
    trouble: TooManyFailuresError | None = None
    with _lying_somewhere(model) as model:
        features = feature_set(sources)
        if features is None:
            assert not isinstance(sources, FeatureSet)
            if asked.tiles:  # a picture of which costs so much that small collections, too, keep all cores busy
                others = {"images_per_part": IMAGES_PER_PART_OF_TILES, **others}
            others = {**others, "pooling": pooling}
            features, trouble = _embedded(model, sources, storage, asked, others, engine, on_progress)
        else:
            _require_predictable(model, features, storage, asked, others)
        predictions = _predict_features(model, features, storage, asked, engine, on_progress, others.get("workers"))
    predictions.seconds = time.perf_counter() - started
    if features.summary is not None:
        predictions.images_per_second = features.summary.images_per_second
    if trouble is not None:
        raise TooManyFailuresError(str(trouble), predictions)
    return predictions


def _sorted(options: Mapping[str, Any]) -> tuple[PredictionSettings, dict[str, Any]]:
    """Sort the options into those of the prediction, and those of an embed."""
    own = {item.name for item in fields(PredictionSettings)}
    others = {name: value for name, value in options.items() if name in IMAGE_SETTINGS}
    asked = PredictionSettings.from_options(
        **{name: value for name, value in options.items() if name in own or name not in others}
    )
    Settings.from_options(**others)  # checks them
    return asked, others


@contextlib.contextmanager
def _lying_somewhere(model: TrainedModel) -> Iterator[TrainedModel]:
    """Give a model with its files, from which it can be copied; one that was never saved gets them for a while."""
    if model.location:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="featurepress-") as folder:
        yield model.save(Path(folder) / "model")


# -- what is predicted ---------------------------------------------------------------------------------------


def feature_set(sources: FeatureSet | Locations) -> FeatureSet | None:
    """Give the feature set that is meant, which must be complete, or None if it is pictures."""
    if isinstance(sources, FeatureSet):
        return open_features(sources.location)
    places: list[Any] = [sources]
    if isinstance(sources, Sequence) and not isinstance(sources, str):
        places = list(sources)
    if len(places) != 1 or not isinstance(places[0], str | Path):
        return None
    try:
        plan = ledger.read_plan(open_storage(str(places[0])))
    except (DestinationError, StorageError):  # no place where a feature set can be, such as a web address
        return None
    return None if plan is None else open_features(places[0])


def _require_predictable(
    model: TrainedModel,
    features: FeatureSet,
    storage: Storage,
    asked: PredictionSettings,
    others: Mapping[str, Any],
) -> None:
    """Refuse a feature set, or a destination, of which nothing can come."""
    if wrong := sorted(set(others) - {"workers"}):
        raise SettingError(
            f"'{features.location}' is a feature set, of which no picture is listed or read. Leave out "
            f"{', '.join(wrong)}."
        )
    if asked.regions or asked.tiles:
        require_regions(asked, model, features)
    else:
        model.transform_of(features.plan.backbone, features.location)
    features.require_outside(storage.location)
    if asked.annotate:
        require_apart(storage, features)
    if not len(features):
        raise AnalysisError(f"The feature set '{features.location}' is empty: there is nothing to predict.")
    with _refusing():
        if not predictions.require_same(storage, _request(model, features, asked)):
            if ledger.read_plan(storage) is not None:
                raise DestinationError(
                    f"'{storage.location}' is a feature set. Choose another --out, for the predictions alone."
                )
            require_free_destination(storage)


def _embedded(
    model: TrainedModel,
    sources: Locations,
    storage: Storage,
    asked: PredictionSettings,
    others: Mapping[str, Any],
    engine: Engine | None,
    on_progress: OnProgress,
) -> tuple[FeatureSet, TooManyFailuresError | None]:
    """Embed the pictures into the destination as the model's own were; give also what is to be said in the end."""
    started = time.perf_counter()
    settings = Settings.from_options(**{**model.embed_settings, **others})
    with _refusing():
        standing = ledger.read_generation(storage, 1)
        if standing is not None:  # its request, too, if there is one already
            predictions.require_same(storage, _request(model, FeatureSet(standing, None), asked))
    plan = prepare(Request(sources, storage.location, settings), on_progress)
    known = replace(model.backbone.unprojected, pooling=others["pooling"])
    if differences := known.differences(plan.backbone):
        raise PlanMismatchError(
            f"The model '{model.location}' cannot tell what is embedded here with '{settings.features.model}'; it "
            f"knows features with {'; '.join(differences)}. Make the same model ready, or train another."
        )
    try:
        return run_plan(plan, engine=engine, on_progress=on_progress, started=started), None
    except TooManyFailuresError as error:
        return error.result, error


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Say of a place that cannot be read, when nothing is written yet, that the request is bad."""
    try:
        yield
    except StorageError as error:
        raise DestinationError(f"{str(error).rstrip('.')}. Choose another --out.") from error


def _request(model: TrainedModel, features: FeatureSet, asked: PredictionSettings) -> dict[str, Any]:
    """Say what is predicted: enough to tell whether it would be the same again, also after updates of the set."""
    first = ledger.read_generation(features.plan.storage, 1)
    return {
        "format": 1,
        "model": {"sha256": model.sha256, "location": model.location},
        "features": {"run_id": (first or features.plan).run_id, "location": features.location},
        "settings": asdict(asked),
        "library_version": __version__,
    }


# -- predicting ----------------------------------------------------------------------------------------------


def _predict_features(
    model: TrainedModel,
    features: FeatureSet,
    storage: Storage,
    asked: PredictionSettings,
    engine: Engine | None,
    on_progress: OnProgress,
    workers: int | None,
) -> Predictions:
    """Predict the parts that are left, add up, and say that all is there."""
    _begin(model, features, storage, asked)
    kind = RegionPart if asked.regions or asked.tiles else PredictPart
    task: RegionPart | PredictPart = kind(storage, model.sha256, asked)
    digests = {shard_of(name): digest for name, digest in features.parts.items()}
    left = predictions.left(storage, digests)
    summary = predictions.read_summary(storage)
    if left or summary is None or summary["parts"] != len(digests):
        storage.delete(PREDICTIONS_SUMMARY)
        predictions.forget(storage, set(digests))
        if isinstance(task, RegionPart) and asked.annotate:
            drawn = {shard for _, shard in predictions.annotated_shards(storage)}
            task = replace(task, drawn=frozenset(drawn.intersection(left)))
        _run(task, features, left, engine, on_progress, workers)
        summary = _sum_up(model, features, task, digests)
        predictions.write_summary(storage, summary)
    return Predictions(storage, features, summary)


def _run(
    task: RegionPart | PredictPart,
    features: FeatureSet,
    left: Sequence[int],
    engine: Engine | None,
    on_progress: OnProgress,
    workers: int | None,
) -> None:
    """Predict some parts, in this process where that takes no longer than to start others."""
    n_numbers = len(features) * features.n_features
    is_little = n_numbers <= _NUMBERS_AT_ONCE and len(left) <= _PARTS_AT_ONCE
    if engine is None and workers is None and isinstance(task, PredictPart) and is_little:
        for i, shard in enumerate(left):
            on_progress(step("predicting", 4 * n_numbers * i // len(left), 4 * n_numbers))
            task(features.plan, shard)
        return
    runner = Runner(features, engine, on_progress, preload=__name__, workers=workers)
    try:
        for _ in runner.run(features.plan, "predicting", task, left):
            pass
    finally:
        runner.close()


def _begin(model: TrainedModel, features: FeatureSet, storage: Storage, asked: PredictionSettings) -> None:
    """Write the request and the model, unless they are there."""
    own = features.location == storage.location  # a place that was written to already
    try:
        if not own:
            storage.prepare()
        predictions.create_request(storage, _request(model, features, asked))
        predictions.bring(storage, model)
    except StorageError as error:
        if own:
            raise
        raise DestinationError(f"{str(error).rstrip('.')}. Choose another --out.") from error


def _sum_up(
    model: TrainedModel, features: FeatureSet, task: RegionPart | PredictPart, digests: Mapping[int, str]
) -> dict[str, Any]:
    """Give the summary, once every part of the features has its predictions."""
    labels: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    now = {shard_of(name): digest for name, digest in FeatureSet(features.plan, None).parts.items()}
    for shard, receipt in predictions.read_receipts(task.storage, list(digests)):
        if receipt is None or receipt["part"] != digests[shard] or now != digests:
            raise StoppedError(
                f"The feature set '{features.location}' has changed while it was predicted. Run the same again; if "
                f"it is being updated, after: featurepress resume {shlex.quote(features.location)}"
            )
        labels.update(receipt["labels"])
        totals.update({name: receipt.get(name, 0) for name in _ADDED_UP})
    return {
        "status": "complete",
        "parts": len(digests),
        **{name: totals[name] for name in _ADDED_UP},
        "labels": dict(sorted(labels.items())),
        "failed": (features.manifest or {}).get("failed", features.failures.num_rows),
        **{name: value for name, value in _request(model, features, task.asked).items() if name != "format"},
        "knows_background": BACKGROUND in model.labels,
        "versions": {name: version(name) for name in ("featurepress", "numpy", "pyarrow")},
    }


_ADDED_UP = ("pictures", "rows", "unknown", "unread")


@dataclass(frozen=True)
class PredictPart:
    """The task that predicts a part of a feature set.

    Parameters
    ----------
    storage : Storage
        The destination, in which the model lies already.
    model : str
        Its sha256.
    asked : PredictionSettings
        What is told.
    """

    storage: Storage
    model: str
    asked: PredictionSettings

    def __call__(self, plan: Plan, shard: int) -> int:
        """Predict part number `shard` of the feature set of `plan`; give its number of rows."""
        features, name = FeatureSet(plan, None), part_name(shard)
        model = predictions.brought(self.storage, self.model)
        prepare = model.transform_of(plan.backbone, features.location)
        # Of features that are replaced after this, the rows may be newer than the receipt says: never older.
        tally = Tally(features.part_digest(name))
        schema = predictions.schema_of(self._columns)
        with predictions.writing(self.storage, shard, schema, self.asked.format) as write:
            for X, batch in features.part_batches(name, ["uri"], _BATCH_ROWS):
                _require_numbers(X, batch.column("uri"), features.location)
                table = self._told(model.labels, model.classifier.predict_proba(prepare(X)), batch.column("uri"))
                write(table.cast(schema))
                tally.add(table.column("label").to_pylist(), len(batch))
                send_message(("rows", len(batch)))
        predictions.write_receipt(self.storage, shard, tally.to_json({"model": self.model}))
        return tally.rows

    @property
    def _columns(self) -> list[str]:
        columns = ["uri", "label", "probability"]
        if self._tells_more:
            columns += [f"{what}_{i + 1}" for i in range(self.asked.top_k) for what in ("label", "probability")]
        return columns

    @property
    def _tells_more(self) -> bool:
        return self.asked.top_k > 1 or self.asked.threshold is not None

    def _told(self, labels: npt.NDArray[np.str_], shares: npt.NDArray[np.float64], uris: pa.Array) -> pa.Table:
        """Give the rows of some pictures, from the probabilities of all labels: array (n_samples, n_classes)."""
        import numpy as np
        import pyarrow as pa

        order = np.argsort(-shares, axis=1, kind="stable")[:, : self.asked.top_k]
        ranked, heights = labels[order], np.take_along_axis(shares, order, axis=1).astype(np.float32)
        first = ranked[:, 0].astype(object)
        if self.asked.threshold is not None:
            first[heights[:, 0] < self.asked.threshold] = UNKNOWN  # as it is written
        columns: list[Any] = [uris, pa.array(first.tolist(), pa.string()), heights[:, 0]]
        if self._tells_more:
            for i in range(self.asked.top_k):
                columns += [pa.array(ranked[:, i].tolist(), pa.string()), heights[:, i]]
        return pa.table(columns, names=self._columns)


_BATCH_ROWS = 1024


def _require_numbers(X: npt.NDArray[Any], uris: pa.Array, location: str) -> None:
    """Refuse features that are no numbers; featurepress itself writes none."""
    import numpy as np

    good = np.isfinite(X).all(axis=1)
    if not good.all():
        uri = uris[int(np.flatnonzero(~good)[0])].as_py()
        raise AnalysisError(
            f"The features of '{uri}' in '{location}' are no numbers (NaN or infinite). Embed that set again."
        )
