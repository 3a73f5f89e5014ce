"""Train a classifier on a feature set, and measure it while it is made."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from featurepress.analysis import Classifier
from featurepress.analysis.classifier import draw_rows, require_classes
from featurepress.analysis.evaluation import Measured
from featurepress.analysis.samples import Samples, read_samples
from featurepress.analysis.streaming import fit_streamed
from featurepress.analysis.trials import Outcome, Trial, measure
from featurepress.featureset import FeatureSet, open_features
from featurepress.progress import Tell, say_nothing
from featurepress.reduction import read_projection
from featurepress.settings import (
    ClassifierSettings,
    LabelSettings,
    SplitSettings,
    TrainingSettings,
    sorted_options,
)
from featurepress.storage import open_storage
from featurepress.trained import TrainedModel, require_free

STAGES: dict[str, Any] = {
    "labels": LabelSettings,
    "classifier": ClassifierSettings,
    "split": SplitSettings,
    "training": TrainingSettings,
}


def train(
    features: FeatureSet | str | Path, out: str | Path | None = None, *, tell: Tell = say_nothing, **options: Any
) -> TrainedModel:
    """Train a classifier on a feature set.

    Parameters
    ----------
    features : FeatureSet, str or path
        A complete set with labels, or where one lies; reduced or not.
    out : str or path, optional
        A new folder, or place in a bucket, for the model; without it nothing is written.
    tell : callable, optional
        Called now and then with what is being done, and how many bytes of features of how many are done.
    **options
        Labels: `label_column` (``label``), `labels_file`, `skip_unlabelled`. Classifier: `kind` (``logistic``,
        ``knn``, ``centroid``), `regularization`, `n_neighbors`, `balanced`, `random_state`. Measurement:
        `split_column`, `split_file`, `test_value`, `twin_threshold`. And `in_memory_bytes`.

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
    Up to `in_memory_bytes` of features (1 GiB: n_samples x n_features x 4 bytes) are fitted in memory, by
    scikit-learn. More are streamed (`featurepress.analysis.streaming`), and measured on as many drawn pictures as
    memory may hold.

    Examples
    --------
    >>> import featurepress as fp
    >>> model = fp.train("reduced/", "fruit-model/")  # doctest: +SKIP
    >>> model.metrics["leak_aware"]["scores"]["accuracy"]  # doctest: +SKIP
    """
    settings = sorted_options(STAGES, options)
    features = features if isinstance(features, FeatureSet) else open_features(features)
    if out is not None:
        require_free(open_storage(str(out)))
    samples = read_samples(features, settings["labels"], settings["split"])
    training = samples if samples.is_test is None else samples.take(np.flatnonzero(~samples.is_test))
    require_classes(training.y)
    tell("reading", 0, samples.n_bytes)
    fit = _in_memory if samples.n_bytes <= settings["training"].in_memory_bytes else _streamed
    classifier, outcome, notes = fit(samples, training, settings, tell)
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
            "split": samples.split,
            "settings": {name: asdict(stage) for name, stage in settings.items()},
        },
        metrics=metrics_of(outcome, notes),
        versions={name: version(name) for name in ("featurepress", "scikit-learn", "numpy")},
    )
    return model if out is None else model.save(out)


def _in_memory(
    samples: Samples, training: Samples, settings: dict[str, Any], tell: Tell
) -> tuple[Classifier, Outcome, list[str]]:
    """Measure, and then fit to all that may train."""
    outcome = measure(trial_of(samples, settings, tell))
    tell("fitting", samples.n_bytes, samples.n_bytes)
    aware = outcome.fitted[1]
    if samples.is_test is not None and aware is not None:  # fitted to all that train already
        return aware, outcome, []
    chosen = {"regularization": aware.regularization_} if aware is not None and aware.regularization_ else {}
    classifier = Classifier(**{**asdict(settings["classifier"]), **chosen})
    trial, rows = outcome.trial, np.flatnonzero(np.isin(samples.rows, training.rows))
    return classifier.fit(trial.X[rows], trial.y[rows], outcome.groups[rows]), outcome, []


def _streamed(
    samples: Samples, training: Samples, settings: dict[str, Any], tell: Tell
) -> tuple[Classifier, Outcome, list[str]]:
    """Measure on as many drawn pictures as memory may hold, and fit to all, streamed."""
    one = Classifier(**asdict(settings["classifier"]))
    row_bytes, done = 4 * samples.features.n_features, 0

    def heard(n_rows: int) -> None:
        nonlocal done
        done += n_rows
        tell(f"fitting, pass {done // max(1, len(training)) + 1}", done * row_bytes, 0)

    classifier = fit_streamed(one, training, heard)
    n_drawn = max(1, settings["training"].in_memory_bytes // row_bytes)
    drawn = samples.take(draw_rows(samples.codes, n_drawn, one.random_state))
    note = (
        f"measured on {len(drawn):,} drawn pictures of {len(samples):,}, by a classifier fitted in memory to them"
    )
    return classifier, measure(trial_of(drawn, settings, tell)), [note]


def trial_of(samples: Samples, settings: dict[str, Any], tell: Tell = say_nothing) -> Trial:
    """Read the features of some samples, for a trial."""
    X = samples.matrix()
    tell("measuring", samples.n_bytes, samples.n_bytes)
    return Trial(
        X,
        samples.y,
        samples.column("uri"),
        samples.column("sha256"),
        Classifier(**asdict(settings["classifier"])),
        samples.is_test,
        twin_threshold=settings["split"].twin_threshold,
    )


def metrics_of(outcome: Outcome, notes: list[str]) -> dict[str, Any]:
    """Give what was measured as JSON values, without what only a report shows."""
    return {
        "naive": _brief(outcome.naive),
        "leak_aware": _brief(outcome.leak_aware),
        "twin_threshold": outcome.threshold,
        "twin_rule": outcome.twin_rule,
        "notes": notes,
    }


def _brief(measured: Measured) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(asdict(measured)))  # as it will be read
    shown = ("n_samples", "accuracy", "interval", "macro_f1", "top_3", "calibration_error")
    if values["scores"] is not None:
        values["scores"] = {name: values["scores"][name] for name in shown}
    return values
