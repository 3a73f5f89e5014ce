"""Train a classifier on a feature set, and measure it while it is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featurepress.analysis import Classifier
from featurepress.analysis.classifier import require_classes
from featurepress.analysis.evaluation import Measured
from featurepress.analysis.samples import Samples, numbered, read_samples
from featurepress.analysis.streaming import fit_streamed, require_streamable
from featurepress.analysis.trials import Outcome, Trial, measure
from featurepress.errors import SettingError
from featurepress.features.feature_set import FeatureSet, open_features
from featurepress.learning.model import TrainedModel, require_free
from featurepress.learning.reduction import read_projection
from featurepress.progress import OnProgress, ignore_progress, step
from featurepress.runs.verbs import expand_time
from featurepress.settings import ClassifierSettings, LabelSettings, SplitSettings, TrainingSettings, sorted_options
from featurepress.storage import open_storage

STAGES: dict[str, Any] = {
    "labels": LabelSettings,
    "classifier": ClassifierSettings,
    "split": SplitSettings,
    "training": TrainingSettings,
}


def train(
    features: FeatureSet | str | Path,
    out: str | Path | None = None,
    *,
    on_progress: OnProgress = ignore_progress,
    **options: Any,
) -> TrainedModel:
    """Train a classifier on a feature set.

    Parameters
    ----------
    features : FeatureSet, str or path
        A complete set with labels, or where one lies; reduced or not.
    out : str or path, optional
        A new folder, or place in a bucket, for the model; ``{time}`` in it becomes the date and time. Without it
        nothing is written.
    on_progress : callable, optional
        Called now and then with what is being done, and how many bytes of features of how many are done.
    **options
        Labels: `label_column` (``label``), `labels_file`, `skip_unlabelled`. Classifier: `kind` (``logistic``,
        ``knn``, ``centroid``), `regularization`, `n_neighbors`, `balanced`, `random_state`. Measurement:
        `split_column`, `split_file`, `test_value`, `near_duplicate_threshold`. And `in_memory_bytes`.

    Returns
    -------
    TrainedModel
        Its `metrics` say what was measured: naive, and leak-aware, with no near-duplicates on both sides. With a
        given split it is fitted to the training pictures only; with a drawn one, to all, after it was measured on
        three quarters of them.

    Raises
    ------
    AnalysisError
        Too few classes or pictures, missing labels, or features that are no numbers.
    FeatureSetError
        There is no complete feature set.
    DestinationError
        `out` is not free.

    Notes
    -----
    Up to `in_memory_bytes` (1 GiB: n_samples x (n_features + n_labels) x 4 bytes) are fitted in memory, by
    scikit-learn, which takes about three times as much. More are streamed (`featurepress.analysis.streaming`), and
    measured on as many drawn pictures as memory may hold. Where pictures of a label are so many that to look for
    near-duplicates would take more than a few minutes (`near_duplicates.searchable_rows`), fewer are
    drawn and measured; all are fitted to.

    Examples
    --------
    >>> import featurepress as fp
    >>> model = fp.train("reduced/", "fruit-model/")  # doctest: +SKIP
    >>> model.metrics["leak_aware"]["scores"]["accuracy"]  # doctest: +SKIP
    """
    settings = _settings(options)
    features = features if isinstance(features, FeatureSet) else open_features(features)
    place = None if out is None else _free_place(features, str(out))
    samples = read_samples(features, settings["labels"], settings["split"])
    training = samples.train_side()
    require_classes(training.y)
    n_rows = samples.n_fitted(settings["training"].in_memory_bytes)
    if len(samples) > n_rows:
        require_streamable(Classifier(**asdict(settings["classifier"])), training)
    on_progress(step("reading", 0, samples.n_bytes))
    measured = samples.draw(min(n_rows, samples.n_searchable), settings["classifier"].random_state)
    outcome = measure(trial_of(measured, settings, on_progress))
    one = _chosen(outcome, settings)
    if len(samples) > n_rows:
        classifier = _streamed(one, training, on_progress)
    else:
        classifier = _in_memory(one, training, outcome if measured is samples else None, on_progress)
    notes = [] if measured is samples else [_drawn_note(measured, samples)]
    model = TrainedModel(
        classifier,
        features.plan.backbone,
        read_projection(features.plan) if features.plan.backbone.projection else None,
        asked=asdict(features.plan.settings.features),
        trained_on={
            "features": features.location,
            "run_id": features.plan.run_id,
            "parts": features.parts_hash,
            "n_samples": classifier.n_samples_,
            "rows": training.digest,
            "split": samples.split,
            "settings": {name: asdict(stage) for name, stage in settings.items()},
        },
        metrics=metrics_of(outcome, notes),
        versions={name: version(name) for name in ("featurepress", "scikit-learn", "numpy")},
    )
    return model if place is None else model.save(place)


def _whole_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Let files be named so that they are found from any folder: `evaluate` reads them again."""
    for stage, name in (("labels", "labels_file"), ("split", "split_file")):
        if (path := getattr(settings[stage], name)) is not None:
            settings[stage] = replace(settings[stage], **{name: str(Path(path).absolute())})
    return settings


