"""Evaluate a trained model: measure it on pictures, beside what is simpler, and write a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import numpy as np

from featurepress.analysis import Classifier
from featurepress.analysis.evaluation import Evaluation, Measured
from featurepress.analysis.samples import DRAWN, Samples, joined, numbered, read_samples
from featurepress.analysis.trials import Trial, baselines, find_mistakes, learning_curve, measure
from featurepress.embedding.originals import read_originals
from featurepress.errors import AnalysisError, FeatureSetError, SettingError, SourceError, StorageError
from featurepress.features.feature_set import FeatureSet, embedded_set, open_features
from featurepress.images.thumbnail import colour_histogram, thumbnail
from featurepress.learning.model import TrainedModel, open_model
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

if TYPE_CHECKING:
    import numpy.typing as npt

STAGES: dict[str, Any] = {"labels": LabelSettings, "split": SplitSettings, "training": TrainingSettings}

Look = TypeVar("Look")


def evaluate(
    model: TrainedModel | str | Path,
    features: FeatureSet | str | Path,
    report: str | Path | None = None,
    *,
    progress: bool | OnProgress = True,
    **options: Unpack[EvaluateOptions],
) -> Evaluation:
    """Measure how well a model tells pictures.

    Parameters
    ----------
    model : TrainedModel, str or path
        A trained model, or where one lies.
    features : FeatureSet, str or path
        A complete set with labels: other pictures than the model was trained on, of which all test (with
        `split_column` or `split_file` those only that the split says). Or the very set that it was trained on:
        then its split is made again, and where it was drawn a like classifier is fitted to three quarters.
        Features may be the backbone's own where the model knows reduced ones.
    report : str or path, optional
        A page, ``NAME.html`` on this machine, that is written in the end; the values beside it as ``NAME.json``.
    progress : bool or callable
        True shows one line in a terminal or notebook. A callable gets a `Progress` several times a second.
    **options
        `label_column`, `labels_file`, `skip_unlabelled`, `split_column`, `split_file`, `test_value`,
        `near_duplicate_threshold`, `in_memory_bytes`: as for `train`, whose own they are by default.

    Returns
    -------
    Evaluation
        The naive figure, and the leak-aware one: without test pictures that have a near-duplicate in training.

    Raises
    ------
    AnalysisError
        There is no such model, it was edited, or the labels do not allow it.
    PlanMismatchError
        The features are of another space than the model's.
    FeatureSetError
        There is no complete feature set.
    DestinationError
        The report cannot be written.

    Notes
    -----
    Near-duplicates are looked for in the set that the model was trained on, where it lay then. If it is gone, or
    has changed, only the naive figure is measured, and the report says so. Up to `in_memory_bytes` of features are
    read; of more, that many are drawn.
    """
    with show_progress(progress) as on_progress:
        return _evaluate(model, features, report, on_progress=on_progress, options=options)


def _evaluate(
    model: TrainedModel | str | Path,
    features: FeatureSet | str | Path,
    report: str | Path | None,
    *,
    on_progress: OnProgress,
    options: Mapping[str, Any],
) -> Evaluation:
    files = None if report is None else free_report_files(report, values=True)
    model = model if isinstance(model, TrainedModel) else open_model(model)
    features = features if isinstance(features, FeatureSet) else open_features(features)
    model.transform_of(features.plan.backbone, features.location)
    bench = _Bench(model, features, _settings(model, options), on_progress)
    evaluation = bench.evaluate()
    if files is not None:
        from featurepress.reports.report import evaluation_page

        files.write(evaluation_page(evaluation, bench.thumbnails), {}, values=evaluation.to_json())
    return evaluation


def _settings(model: TrainedModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings: what is asked, else what the model was trained with."""
    trained: dict[str, Any] = model.trained_on["settings"]
    known = {name: value for stage in STAGES for name, value in trained[stage].items()}
    if "split_column" in options or "split_file" in options:
        known |= {"split_column": None, "split_file": None}
    if "label_column" in options:
        known |= {"labels_file": None}
    settings = sorted_options(STAGES, {**known, **options})
    return {**settings, "classifier": ClassifierSettings(**trained["classifier"]), "asked": set(options)}


