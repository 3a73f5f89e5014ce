"""HTML reports: the evaluation of a model, and what a reduction keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.evaluation import Baseline, Evaluation
from featurepress.analysis.scores import Scores
from featurepress.features.feature_set import FeatureSet
from featurepress.reports.page import count, interval, percent, render, words
from featurepress.reports.plots import (
    MAP_POINTS,
    components_text,
    confusion_plot,
    learning_curve_plot,
    map_plot,
    reliability_plot,
    variance_plot,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Features

Thumbnails = Callable[[Sequence[str]], Mapping[str, bytes]]

TILES = 24  # mistakes shown at most
CLASS_ROWS = 200  # classes in a table at most
_PAIRS = 10
_SHARES = (0.80, 0.90, 0.95, 0.99)
_FACTS = {"name": "model", "kind": "classifier", "n_features": "features per image", "labels": "classes"}


def evaluation_page(evaluation: Evaluation, thumbnails: Thumbnails) -> str:
    """Return the report of an evaluation, a self-contained HTML page.

    `thumbnails` returns small JPEG images by uri; the page marks those that it leaves out as not available. It is
    called once, with the uris of at most 24 mistakes, and not at all if there are no mistakes.
    """
    facts = {_FACTS.get(name, name.replace("_", " ")): words(value) for name, value in evaluation.model.items()}
    facts |= {"test features": evaluation.features, "training and test": evaluation.split}
    scores = evaluation.best.scores
    context = {"evaluation": evaluation, "scores": scores, "facts": list(facts.items())}
    if scores is not None:
        context |= _results(evaluation, scores, thumbnails)
    return render("evaluation.html", **context)


def _results(evaluation: Evaluation, scores: Scores, thumbnails: Thumbnails) -> dict[str, Any]:
    """Return the template's variables that need scores."""
    counts, curve = np.array(scores.confusion, np.int64), evaluation.learning_curve
    mistakes = evaluation.mistakes[:TILES]
    classes = sorted(scores.classes, key=lambda result: (result.f1, -result.n_samples, result.label))
    n_wrong = round(scores.n_samples * (1 - scores.accuracy))
    return {
        "measurements": _measurements(evaluation),
        "baselines": [
            ("this model", percent(scores.accuracy), interval(scores.interval)),
            *map(_baseline, evaluation.baselines),
        ],
        "pairs": _pairs(counts, scores.labels),
        "n_wrong": int(counts.sum() - np.trace(counts)),
        "classes": [
            (result.label, count(result.n_samples), result.precision, result.recall, f"{result.f1:.3f}")
            for result in classes[:CLASS_ROWS]
        ],
        "mistakes": mistakes,
        "n_mistakes": max(len(evaluation.mistakes), n_wrong),
        "thumbnails": thumbnails([mistake.uri for mistake in mistakes]) if mistakes else {},
        "plots": {
            "confusion": confusion_plot(counts, scores.labels),
            "reliability": reliability_plot(scores.reliability),
            "learning_curve": learning_curve_plot(curve) if curve else None,
        },
    }


def _measurements(evaluation: Evaluation) -> Iterator[tuple[str, str, str]]:
    """Yield the rows of the table that compares the two measurements."""
    aware, naive = evaluation.leak_aware, evaluation.naive
    yield "training images", count(aware.n_train), count(naive.n_train)
    yield "test images", count(aware.n_test), count(naive.n_test)
    yield "left out as near-duplicates", count(aware.n_near_duplicates), count(naive.n_near_duplicates)
    yield "classes without test images", count(len(aware.not_evaluable)), count(len(naive.not_evaluable))
    texts: dict[str, Callable[[Scores], str]] = {
        "accuracy": lambda scores: percent(scores.accuracy),
        "95 % interval": lambda scores: interval(scores.interval),
        "top-3 accuracy": lambda scores: percent(scores.top_3),
        "macro F1 (mean over classes)": lambda scores: f"{scores.macro_f1:.3f}",
        "expected calibration error": lambda scores: f"{scores.calibration_error:.3f}",
    }
    for name, text in texts.items():
        left, right = ("—" if side.scores is None else text(side.scores) for side in (aware, naive))
        yield name, left, right


def _baseline(baseline: Baseline) -> tuple[str, str, str]:
    if baseline.accuracy is None:
        return f"{baseline.name} (not measured: {baseline.reason})", "—", "—"
    return baseline.name, percent(baseline.accuracy), interval(baseline.interval) if baseline.interval else "—"


def _pairs(counts: npt.NDArray[np.int64], labels: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Return the most frequent mistakes: true class, predicted class, images, share of the true class."""
    wrong, sums = counts.copy(), counts.sum(axis=1)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    cells = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        (labels[i], labels[j], count(int(wrong[i, j])), percent(wrong[i, j] / sums[i]))
        for i, j in cells
        if wrong[i, j]
    ]


def reduction_report(
    ratios: npt.ArrayLike, Z: Features, labels: npt.NDArray[np.str_] | None, facts: Mapping[str, str]
) -> tuple[str, dict[str, bytes]]:
    """Return the report of a reduction, a self-contained HTML page, and its plots as PNG.

    `ratios` are the shares of the variance that the components explain. `Z`, reduced rows, and `labels` are for
    the map, as `map_rows` returns them. `facts` are about the reduced set, such as its location and its number of
    rows.
    """
    shares = np.asarray(ratios, np.float64)
    plots = {"variance": variance_plot(shares), "map": map_plot(Z, labels)}
    page = render(
        "reduction.html",
        ratios=shares.tolist(),
        facts=facts,
        plots=plots,
        shares=[(f"{100 * share:.0f} %", components_text(shares, share)) for share in _SHARES],
        n_samples=len(Z),
        has_labels=labels is not None,
    )
    return page, plots


def map_rows(features: FeatureSet, limit: int = MAP_POINTS) -> tuple[Features, npt.NDArray[np.str_] | None]:
    """Return the rows of a reduced set that its map shows, and their labels.

    Of more than `limit` rows, these are spread evenly over the set, which is read in batches. The rows are an
    array (n_samples, 2) float32 of the first two components, or (n_samples, 1) if there is only one. The labels are
    an array (n_samples,) of str, "" for none; None for a set without labels.
    """
    n_rows = len(features)
    chosen = np.arange(n_rows) if n_rows <= limit else np.arange(limit) * n_rows // limit
    Z, labels, start = [], [], 0
    for batch in features.batches():
        stop = start + len(batch.X)
        rows = chosen[slice(*np.searchsorted(chosen, (start, stop)))] - start
        Z.append(batch.X[rows, :2])
        if batch.y is not None:
            labels.append(batch.y[rows])
        start = stop
    return np.concatenate(Z), np.concatenate(labels) if labels else None
