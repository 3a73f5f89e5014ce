"""Evaluate a trained model: measure it on images, compare it with baselines, and write a report."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, Unpack

import numpy as np

from featurepress.analysis import Classifier
from featurepress.analysis.evaluation import Evaluation, Measured
from featurepress.analysis.samples import DRAWN, Samples, joined, numbered, read_samples
from featurepress.analysis.trials import Trial, baselines, find_mistakes, learning_curve, measure
from featurepress.embedding.originals import read_originals
from featurepress.errors import AnalysisError, FeatureSetError, SettingError, SourceError, StorageError
from featurepress.features.feature_set import FeatureSet, embedded_set, open_features, parts_hash
from featurepress.images.signals import colour_histogram
from featurepress.images.thumbnail import thumbnail
from featurepress.learning.arguments import as_feature_set
from featurepress.learning.model import TrainedModel, as_model
from featurepress.progress import OnProgress, show_progress, step
from featurepress.reports.files import free_report_files
from featurepress.settings import (
    ClassifierSettings,
    EvaluateOptions,
    LabelSettings,
    SplitSettings,
    TrainingSettings,
    sorted_options,
)

STAGES: dict[str, Any] = {"labels": LabelSettings, "split": SplitSettings, "training": TrainingSettings}

Result = TypeVar("Result")


def evaluate(
    model: TrainedModel | str | Path,
    features: FeatureSet | str | Path,
    report: str | Path | None = None,
    *,
    progress: bool | OnProgress = True,
    **options: Unpack[EvaluateOptions],
) -> Evaluation:
    """Measure how well a model predicts the labels of images.

    Parameters
    ----------
    model : TrainedModel, str or path
        A trained model, or its location.
    features : FeatureSet, str or path
        A complete set with labels, of the model's feature space or, for a model of reduced features, of its
        backbone. If it is another set than the model was trained on, all rows are tested, or the test rows of
        `split_field` or `split_file`. If it is the training set, its split is used again. Where that split was
        drawn, a classifier of the same kind is fitted to the training side.
    report : str or path, optional
        An HTML page, ``NAME.html`` on this machine; the values are written beside it as ``NAME.json``.
    progress : bool or callable
        True shows one line in a terminal or notebook. A callable gets a `Progress` several times a second.
    **options
        `label_field`, `labels_file`, `skip_unlabelled`, `split_field`, `split_file`, `test_value`,
        `near_duplicate_threshold`, `in_memory_bytes`: as for `train`. The default is the value that the model was
        trained with.

    Returns
    -------
    Evaluation
        The naive measurement, and the leak-aware one: without test images that have a near-duplicate in training.

    Raises
    ------
    AnalysisError
        There is no model, it has changed, or labels are missing.
    PlanMismatchError
        The features are of another feature space than the model.
    FeatureSetError
        There is no complete feature set.
    DestinationError
        The report cannot be written.

    Notes
    -----
    Near-duplicates are searched in the training set, at its location when the model was trained. If it is missing
    or has changed, only the naive measurement is made, and a note says so. At most `in_memory_bytes` of features
    are read; of larger sets a random sample.

    Examples
    --------
    >>> import featurepress as fp
    >>> evaluation = fp.evaluate("fruit-model/", "reduced/", "report.html")  # doctest: +SKIP
    >>> evaluation.best.scores.accuracy  # doctest: +SKIP
    """
    files = None if report is None else free_report_files(report, values=True)
    model, features = as_model(model), as_feature_set(features)
    model.transform_of(features.plan.backbone, features.location)
    with show_progress(progress) as on_progress:
        run = _Run(model, features, _settings(model, options), set(options), on_progress)
        evaluation = run.evaluate()
    if files is not None:
        from featurepress.reports.report import evaluation_page

        files.write(
            evaluation_page(evaluation, functools.partial(run.computed, thumbnail)), {}, values=evaluation.to_json()
        )
    return evaluation


def _settings(model: TrainedModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings: the options, and for the rest those of the training."""
    trained: dict[str, Any] = model.trained_on["settings"]
    known = {name: value for stage in STAGES for name, value in trained[stage].items()}
    if "split_field" in options or "split_file" in options:
        known |= {"split_field": None, "split_file": None}
    if "label_field" in options:
        known |= {"labels_file": None}
    settings = sorted_options(STAGES, {**known, **options})
    return {**settings, "classifier": ClassifierSettings(**trained["classifier"])}