@dataclass
class _Bench:
    """One evaluation: what is measured on what."""

    model: TrainedModel
    features: FeatureSet
    settings: dict[str, Any]
    on_progress: OnProgress

    def evaluate(self) -> Evaluation:
        """Measure, and put together what stands beside the figure."""
        self.notes: list[str] = []
        self.training, self.why_not = self._training_set()
        trial, split = self._own_trial() if self._is_own() else self._other_trial()
        self.on_progress(step("measuring", 0, 0))
        outcome = measure(trial)
        if self.why_not:
            reason = f"near-duplicates cannot be looked for: {self.why_not}"
            outcome = replace(outcome, leak_aware=Measured(0, outcome.naive.n_test, reason=reason))
        self._note_strangers(trial)
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
            baselines=baselines(outcome, self.colours),
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

    # -- what is measured ------------------------------------------------------------------------------------

    def _training_set(self) -> tuple[FeatureSet | None, str]:
        """Give the set that the model was trained on, or why it cannot be had."""
        where = self.model.trained_on["features"]
        try:
            training = open_features(where)
            found = (training.plan.run_id, training.parts_hash)
        except (FeatureSetError, StorageError):
            return None, f"the training set '{where}' is gone"
        if found != (self.model.trained_on["run_id"], self.model.trained_on["parts"]):
            return None, f"the training set '{where}' has changed"
        return training, ""

    def _is_own(self) -> bool:
        """Whether these are the rows that the model was trained on, or those that these were reduced from."""
        if self.training is None:
            return False
        plan, own = self.training.plan, self.features.plan.run_id
        origin = plan.certificate.get("reduced")
        is_origin = origin is not None and (origin["run_id"], origin["parts"]) == (own, self.features.parts_hash)
        return plan.run_id == own or is_origin

    def _own_trial(self) -> tuple[Trial, str]:
        """Make the split of the training again; the model itself is measured if it was trained on that side."""
        samples = read_samples(self.features, self.settings["labels"], self.settings["split"])
        drawn = self._drawn(samples, 1.0)
        trial = replace(self._trial([drawn]), is_test=drawn.is_test)
        is_same = samples.train_side().digest == self.model.trained_on.get("rows")
        if drawn.is_test is not None and drawn is samples and is_same:
            return replace(trial, is_fitted=True), samples.split
        like = Classifier(**asdict(self.settings["classifier"]))
        how = samples.split
        if samples.is_test is None:
            how = "drawn from the set that the model was trained on"
        return replace(trial, classifier=like), f"{how}; a like classifier, fitted to one side"

    def _other_trial(self) -> tuple[Trial, str]:
        """Let other pictures test, beside those that the model was trained on."""
        by_split = {"split_column", "split_file"} & self.settings["asked"]
        given = self.settings["split"] if by_split else SplitSettings(split_column=DRAWN)
        test = read_samples(self.features, self.settings["labels"], given)
        if test.is_test is not None:
            test = test.take(np.flatnonzero(test.is_test))
        sides = [self._drawn(test, 0.5)]
        known = self._known()
        if known is not None:
            sides.insert(0, self._drawn(known, 0.5))
            if sides[0] is not known:
                self.why_not = f"{len(sides[0]):,} of the {len(known):,} pictures that it was trained on were drawn"
        trial = self._trial(sides)
        is_test = np.repeat([False, True][-len(sides) :], [len(side) for side in sides])
        n_same = int(np.isin(trial.hashes[is_test], trial.hashes[~is_test]).sum())
        if n_same:
            of = f"{n_same:,} of the {len(sides[-1]):,} test pictures"
            self.notes.append(f"{of} are files that it was trained on: only the leak-aware figure leaves them out")
        words = test.split if test.is_test is not None else "other pictures than it was trained on"
        return replace(trial, is_test=is_test, is_fitted=True), words

    def _known(self) -> Samples | None:
        """Give what the model was trained on, if it can be told."""
        if self.training is None:
            return None
        trained = self.model.trained_on["settings"]
        try:
            labels, split = LabelSettings(**trained["labels"]), SplitSettings(**trained["split"])
            return read_samples(self.training, labels, split).train_side()
        except (SettingError, AnalysisError) as error:  # its file of labels is gone, for instance
            self.why_not = f"what it was trained on cannot be told any more. {error}"
            return None

    def _drawn(self, samples: Samples, share: float) -> Samples:
        """Give the samples, or as many drawn ones as a share of memory and time allows."""
        n_fitted = samples.n_fitted(self.settings["training"].in_memory_bytes)
        n_rows = max(1, int(share * min(n_fitted, samples.n_searchable)))
        drawn = samples.draw(n_rows, self.settings["classifier"].random_state)
        if drawn is not samples:
            where, more = samples.features.location, "; allow more with --in-memory"
            told = f"{len(drawn):,} of the {len(samples):,} pictures of '{where}' were drawn"
            self.notes.append(told + (more if n_fitted < samples.n_searchable else ""))
        return drawn

    def _trial(self, sides: Sequence[Samples]) -> Trial:
        """Read the features of some samples, in the model's space."""
        X = []
        for samples in sides:
            self.on_progress(step(f"reading {samples.features.location}", 0, samples.n_bytes))
            prepare = self.model.transform_of(samples.features.plan.backbone, samples.features.location)
            X.append(prepare(samples.matrix()))
        return Trial(
            np.concatenate(X) if len(X) > 1 else X[0],
            np.concatenate([samples.y for samples in sides]),
            joined([samples.column("uri") for samples in sides]),
            numbered([samples.column("sha256") for samples in sides]),
            self.model.classifier,
            near_duplicate_threshold=self.settings["split"].near_duplicate_threshold,
        )

    def _note_strangers(self, trial: Trial) -> None:
        """Say which labels the model cannot know."""
        strangers = sorted(set(trial.y.tolist()) - set(self.model.labels.tolist()))
        if strangers:
            named = ", ".join(f"'{label}'" for label in strangers[:5]) + (", …" if len(strangers) > 5 else "")
            self.notes.append(f"the model knows nothing of {named}: each such picture counts as a mistake")

    # -- looks at the pictures -------------------------------------------------------------------------------

    def thumbnails(self, uris: Sequence[str]) -> dict[str, bytes]:
        """Give small copies of pictures, as far as they can be read."""
        return dict(self._looks(uris, thumbnail))

    def colours(self, uris: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Give the colours of pictures, as far as they can be read."""
        return dict(self._looks(uris, colour_histogram))

    def _looks(self, uris: Sequence[str], look: Callable[[Any], Look]) -> Iterator[tuple[str, Look]]:
        wanted = set(uris)
        for features in filter(None, {id(one): one for one in (self.features, self.training)}.values()):
            try:
                embedded = embedded_set(features)
                for uri, pixels in read_originals(embedded.plan, embedded.parts, wanted):
                    wanted.discard(uri)
                    yield uri, look(pixels)
            except (FeatureSetError, SourceError, StorageError):  # gone, or not for us: said where they would stand
                continue
