"""Predict labels with a trained model, from images or from a feature set.

Images are first embedded into the destination with the model's own backbone. Then a task of `learning.tasks` or
`learning.regions` predicts each part of the features. `learning.predictions` defines the files.
"""

from __future__ import annotations

import contextlib
import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack

from featurepress import ledger
from featurepress._version import __version__
from featurepress.analysis.boxes import BACKGROUND
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
from featurepress.learning.arguments import open_destination, require_outside
from featurepress.learning.model import TrainedModel, as_model
from featurepress.learning.predictions import Predictions
from featurepress.learning.regions import RegionTask, pooling_of, require_apart, require_regions
from featurepress.learning.runner import Runner
from featurepress.learning.tasks import LabelTask, PredictionTask
from featurepress.ledger import Plan
from featurepress.ledger.destination import destination_errors, require_free_destination
from featurepress.ledger.names import PREDICTIONS_SUMMARY, shard_of
from featurepress.ledger.plan import read_json
from featurepress.progress import OnProgress, show_progress, step
from featurepress.runs.verbs import Request, prepare, run_plan
from featurepress.settings import IMAGE_SETTINGS, PredictionSettings, PredictOptions, Settings
from featurepress.sources import Locations
from featurepress.storage import Storage, open_storage

DEFAULT_OUT = "predictions{time}"
IMAGES_PER_PART_OF_TILES = 8
# Up to this size, this process finishes before a worker process has started.
_MAX_NUMBERS_HERE, _MAX_PARTS_HERE = 16_000_000, 64
_SUMMED = ("images", "rows", "unknown", "unread")


def predict(
    model: TrainedModel | str | Path,
    sources: FeatureSet | Locations,
    out: str | Path = DEFAULT_OUT,
    *,
    engine: Engine | None = None,
    progress: bool | OnProgress = True,
    **options: Unpack[PredictOptions],
) -> Predictions:
    """Predict the labels of images, or of the rows of a feature set.

    The same call again finishes what was interrupted. After an update of the features, it predicts only the parts
    that changed.

    Parameters
    ----------
    model : TrainedModel, str or path
        The model, or its location.
    sources : FeatureSet, str, path, or sequence of them
        A complete feature set, or its location. Or images, as for `featurepress.embed`: they are first embedded
        into `out`, with the model's own backbone.
    out : str or path, default='predictions{time}'
        The destination; ``{time}`` becomes the date and time.
    engine : Engine, optional
        Where to run; by default in worker processes on this machine.
    progress : bool or callable
        True shows one line in a terminal or notebook. A callable gets a `Progress` several times a second.
    **options
        `top_k` (1), `threshold`, `file_format` (``parquet`` or ``csv``); or `regions`, `tiles` and `annotate`, for
        several labels per image, with boxes. For images also the settings of `embed` for listing and reading,
        `images_per_part`, `max_failures`, `workers` and `memory_bytes`; for features `workers`.

    Returns
    -------
    Predictions
        The complete predictions.

    Raises
    ------
    AnalysisError
        There is no model, it has changed since it was trained, or the feature set is empty.
    PlanMismatchError
        The features, or the backbone of that name on this machine, are of another feature space; or `out` holds
        other predictions.
    RequestError
        The request cannot be served; nothing was written.
    StoppedError
        The run stopped; the same call finishes it.
    TooManyFailuresError
        Everything is written, but more images failed than `max_failures` allows; its `result` are the
        `Predictions`.

    Examples
    --------
    >>> import featurepress as fp
    >>> predictions = fp.predict("fruit-model/", "photos/", "predictions/", top_k=3)  # doctest: +SKIP
    >>> predictions.to_pandas()  # doctest: +SKIP
    """
    started = time.perf_counter()
    settings, embed_options = _settings(options)
    model = as_model(model)
    if settings.top_k > (n_labels := len(model.labels)):
        raise SettingError(
            f"The 'top_k' setting (--top-k) must be at most {n_labels}, the number of the model's labels. "
            f"Got {settings.top_k}."
        )
    pooling = pooling_of(settings, model)
    storage = open_destination(out)
    failures: TooManyFailuresError | None = None
    with show_progress(progress) as on_progress, _on_disk(model) as model:
        prediction = _Prediction(model, settings, storage, engine, on_progress, embed_options.get("workers"))
        features = _find_feature_set(sources)
        if features is None:
            assert not isinstance(sources, FeatureSet)
            if settings.tiles:  # each image is so much work that small parts keep all cores busy
                embed_options = {"images_per_part": IMAGES_PER_PART_OF_TILES, **embed_options}
            features, failures = prediction.embed(sources, {**embed_options, "pooling": pooling})
        else:
            prediction.require_predictable(features, embed_options)
        result = prediction.run(features)
    result.seconds = time.perf_counter() - started
    if features.summary is not None:
        result.images_per_second = features.summary.images_per_second
    if failures is not None:
        raise TooManyFailuresError(str(failures), result)
    return result