def _chosen(outcome: Outcome, settings: dict[str, Any]) -> Classifier:
    """Give the classifier that is asked for, with the regularisation that was found."""
    aware = outcome.fitted[1]
    chosen = {"regularization": aware.regularization_} if aware is not None and aware.regularization_ else {}
    return Classifier(**{**asdict(settings["classifier"]), **chosen})


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Sort the options into stages; one of another kind of classifier, which would do nothing, is refused."""
    settings = _whole_paths(sorted_options(STAGES, options))
    asked = settings["classifier"].kind
    for name, kind in (("regularization", "logistic"), ("n_neighbors", "knn")):
        if name in options and asked != kind:
            raise SettingError(f"The '{name}' setting is of kind '{kind}' (--classifier {kind}). Got '{asked}'.")
    return settings


def _free_place(features: FeatureSet, out: str) -> str:
    """Give the destination, which must be free, and lie outside the features."""
    storage = open_storage(expand_time(out))
    features.require_outside(storage.location)
    require_free(storage)
    return storage.location


def _in_memory(one: Classifier, training: Samples, outcome: Outcome | None, on_progress: OnProgress) -> Classifier:
    """Fit to all that may train; with the outcome of a trial of all samples, to what it has read."""
    on_progress(step("fitting", training.n_bytes, training.n_bytes))
    if outcome is None:
        return one.fit(training.matrix(), training.y)
    aware, trial = outcome.fitted[1], outcome.trial
    if trial.is_test is None:
        return one.fit(trial.X, trial.y, outcome.groups)
    if aware is not None:  # fitted to all that train already
        return aware
    rows = outcome.splits[1].train
    return one.fit(trial.X[rows], trial.y[rows], outcome.groups[rows])


def _streamed(one: Classifier, training: Samples, on_progress: OnProgress) -> Classifier:
    """Fit to all that may train, and tell how far it is."""
    row_bytes, done = 4 * training.features.n_features, 0

    def heard(n_rows: int) -> None:
        nonlocal done
        done += n_rows
        on_progress(step(f"fitting, pass {(done - 1) // len(training) + 1}", done * row_bytes, 0))

    return fit_streamed(one, training, heard)


def _drawn_note(drawn: Samples, samples: Samples) -> str:
    counts = f"{len(drawn):,} drawn pictures of {len(samples):,}"
    return f"measured on {counts}, by a classifier fitted in memory to them"


def trial_of(samples: Samples, settings: dict[str, Any], on_progress: OnProgress = ignore_progress) -> Trial:
    """Read the features of some samples, for a trial."""
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


def metrics_of(outcome: Outcome, notes: list[str]) -> dict[str, Any]:
    """Give what was measured as JSON values, without what only a report shows."""
    return {
        "naive": _brief(outcome.naive),
        "leak_aware": _brief(outcome.leak_aware),
        "near_duplicate_threshold": outcome.threshold,
        "near_duplicate_rule": outcome.near_duplicate_rule,
        "notes": notes,
    }


def _brief(measured: Measured) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(asdict(measured)))  # as it will be read
    shown = ("n_samples", "accuracy", "interval", "macro_f1", "top_3", "calibration_error")
    if values["scores"] is not None:
        values["scores"] = {name: values["scores"][name] for name in shown}
    return values