@dataclass
class _Run:
    """One call of `evaluate`."""

    model: TrainedModel
    features: FeatureSet
    settings: dict[str, Any]
    options: set[str]
    on_progress: OnProgress

    def evaluate(self) -> Evaluation:
        """Measure the model, its baselines and its learning curve."""
        self.notes: list[str] = []
        self.training, self.problem = self._training_set()
        trial, split = self._own_trial() if self._is_own() else self._other_trial()
        self.on_progress(step("measuring", 0, 0))
        outcome = measure(trial)
        if self.problem:
            reason = f"near-duplicates cannot be searched: {self.problem}"
            outcome = replace(outcome, leak_aware=Measured(0, outcome.naive.n_test, reason=reason))
        self._note_unknown_labels(trial)
        self.on_progress(step("comparing", 0, 0))
        return Evaluation(
            model=self._facts(),
            features=self.features.location,
            split=split,
            near_duplicate_rule=outcome.near_duplicate_rule,
            near_duplicate_threshold=outcome.threshold,
            naive=outcome.naive,
            leak_aware=outcome.leak_aware,
            mistakes=find_mistakes(outcome),
            baselines=baselines(outcome, functools.partial(self.computed, colour_histogram)),
            learning_curve=learning_curve(outcome),
            notes=tuple(self.notes),
        )

    def _facts(self) -> dict[str, Any]:
        model = self.model
        return {
            "name": model.location or "in memory",
            "kind": model.classifier.kind,
            "n_features": model.backbone.n_features,
            "backbone": model.backbone.model,
            "fingerprint": model.fingerprint,
            "labels": model.labels.tolist(),
            "trained_on": model.trained_on["features"],
        }

    # -- training and test ----------------------------------------------------------------------------------

    def _training_set(self) -> tuple[FeatureSet | None, str]:
        """Return the set that the model was trained on, or None and the reason."""
        location = self.model.trained_on["features"]
        try:
            training = open_features(location)
            current = (training.plan.run_id, parts_hash(training))
        except (FeatureSetError, StorageError):
            return None, f"the training set '{location}' is missing"
        if current != (self.model.trained_on["run_id"], self.model.trained_on["parts"]):
            return None, f"the training set '{location}' has changed"
        return training, ""

    def _is_own(self) -> bool:
        """Whether the features are the training set, or the set that it was reduced from."""
        if self.training is None:
            return False
        plan, own = self.training.plan, self.features.plan.run_id
        origin = plan.certificate.get("reduced")
        is_origin = origin is not None and (origin["run_id"], origin["parts"]) == (own, parts_hash(self.features))
        return plan.run_id == own or is_origin

    def _own_trial(self) -> tuple[Trial, str]:
        """Repeat the split of the training; measure the model itself if it was fitted to that training side."""
        samples = read_samples(self.features, self.settings["labels"], self.settings["split"])
        sample = self._sample(samples, 1.0)
        trial = replace(self._trial([sample]), is_test=sample.is_test)
        is_same = samples.train_side().digest == self.model.trained_on.get("rows")
        if sample.is_test is not None and sample is samples and is_same:
            return replace(trial, is_fitted=True), samples.split
        classifier = Classifier(**asdict(self.settings["classifier"]))
        split = "drawn from the training set" if samples.is_test is None else samples.split
        return replace(trial, classifier=classifier), f"{split}; a classifier of the same kind, fitted to one side"

    def _other_trial(self) -> tuple[Trial, str]:
        """Test other images; the training rows are needed for near-duplicates and baselines."""
        has_split = {"split_field", "split_file"} & self.options
        split = self.settings["split"] if has_split else SplitSettings(split_field=DRAWN)
        test = read_samples(self.features, self.settings["labels"], split)
        if test.is_test is not None:
            test = test.take(np.flatnonzero(test.is_test))
        sides = [self._sample(test, 0.5)]
        training = self._training_samples()
        if training is not None:
            sides.insert(0, self._sample(training, 0.5))
            if sides[0] is not training:
                self.problem = f"only {len(sides[0]):,} of the {len(training):,} training images fit into memory"
        trial = self._trial(sides)
        is_test = np.repeat([False, True][-len(sides) :], [len(side) for side in sides])
        n_same = int(np.isin(trial.hashes[is_test], trial.hashes[~is_test]).sum())
        if n_same:
            share = f"{n_same:,} of the {len(sides[-1]):,} test images"
            self.notes.append(f"{share} are training images: only the leak-aware measurement leaves them out")
        description = test.split if test.is_test is not None else "other images than the training images"
        return replace(trial, is_test=is_test, is_fitted=True), description

    def _training_samples(self) -> Samples | None:
        """Return the rows that the model was trained on; None if they cannot be read."""
        if self.training is None:
            return None
        trained = self.model.trained_on["settings"]
        try:
            labels, split = LabelSettings(**trained["labels"]), SplitSettings(**trained["split"])
            return read_samples(self.training, labels, split).train_side()
        except (SettingError, AnalysisError) as error:  # such as a missing file of labels
            self.problem = f"the training rows cannot be read. {error}"
            return None

    def _sample(self, samples: Samples, share: float) -> Samples:
        """Return the samples, or a random sample that fits into a share of memory and time."""
        n_fitted = samples.n_fitted(self.settings["training"].in_memory_bytes)
        n_rows = max(1, int(share * min(n_fitted, samples.n_searchable)))
        sample = samples.draw(n_rows, self.settings["classifier"].random_state)
        if sample is not samples:
            more = "; allow more with --in-memory-bytes" if n_fitted < samples.n_searchable else ""
            counts = f"{len(sample):,} of {len(samples):,} images"
            self.notes.append(f"a random sample of {counts} of '{samples.features.location}'{more}")
        return sample

    def _trial(self, sides: Sequence[Samples]) -> Trial:
        """Read the features of samples, in the model's feature space."""
        X = []
        for samples in sides:
            self.on_progress(step(f"reading {samples.features.location}", 0, samples.n_bytes))
            transform = self.model.transform_of(samples.features.plan.backbone, samples.features.location)
            X.append(transform(samples.matrix()))
        return Trial(
            np.concatenate(X) if len(X) > 1 else X[0],
            np.concatenate([samples.y for samples in sides]),
            joined([samples.column("uri") for samples in sides]),
            numbered([samples.column("sha256") for samples in sides]),
            self.model.classifier,
            near_duplicate_threshold=self.settings["split"].near_duplicate_threshold,
        )

    def _note_unknown_labels(self, trial: Trial) -> None:
        """Note the labels that the model cannot predict."""
        unknown = sorted(set(trial.y.tolist()) - set(self.model.labels.tolist()))
        if unknown:
            names = ", ".join(f"'{label}'" for label in unknown[:5]) + (", …" if len(unknown) > 5 else "")
            self.notes.append(f"the model cannot predict {names}: each image with such a label counts as a mistake")

    # -- the images ----------------------------------------------------------------------------------------

    def computed(self, compute: Callable[[Any], Result], uris: Sequence[str]) -> dict[str, Result]:
        """Return the result of a function for each image that can be read, by uri."""
        results: dict[str, Result] = {}
        sets = {item.location: item for item in (self.features, self.training) if item is not None}
        for features in sets.values():
            try:
                embedded = embedded_set(features)
                for uri, pixels in read_originals(embedded.plan, embedded.parts, set(uris) - results.keys()):
                    results[uri] = compute(pixels)
            except (FeatureSetError, SourceError, StorageError):  # the report has placeholders for these images
                continue
        return results
