"""Train a classifier on a feature set, and measure it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack

from featurepress.analysis import Classifier
from featurepress.analysis.classifier import require_classes
from featurepress.analysis.evaluation import Measured
from featurepress.analysis.samples import Samples, numbered, read_samples
from featurepress.analysis.streaming import fit_streamed, require_streamable
from featurepress.analysis.trials import Outcome, Trial, measure
from featurepress.errors import SettingError
from featurepress.features.feature_set import FeatureSet, parts_hash
from featurepress.learning.arguments import as_feature_set, open_destination, require_outside
from featurepress.learning.model import TrainedModel, require_free
from featurepress.learning.reduced import read_projection
from featurepress.progress import OnProgress, show_progress, step
from featurepress.settings import (
    ClassifierSettings,
    LabelSettings,
    SplitSettings,
    TrainingSettings,
    TrainOptions,
    sorted_options,
)

DEFAULT_OUT = "model{time}"
STAGES: dict[str, Any] = {
    "labels": LabelSettings,
    "classifier": ClassifierSettings,
    "split": SplitSettings,
    "training": TrainingSettings,
}


def train(
    features: FeatureSet | str | Path,
    out: str | Path | None = DEFAULT_OUT,
    *,
    progress: bool | OnProgress = True,
    **options: Unpack[TrainOptions],
) -> TrainedModel:
    """Train a classifier on a feature set, and measure it.

    Parameters
    ----------
    features : FeatureSet, str or path
        A complete set with labels, or its location; reduced or not.
    out : str, path or None, default='model{time}'
        A new folder for the model, also in a bucket; ``{time}`` becomes the date and time. None: the model stays in
        memory.
    progress : bool or callable
        True shows one line in a terminal or notebook. A callable gets a `Progress` several times a second.
    **options
        Labels: `label_field` (``label``), `labels_file`, `skip_unlabelled`. Classifier: `kind` (``logistic``,
        ``knn``, ``centroid``), `regularization`, `n_neighbors`, `balanced`, `random_state`. Split:
        `split_field`, `split_file`, `test_value`, `near_duplicate_threshold`. Memory: `in_memory_bytes`.

    Returns
    -------
    TrainedModel
        Its `metrics` hold two measurements: naive, and leak-aware, without near-duplicates of training images in
        the test. If the set has a split, the model is fitted to the training images only. If not, a quarter of the
        images is drawn for the test, and the model is then fitted to all.

    Raises
    ------
    AnalysisError
        There are too few classes or images, labels are missing, or features are NaN or infinite.
    FeatureSetError
        There is no complete feature set.
    DestinationError
        `out` is not empty, or cannot be written.

    Notes
    -----
    Sets of up to `in_memory_bytes` (1 GiB: n_samples x (n_features + n_labels) x 4 bytes) are fitted in memory by
    scikit-learn, which takes about three times as much. Larger sets are streamed
    (`featurepress.analysis.streaming`), and measured on a random sample that fits into that memory. If a search for
    near-duplicates would take more than a few minutes (`near_duplicates.searchable_rows`), a smaller sample is
    measured; the model is still fitted to all.

    Examples
    --------
    >>> import featurepress as fp
    >>> model = fp.train("reduced/", "fruit-model/")  # doctest: +SKIP
    >>> model.metrics["leak_aware"]["scores"]["accuracy"]  # doctest: +SKIP
    """
    settings = _settings(options)
    features = as_feature_set(features)
    if out is not None:
        storage = open_destination(out)
        require_outside(features, storage)
        require_free(storage)
    samples = read_samples(features, settings["labels"], settings["split"])
    training = samples.train_side()
    require_classes(training.y)
    n_rows = samples.n_fitted(settings["training"].in_memory_bytes)
    is_streamed = len(samples) > n_rows
    if is_streamed:
        require_streamable(Classifier(**asdict(settings["classifier"])), training)
    with show_progress(progress) as on_progress:
        on_progress(step("reading", 0, samples.n_bytes))
        measured = samples.draw(min(n_rows, samples.n_searchable), settings["classifier"].random_state)
        outcome = measure(_trial_of(measured, settings, on_progress))
        known = outcome if measured is samples else None
        fit = _fit_streamed if is_streamed else functools.partial(_fit_in_memory, known)
        classifier = fit(_unfitted(outcome, settings), training, on_progress)
    sampled = f"measured on a random sample of {len(measured):,} of {len(samples):,} images"
    notes = [] if measured is samples else [f"{sampled}, with a classifier fitted to that sample"]
    model = TrainedModel(
        classifier,
        features.plan.backbone,
        read_projection(features.plan) if features.plan.backbone.projection else None,
        embed_settings=asdict(features.plan.settings.features),
        trained_on=_provenance(classifier, training, samples.split, settings),
        metrics=_metrics_of(outcome, notes),
        versions={name: version(name) for name in ("featurepress", "scikit-learn", "numpy")},
    )
    return model if out is None else model.save(storage.location)


def _provenance(
    classifier: Classifier, training: Samples, split: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the model was trained on, so that `evaluate` finds the same rows again."""
    features = training.features
    return {
        "features": features.location,
        "run_id": features.plan.run_id,
        "parts": parts_hash(features),
        "n_samples": classifier.n_samples_,
        "rows": training.digest,
        "split": split,
        "settings": {name: asdict(stage) for name, stage in settings.items()},
    }


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Sort the options into stages; refuse one of another kind of classifier, which would have no effect."""
    settings = sorted_options(STAGES, options)
    for stage, name in (("labels", "labels_file"), ("split", "split_file")):
        if (path := getattr(settings[stage], name)) is not None:  # `evaluate` may read it from another folder
            settings[stage] = replace(settings[stage], **{name: str(Path(path).absolute())})
    requested = settings["classifier"].kind
    for name, kind in (("regularization", "logistic"), ("n_neighbors", "knn")):
        if name in options and requested != kind:
            raise SettingError(f"The '{name}' setting needs the kind '{kind}'. Got kind '{requested}'.")
    return settings


def _unfitted(outcome: Outcome, settings: Mapping[str, Any]) -> Classifier:
    """Return the requested classifier, with the regularisation that the measurement chose."""
    classifier = Classifier(**asdict(settings["classifier"]))
    if (aware := outcome.fitted[1]) is not None and aware.regularization_ is not None:
        classifier.regularization = aware.regularization_
    return classifier


def _fit_in_memory(
    outcome: Outcome | None, classifier: Classifier, training: Samples, on_progress: OnProgress
) -> Classifier:
    """Fit to all training rows; the outcome of a trial of all samples has them in memory already."""
    on_progress(step("fitting", training.n_bytes, training.n_bytes))
    if outcome is None:
        return classifier.fit(training.matrix(), training.y)
    aware, trial = outcome.fitted[1], outcome.trial
    if trial.is_test is None:
        return classifier.fit(trial.X, trial.y, outcome.groups)
    if aware is not None:  # already fitted to all training rows
        return aware
    rows = outcome.splits[1].train
    return classifier.fit(trial.X[rows], trial.y[rows], outcome.groups[rows])


def _fit_streamed(classifier: Classifier, training: Samples, on_progress: OnProgress) -> Classifier:
    """Fit to all training rows in passes over the disk."""
    row_bytes, done = 4 * training.features.n_features, 0

    def on_rows(n_rows: int) -> None:
        nonlocal done
        done += n_rows
        on_progress(step(f"fitting, pass {(done - 1) // len(training) + 1}", done * row_bytes, 0))

    return fit_streamed(classifier, training, on_rows)


def _trial_of(samples: Samples, settings: dict[str, Any], on_progress: OnProgress) -> Trial:
    """Read the features of samples for a trial."""
    X = samples.matrix()
    on_progress(step("measuring", samples.n_bytes, samples.n_bytes))
    return Trial(
        X,
        samples.y,
        samples.column("uri"),
        numbered([samples.column("sha256")]),
        Classifier(**asdict(settings["classifier"])),
        samples.is_test,
        near_duplicate_threshold=settings["split"].near_duplicate_threshold,
    )


def _metrics_of(outcome: Outcome, notes: list[str]) -> dict[str, Any]:
    """Return the measurements as JSON values, without details that only a report shows."""
    return {
        "naive": _brief(outcome.naive),
        "leak_aware": _brief(outcome.leak_aware),
        "near_duplicate_threshold": outcome.threshold,
        "near_duplicate_rule": outcome.near_duplicate_rule,
        "notes": notes,
    }


def _brief(measured: Measured) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(asdict(measured)))  # with lists instead of tuples, as when read
    if values["scores"] is not None:
        shown = ("n_samples", "accuracy", "interval", "macro_f1", "top_3", "calibration_error")
        values["scores"] = {name: values["scores"][name] for name in shown}
    return values