def _settings(options: Mapping[str, Any]) -> tuple[PredictionSettings, dict[str, Any]]:
    """Sort the options into the settings of the prediction and the options of an embed."""
    embed_options = {name: value for name, value in options.items() if name in IMAGE_SETTINGS}
    settings = PredictionSettings.from_options(
        **{name: value for name, value in options.items() if name not in IMAGE_SETTINGS}
    )
    Settings.from_options(**embed_options)  # checks them
    return settings, embed_options


@contextlib.contextmanager
def _on_disk(model: TrainedModel) -> Iterator[TrainedModel]:
    """Yield a model with files that can be copied; a model in memory is saved into a temporary folder."""
    if model.location:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="featurepress-") as folder:
        yield model.save(Path(folder) / "model")


def _find_feature_set(sources: FeatureSet | Locations) -> FeatureSet | None:
    """Return the feature set that the sources name, which must be complete, or None if they name images."""
    if isinstance(sources, FeatureSet):
        return open_features(sources.location)
    locations: list[Any] = [sources]
    if isinstance(sources, Sequence) and not isinstance(sources, str):
        locations = list(sources)
    if len(locations) != 1 or not isinstance(locations[0], str | Path):
        return None
    try:
        plan = ledger.read_plan(open_storage(str(locations[0])))
    except (DestinationError, StorageError):  # cannot hold a feature set, such as a web address
        return None
    return None if plan is None else open_features(locations[0])


