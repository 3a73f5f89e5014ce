"""The lines that describe a trained model and its accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurepress.cli.output import Lines

if TYPE_CHECKING:
    from featurepress.analysis.scores import Scores
    from featurepress.learning.model import TrainedModel


def model_lines(model: TrainedModel) -> Lines:
    """Return the lines that describe a trained model and its accuracy in the training."""
    lines, classifier, trained_on = Lines(), model.classifier, model.trained_on
    strength = "" if classifier.regularization_ is None else f", regularisation {classifier.regularization_:g}"
    lines.add("model", f"{classifier.kind}{strength}, of {model.backbone.n_features:,} features per image")
    lines.add("labels", shortened(model.labels.tolist()))
    lines.add(
        "fitted", f"to {classifier.n_samples_:,} images of {trained_on['features']}; split {trained_on['split']}"
    )
    add_measured(lines, model.metrics)
    reduced = f", reduced to {model.backbone.n_features:,}" if model.projection is not None else ""
    lines.add(
        "backbone", f"{model.backbone.model}, {model.backbone.pooling}{reduced}; fingerprint {model.fingerprint}"
    )
    lines.add("made", "by " + ", ".join(f"{name} {version}" for name, version in model.versions.items()))
    lines.add("where", model.location)
    return lines


def model_json(model: TrainedModel) -> dict[str, Any]:
    """Return the same as JSON values."""
    return {
        "where": model.location,
        "sha256": model.sha256,
        "kind": model.classifier.kind,
        "labels": model.labels.tolist(),
        "fingerprint": model.fingerprint,
        "metrics": dict(model.metrics),
        "trained_on": dict(model.trained_on),
        "versions": dict(model.versions),
    }


def add_measured(lines: Lines, measured: Mapping[str, Any]) -> None:
    """Add the leak-aware and the naive accuracy, from the values of metrics or of an evaluation."""
    lines.add("leak-aware", _measured(measured["leak_aware"]))
    lines.add("naive", _measured(measured["naive"]))
    threshold, rule = measured["near_duplicate_threshold"], measured["near_duplicate_rule"]
    lines.add("near-dupl.", f"from cosine {threshold:.3f} on: {rule}")
    if untested := measured["leak_aware"]["not_evaluable"]:
        lines.add("not tested", shortened(list(untested)))
    for note in measured["notes"]:
        lines.add("note", note)


def _measured(side: Mapping[str, Any]) -> str:
    scores = side["scores"]
    dropped = side["n_near_duplicates"]
    left_out = f", {dropped:,} left out as near-duplicates of training images" if dropped else ""
    if scores is None:
        remedy = ". Try a random split: --split-field drawn" if dropped else ""
        return f"not measurable: {side['reason']}{remedy}"
    low, high = scores["interval"]
    return (
        f"accuracy {scores['accuracy']:.1%} (95 %: {low:.1%} to {high:.1%}), macro F1 {scores['macro_f1']:.3f}, "
        f"top-3 {scores['top_3']:.1%}, of {side['n_test']:,} test images{left_out}"
    )


def hardest(scores: Scores, most: int = 3) -> str:
    """Return the classes with the lowest F1."""
    mistaken = sorted((score.f1, score.label) for score in scores.classes if score.f1 < 1)
    return ", ".join(f"{label} (F1 {f1:.2f})" for f1, label in mistaken[:most]) or "none: all are correct"


def shortened(words: Sequence[str], most: int = 8) -> str:
    """Return the first words as one line, and their number if there are more."""
    more = f", … {len(words):,} in total" if len(words) > most else ""
    return ", ".join(words[:most]) + more
