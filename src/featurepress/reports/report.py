"""Reports for people: how well a model tells pictures, and what a reduction keeps, each as a page in one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.evaluation import Baseline, Evaluation, Measured, Mistake
from featurepress.analysis.scores import Scores
from featurepress.features.feature_set import FeatureSet
from featurepress.reports.page import Figure, Page, Tile
from featurepress.reports.plots import (
    MOST_POINTS,
    components_for,
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

MOST_TILES = 24
MOST_ROWS = 200  # of classes in a table
_MOST_PAIRS = 10
_MOST_WORDS = 12  # of a list in a line
_SHARES = (0.80, 0.90, 0.95, 0.99)
_MODEL_WORDS = {
    "name": "model",
    "kind": "classifier",
    "n_features": "numbers a picture",
    "backbone": "backbone",
    "fingerprint": "feature space",
    "labels": "labels it knows",
    "trained_on": "trained on",
}


# -- how well a model tells pictures ---------------------------------------------------------------------------


def evaluation_page(evaluation: Evaluation, thumbnails: Thumbnails) -> str:
    """Write the report of an evaluation.

    Parameters
    ----------
    evaluation : Evaluation
        What was measured.
    thumbnails : callable
        Gives small JPEG pictures by their uris; of those that it leaves out the page says so. Called once, with the
        uris of at most 24 mistakes, and not at all if there is none.

    Returns
    -------
    str
        A page of HTML in one file.
    """
    best = evaluation.best
    page = Page(
        f"How well '{evaluation.model.get('name', 'the model')}' tells pictures",
        lead=f"Measured on pictures of {evaluation.features}.",
    )
    _accuracies(page, evaluation)
    if best.scores is not None:
        _measures(page, evaluation)
    _conditions(page, evaluation)
    if best.scores is not None:
        _baselines(page, evaluation.baselines, best.scores)
        _classes(page, best.scores)
        _mistakes(page, evaluation.mistakes, best.scores, thumbnails)
        _calibration(page, best.scores)
        if evaluation.learning_curve:
            page.section("Would more pictures help?")
            last = evaluation.learning_curve[-1]
            page.picture(
                learning_curve_plot(evaluation.learning_curve),
                alt=f"Learning curve up to {last.n_train:,} training pictures: {_percent(last.accuracy)}",
                caption="The same test pictures, told by models that were fitted to more and more training "
                "pictures. Where the curve still climbs, more pictures are likely to help.",
            )
    return page.html()


def _accuracies(page: Page, evaluation: Evaluation) -> None:
    """Write both accuracies side by side, and why they differ."""
    page.figures(
        [
            _accuracy("Accuracy, leak-aware: the one to go by", evaluation.leak_aware),
            _accuracy("Accuracy, naive: near-duplicates on both sides", evaluation.naive),
        ]
    )
    page.text(_why(evaluation))
    if evaluation.notes:
        page.points(evaluation.notes)


def _accuracy(name: str, measured: Measured) -> Figure:
    if measured.scores is None:
        return Figure(name, "not measurable", _sentence(measured.reason), is_absent=True)
    low, high = measured.scores.interval
    detail = f"between {_percent(low)} and {_percent(high)} with 95 % confidence; {measured.n_test:,} test pictures"
    return Figure(name, _percent(measured.scores.accuracy), detail)


def _why(evaluation: Evaluation) -> str:
    """Say what near-duplicates are, what was done with them, and what that changed."""
    aware, naive = evaluation.leak_aware, evaluation.naive
    words = [
        "A model that has seen a picture tells its near-duplicates, such as the next frame of the same thing, "
        "without having learned much: they flatter it. Two pictures of a label are taken for near-duplicates from "
        f"a cosine of {evaluation.near_duplicate_threshold:.3f} on: {_sentence(evaluation.near_duplicate_rule)}"
    ]
    if aware.n_near_duplicates:
        words.append(
            f"{aware.n_near_duplicates:,} of {naive.n_test:,} test images have one in training; the leak-aware "
            "test leaves them out."
        )
    elif aware.n_test == naive.n_test and aware.n_train == naive.n_train:
        words.append("No test picture has one in training.")
    else:
        words.append("The leak-aware split keeps them on one side together.")
    if aware.scores is not None and naive.scores is not None:
        points = 100 * (naive.scores.accuracy - aware.scores.accuracy)
        if points >= 0.05:
            words.append(f"Without them the accuracy is {points:.1f} points lower.")
        elif points <= -0.05:
            words.append(f"Without them the accuracy is {-points:.1f} points higher.")
        else:
            words.append("That changes the accuracy by less than a tenth of a point.")
    elif aware.scores is None and naive.scores is not None:
        words.append("What follows is the naive measurement: take it for an upper limit.")
    return " ".join(words)


def _measures(page: Page, evaluation: Evaluation) -> None:
    """Write all figures of both measurements."""
    both = (evaluation.leak_aware, evaluation.naive)
    rows: list[tuple[str, Callable[[Scores], str]]] = [
        ("accuracy", lambda scores: _percent(scores.accuracy)),
        ("95 % interval", lambda scores: _interval(scores.interval)),
        ("right class among the three most probable", lambda scores: _percent(scores.top_3)),
        ("macro F1: mean of all classes", lambda scores: f"{scores.macro_f1:.3f}"),
        ("calibration error (ECE)", lambda scores: f"{scores.calibration_error:.3f}"),
    ]
    page.table(
        ("", "leak-aware", "naive"),
        [
            ("training pictures", *(f"{one.n_train:,}" for one in both)),
            ("test pictures", *(f"{one.n_test:,}" for one in both)),
            ("left out as near-duplicates", *(f"{one.n_near_duplicates:,}" for one in both)),
            ("classes without a test picture", *(f"{len(one.not_evaluable):,}" for one in both)),
            *((name, *("—" if one.scores is None else say(one.scores) for one in both)) for name, say in rows),
        ],
        caption="Both measurements",
    )


def _conditions(page: Page, evaluation: Evaluation) -> None:
    """Write what was measured, and which classes could not be."""
    page.section("What was measured")
    facts = {_MODEL_WORDS.get(name, name): _words(value) for name, value in evaluation.model.items()}
    facts |= {"features of the pictures": evaluation.features, "training and test": evaluation.split}
    page.facts(facts, caption="Model and pictures")
    without = evaluation.best.not_evaluable
    if without:
        page.text(f"Not evaluable, since no test picture is left of them: {_words(without, MOST_ROWS)}.")


def _baselines(page: Page, baselines: Sequence[Baseline], scores: Scores) -> None:
    if not baselines:
        return
    page.section("Beside something simpler")
    rows = [("this model", _percent(scores.accuracy), _interval(scores.interval))]
    for one in baselines:
        if one.accuracy is None:
            rows.append((f"{one.name} (not measured: {one.reason})", "—", "—"))
        else:
            rows.append((one.name, _percent(one.accuracy), _interval(one.interval) if one.interval else "—"))
    page.table(("", "accuracy", "95 % interval"), rows, caption="What far simpler things reach")


def _classes(page: Page, scores: Scores) -> None:
    """Write what is taken for what, and how well each class is told."""
    page.section("Which classes are mixed up")
    counts = np.array(scores.confusion, np.int64)
    pairs = _pairs(counts, scores.labels)
    n_wrong = int(counts.sum() - np.trace(counts))
    said = "no mistakes" if not pairs else f"most often '{pairs[0][0]}' is told as '{pairs[0][1]}'"
    page.picture(
        confusion_plot(counts, scores.labels),
        alt=f"Confusion matrix of {len(scores.labels):,} classes: {said}",
        caption="Row: the class that is right, with its test pictures; column: the class that is told. Right ones "
        "are blue, mistakes orange; grey rows have no test picture.",
    )
    if pairs:
        page.table(
            ("right", "told", "pictures", "share of the class"),
            pairs,
            caption=f"What is mixed up most, of {n_wrong:,} mistakes",
            n_words=2,
        )
    page.section("Each class, the worst first")
    worst = sorted(scores.classes, key=lambda one: (one.f1, -one.n_samples, one.label))
    of = "" if len(worst) <= MOST_ROWS else f": {MOST_ROWS} of {len(worst):,}"
    page.table(
        ("class", "test pictures", "precision", "recall", "F1"),
        [
            (one.label, f"{one.n_samples:,}", _percent(one.precision), _percent(one.recall), f"{one.f1:.3f}")
            for one in worst[:MOST_ROWS]
        ],
        caption=f"Precision: how many of those told as the class are of it; recall: how many of it are found{of}",
    )


def _pairs(counts: npt.NDArray[np.int64], labels: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Give the most frequent mistakes: right class, told class, pictures, and their share of the right class."""
    wrong, sums = counts.copy(), counts.sum(axis=1)
    np.fill_diagonal(wrong, 0)
    most = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
    places = [(int(place) // len(labels), int(place) % len(labels)) for place in most]
    return [
        (labels[i], labels[j], f"{wrong[i, j]:,}", _percent(wrong[i, j] / sums[i]))
        for i, j in places
        if wrong[i, j]
    ]


def _mistakes(page: Page, mistakes: Sequence[Mistake], scores: Scores, thumbnails: Thumbnails) -> None:
    """Write the most confident mistakes, with small pictures."""
    page.section("The most confident mistakes")
    if not mistakes:
        page.text("There is none.")
        return
    shown = mistakes[:MOST_TILES]
    n_wrong = max(len(mistakes), round(scores.n_samples * (1 - scores.accuracy)))
    page.text(f"{len(shown):,} of {n_wrong:,}, the most confident first. A wrong label is often among them.")
    pictures = thumbnails([one.uri for one in shown])
    page.tiles(
        Tile(
            pictures.get(one.uri),
            f"A picture of '{one.label}' that was told as '{one.told}'",
            f"told: {one.told}",
            (f"is: {one.label}", f"{_percent(one.probability)} sure", one.uri),
        )
        for one in shown
    )


def _calibration(page: Page, scores: Scores) -> None:
    page.section("Can its confidence be believed?")
    page.picture(
        reliability_plot(scores.reliability),
        alt=f"Reliability diagram: expected calibration error {scores.calibration_error:.3f}",
        caption="Of the predictions that are about so confident, so many are right. The expected calibration "
        f"error is {scores.calibration_error:.3f}: the mean distance from the dashed line, by pictures.",
    )


# -- what a reduction keeps ------------------------------------------------------------------------------------


def reduction_plots(ratios: npt.ArrayLike, Z: Features, labels: npt.NDArray[np.str_] | None) -> dict[str, bytes]:
    """Draw the pictures of a reduction: ``variance`` and ``map``, as PNG; arguments as of `reduction_page`."""
    return {"variance": variance_plot(ratios), "map": map_plot(Z, labels)}


def reduction_page(
    ratios: npt.ArrayLike,
    Z: Features,
    labels: npt.NDArray[np.str_] | None,
    *,
    facts: Mapping[str, str],
    pictures: Mapping[str, bytes] | None = None,
) -> str:
    """Write the report of a reduction.

    Parameters
    ----------
    ratios : array (n_components,)
        Shares of the variance that the components kept explain.
    Z : array (n_samples, n_components) float32
        Reduced rows that are drawn; two components are enough.
    labels : array (n_samples,) of str, or None
        Their labels.
    facts : mapping of str to str
        What a reader must know: where the set lies, how many rows it has, and so on.
    pictures : mapping of str to bytes, optional
        What `reduction_plots` gave of the same, if it is drawn already.

    Returns
    -------
    str
        A page of HTML in one file.
    """
    shares = np.asarray(ratios, np.float64)
    drawn = reduction_plots(shares, Z, labels) if pictures is None else pictures
    kept = float(shares.sum())
    page = Page(
        "What the reduction keeps", lead=f"{len(shares):,} components keep {_percent(kept)} of the variance."
    )
    page.facts(facts, caption="The reduced set")
    page.section("How many components")
    page.picture(
        drawn["variance"],
        alt=f"Variance by component: {len(shares):,} components keep {_percent(kept)}",
        caption="Left: each component; right: the first ones together.",
    )
    page.table(
        ("share of the variance", "components"),
        [(f"{100 * share:.0f} %", _components(shares, share)) for share in _SHARES],
        caption=f"How many of the {len(shares):,} kept components are needed for a share of the variance of all "
        "features",
    )
    page.section("Map")
    coloured = "coloured by label" if labels is not None else "without labels"
    page.picture(
        drawn["map"],
        alt=f"Map of {len(Z):,} pictures by their first two components, {coloured}",
        caption=f"The first two components explain {_percent(float(shares[:2].sum()))} of the variance: what is "
        "apart here is apart; what is together here may still be apart in the others.",
    )
    return page.html()


def map_rows(features: FeatureSet, most: int = MOST_POINTS) -> tuple[Features, npt.NDArray[np.str_] | None]:
    """Give what a map shows of a reduced set.

    Parameters
    ----------
    features : FeatureSet
        Read in batches, with bounded memory.
    most : int
        So many rows at most, from everywhere in the set; 20,000 by default, as many as a map draws.

    Returns
    -------
    Z : array (n_samples, 2) float32
        The first two components of the rows, in order; or the one that there is.
    labels : array (n_samples,) of str, or None
        The label of each, "" for none; None for a set without labels.
    """
    n_rows = len(features)
    chosen = np.arange(n_rows) if n_rows <= most else np.arange(most) * n_rows // most
    Z, labels, start = [], [], 0
    for batch in features.batches():
        stop = start + len(batch.X)
        own = chosen[slice(*np.searchsorted(chosen, (start, stop)))] - start
        Z.append(batch.X[own, :2])
        if batch.y is not None:
            labels.append(batch.y[own])
        start = stop
    return np.concatenate(Z), np.concatenate(labels) if labels else None


def _components(shares: npt.NDArray[np.float64], share: float) -> str:
    n = components_for(shares, share)
    return f"{n:,}" if n is not None else f"more than {len(shares):,}"


# -- words -----------------------------------------------------------------------------------------------------


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {_percent(interval[1])}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _words(value: Any, most: int = _MOST_WORDS) -> str:
    """Give a value as a reader likes it."""
    if isinstance(value, Mapping):
        return "; ".join(f"{str(name).replace('_', ' ')}: {_words(one)}" for name, one in value.items()) or "—"
    if isinstance(value, list | tuple):
        first = ", ".join(map(_words, value[:most]))
        return first if len(value) <= most else f"{first} and {len(value) - most:,} more"
    if value is None or value == "":
        return "—"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