@dataclass(frozen=True)
class _Prediction:
    """One call of `predict`."""

    model: TrainedModel
    settings: PredictionSettings
    storage: Storage
    engine: Engine | None
    on_progress: OnProgress
    workers: int | None

    def require_predictable(self, features: FeatureSet, embed_options: Mapping[str, Any]) -> None:
        """Refuse a feature set that the model cannot classify, and a destination that is not free."""
        if wrong := sorted(set(embed_options) - {"workers"}):
            raise SettingError(
                f"'{features.location}' is a feature set: no image of it is listed or read. Leave out "
                f"{', '.join(wrong)}."
            )
        if self.settings.regions or self.settings.tiles:
            require_regions(self.settings, self.model, features)
        else:
            self.model.transform_of(features.plan.backbone, features.location)
        require_outside(features, self.storage)
        if self.settings.annotate:
            require_apart(self.storage, features)
        if not len(features):
            raise AnalysisError(f"The feature set '{features.location}' is empty: there is nothing to predict.")
        with destination_errors():
            if not predictions.require_same(self.storage, self._request(features.plan)):
                if ledger.read_plan(self.storage) is not None:
                    raise DestinationError(
                        f"'{self.storage.location}' is a feature set. Choose another --out for the predictions."
                    )
                require_free_destination(self.storage)

    def embed(
        self, sources: Locations, options: Mapping[str, Any]
    ) -> tuple[FeatureSet, TooManyFailuresError | None]:
        """Embed images into the destination, as the model's own; return also an error to raise in the end."""
        started = time.perf_counter()
        settings = Settings.from_options(**{**self.model.embed_settings, **options})
        with destination_errors():
            existing = ledger.read_generation(self.storage, 1)
            if existing is not None:
                predictions.require_same(self.storage, self._request(existing))
        plan = prepare(Request(sources, self.storage.location, settings), self.on_progress)
        own = replace(self.model.backbone.unprojected, pooling=options["pooling"])
        if differences := own.differences(plan.backbone):
            raise PlanMismatchError(
                f"The model '{self.model.location}' does not fit the backbone '{settings.features.model}' of this "
                f"machine. It needs features with {'; '.join(differences)}. Add the model's backbone, or train "
                "another model."
            )
        try:
            return run_plan(plan, engine=self.engine, on_progress=self.on_progress, started=started), None
        except TooManyFailuresError as error:
            return error.result, error

    def run(self, features: FeatureSet) -> Predictions:
        """Predict the parts that are missing, and write the summary."""
        self._begin(features)
        digests = {shard_of(name): digest for name, digest in features.parts.items()}
        unfinished = predictions.unfinished_parts(self.storage, digests)
        summary = read_json(self.storage, PREDICTIONS_SUMMARY)
        if unfinished or summary is None or summary["parts"] != len(digests):
            self.storage.delete(PREDICTIONS_SUMMARY)
            predictions.delete_other_parts(self.storage, set(digests))
            self._predict_parts(features, unfinished)
            summary = self._summary(features, digests)
            predictions.write_json(self.storage, PREDICTIONS_SUMMARY, summary)
        return Predictions(self.storage, features, summary)

    def _begin(self, features: FeatureSet) -> None:
        """Write the request and the model, unless they exist."""
        is_own = features.location == self.storage.location  # has been written to already
        with contextlib.nullcontext() if is_own else destination_errors():
            if not is_own:
                self.storage.prepare()
            predictions.create_request(self.storage, self._request(features.plan))
            predictions.copy_model(self.storage, self.model)

    def _task(self, unfinished: Sequence[int]) -> PredictionTask:
        if not (self.settings.regions or self.settings.tiles):
            return LabelTask(self.storage, self.model.sha256, self.settings)
        annotated = frozenset[int]()
        if self.settings.annotate:
            shards = {shard for _, shard in predictions.annotated_copies(self.storage)}
            annotated = frozenset(shards.intersection(unfinished))
        return RegionTask(self.storage, self.model.sha256, self.settings, annotated)

    def _predict_parts(self, features: FeatureSet, unfinished: Sequence[int]) -> None:
        """Predict parts; in this process where that is quicker than starting workers."""
        task = self._task(unfinished)
        n_numbers = len(features) * features.n_features
        is_small = n_numbers <= _MAX_NUMBERS_HERE and len(unfinished) <= _MAX_PARTS_HERE
        if self.engine is None and self.workers is None and isinstance(task, LabelTask) and is_small:
            for i, shard in enumerate(unfinished):
                self.on_progress(step("predicting", 4 * n_numbers * i // len(unfinished), 4 * n_numbers))
                task(features.plan, shard)
            return
        runner = Runner(features, self.engine, self.on_progress, preload=__name__, workers=self.workers)
        with contextlib.closing(runner):
            for _ in runner.run(features.plan, "predicting", task, unfinished):
                pass

    def _request(self, plan: Plan) -> dict[str, Any]:
        """Return what is predicted of a feature set with this plan; the same after an update of the set."""
        first = ledger.read_generation(plan.storage, 1)
        return {
            "format": 1,
            "model": {"sha256": self.model.sha256, "location": self.model.location},
            "features": {"run_id": (first or plan).run_id, "location": plan.storage.location},
            "settings": asdict(self.settings),
            "library_version": __version__,
        }

    def _summary(self, features: FeatureSet, digests: Mapping[int, str]) -> dict[str, Any]:
        """Return the summary; every part of the features must have its predictions."""
        labels: Counter[str] = Counter()
        totals: Counter[str] = Counter()
        current = {shard_of(name): digest for name, digest in FeatureSet(features.plan, None).parts.items()}
        for shard, receipt in predictions.read_receipts(self.storage, list(digests)):
            if receipt is None or receipt["part"] != digests[shard] or current != digests:
                raise StoppedError(
                    f"The feature set '{features.location}' changed while it was predicted. Run the same command "
                    f"again. If an update is unfinished, finish it first: featurepress resume "
                    f"{shlex.quote(features.location)}"
                )
            labels.update(receipt["labels"])
            totals.update({name: receipt.get(name, 0) for name in _SUMMED})
        return {
            "status": "complete",
            "parts": len(digests),
            **{name: totals[name] for name in _SUMMED},
            "labels": dict(sorted(labels.items())),
            "failed": (features.manifest or {}).get("failed", features.failures.num_rows),
            **{name: value for name, value in self._request(features.plan).items() if name != "format"},
            "knows_background": BACKGROUND in self.model.labels,
            "versions": {name: version(name) for name in ("featurepress", "numpy", "pyarrow")},
        }
