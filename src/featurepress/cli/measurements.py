"""How the commands show a trained model, and what was measured of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurepress.cli.output import Lines

if TYPE_CHECKING:
    from featurepress.analysis.scores import Scores
    from featurepress.learning.model import TrainedModel


def model_lines(model: TrainedModel) -> Lines:
    """Say what a model is and how good it was when it was trained."""
    lines, classifier, trained_on = Lines(), model.classifier, model.trained_on
    strength = "" if classifier.regularization_ is None else f", regularisation {classifier.regularization_:g}"
    lines.add("model", f"{classifier.kind}{strength}, of {model.backbone.n_features:,} features a picture")
    lines.add("labels", shortened(model.labels.tolist()))
    lines.add(
        "fitted", f"to {classifier.n_samples_:,} pictures of {trained_on['features']}; split {trained_on['split']}"
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
    """Say the same as JSON values."""
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
    """Add the naive and the leak-aware figure, from the values of metrics or of an evaluation."""
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
        way = ". A random split may be: --split-field drawn" if dropped else ""
        return f"not measurable: {side['reason']}{way}"
    low, high = scores["interval"]
    return (
        f"accuracy {scores['accuracy']:.1%} (95 %: {low:.1%} to {high:.1%}), macro F1 {scores['macro_f1']:.3f}, "
        f"top-3 {scores['top_3']:.1%}, of {side['n_test']:,} test images{left_out}"
    )


def hardest(scores: Scores, most: int = 3) -> str:
    """Return the classes with the lowest F1."""
    worst = sorted((one for one in scores.classes if one.f1 < 1), key=lambda one: (one.f1, one.label))[:most]
    return ", ".join(f"{one.label} (F1 {one.f1:.2f})" for one in worst) or "none: all are classified correctly"


def shortened(words: Sequence[str], most: int = 8) -> str:
    """Return some words as one line, and their number if there are too many."""
    more = f", … {len(words):,} in all" if len(words) > most else ""
    return ", ".join(words[:most]) + more
