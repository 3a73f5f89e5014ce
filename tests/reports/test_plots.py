"""Plots are valid images, accept any labels, and leave matplotlib's global state alone."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from featurepress.analysis.evaluation import LearningPoint
from featurepress.analysis.scores import Bin
from featurepress.errors import AnalysisError
from featurepress.reports import plots
from featurepress.reports.plots import (
    CONFUSION_CLASSES,
    MAP_POINTS,
    components_for,
    confusion_plot,
    drawn_rows,
    learning_curve_plot,
    map_plot,
    reliability_plot,
    shown_classes,
    variance_plot,
)

# Difficult labels: formulas, markup, leading underscores, other scripts, control characters, very long texts.
LABELS = [
    "$x_1",
    r"$\frac{1}",
    "<b>&",
    "_hidden",
    "苹果",
    "תפוח",
    "\U0001f34e",
    "a\nb",
    "\x00\ud800",
    "x" * 300,
    " ",
]
BINS = [Bin(10, 0.35, 0.2), Bin(40, 0.66, 0.6), Bin(500, 0.97, 0.95)]
POINTS = [LearningPoint(10, 0.4, (0.3, 0.5)), LearningPoint(1_000, 1.0, (0.95, 1.0))]


def pixels(png: bytes) -> npt.NDArray[np.uint8]:
    """Decode a PNG with a white background."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        found = np.asarray(image.convert("RGB"))
    assert found[0, 0].min() >= 250
    return found


def n_colours(png: bytes) -> int:
    """Count the colours that are not grey."""
    numbers = np.unique(pixels(png).astype(np.int64) @ (1 << 16, 1 << 8, 1))
    colours = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255])
    return int((np.ptp(colours, axis=0) > 60).sum())


def rows(n: int, n_components: int = 2) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(n, n_components)).astype(np.float32)


def mixed(n: int, n_wrong: int, n_right: int = 20) -> npt.NDArray[np.int64]:
    """Return a confusion matrix in which the first classes are confused with the next one."""
    counts = np.eye(n, dtype=np.int64) * n_right
    counts[np.arange(n_wrong), np.arange(n_wrong) + 1] = np.arange(n_wrong, 0, -1)
    return counts


@pytest.mark.parametrize(
    "draw",
    [
        lambda: variance_plot([0.5, 0.3, 0.1]),
        lambda: variance_plot(0.9 ** np.arange(500) * 0.1),
        lambda: map_plot(rows(300)),
        lambda: map_plot(rows(300), np.array(["a", "b", ""] * 100)),
        lambda: confusion_plot(mixed(3, 1), ["a", "b", "c"]),
        lambda: confusion_plot(mixed(60, 30), [f"class {i}" for i in range(60)]),
        lambda: reliability_plot(BINS),
        lambda: learning_curve_plot(POINTS),
    ],
)
def test_a_plot_is_small_sharp_and_not_blank(draw: Callable[[], bytes]) -> None:
    png = draw()
    height, width, _ = pixels(png).shape
    assert min(height, width) >= 700
    assert n_colours(png) >= 3
    assert len(png) < 300_000
    assert draw() == png


@pytest.mark.parametrize(
    "draw",
    [
        lambda: variance_plot([0.0]),
        lambda: variance_plot([1.0]),
        lambda: map_plot(rows(1)),
        lambda: map_plot(np.zeros((5, 3), np.float32), np.array(["same"] * 5)),
        lambda: map_plot(rows(5), np.array([""] * 5)),
        lambda: map_plot(rows(50, 1), np.array(["a", "b"] * 25)),
        lambda: confusion_plot([[5]], ["only"]),
        lambda: confusion_plot(np.zeros((2, 2)), ["never", "tested"]),
        lambda: reliability_plot([Bin(3, 1.0, 0.0)]),
        lambda: learning_curve_plot(POINTS[1:]),
    ],
)
def test_plots_of_little_data(draw: Callable[[], bytes]) -> None:
    assert pixels(draw()).min() < 100


def test_any_labels_are_drawn_without_a_warning() -> None:
    n = len(LABELS)
    assert n_colours(map_plot(rows(10 * n), np.array(LABELS * 10, object).astype(np.str_))) >= 3
    assert n_colours(confusion_plot(mixed(n, n - 1), LABELS)) >= 3


def test_missing_characters_are_escaped_and_long_labels_shortened() -> None:
    lettering = plots._Lettering(LABELS)
    assert [lettering.of(text) for text in ("$x_1", "<b>&", "_hidden", "a\nb")] == [
        "$x_1",
        "<b>&",
        "_hidden",
        "a\\nb",
    ]
    assert lettering.of("\x00\ud800") == "\\x00\\ud800"
    assert lettering.of("x" * 300) == "x" * 17 + "…" + "x" * 10
    private = "\ue123"
    assert plots._Lettering([private]).of(private) == "\\ue123"


def test_components_that_explain_a_share() -> None:
    shares = [0.5, 0.3, 0.1, 0.05]
    assert [components_for(shares, share) for share in (0.5, 0.51, 0.8, 0.9, 0.95, 0.96)] == [1, 2, 2, 3, 4, None]
    assert variance_plot(shares) != variance_plot([0.5, 0.3, 0.1, 0.04])


def test_a_map_draws_a_sample_of_many_rows() -> None:
    assert sorted(drawn_rows(50)) == list(range(50))
    drawn = drawn_rows(MAP_POINTS + 5_000)
    assert len(set(drawn.tolist())) == MAP_POINTS
    assert (np.bincount(drawn // 5_000) > 3_500).all()  # evenly over the rows
    Z = np.zeros((MAP_POINTS + 5_000, 2), np.float32)
    assert map_plot(Z) != map_plot(Z[:MAP_POINTS])  # the titles differ


def test_a_map_colours_the_most_frequent_labels() -> None:
    labels = np.array([f"label {i}" for i in range(30) for _ in range(30 - i)] + [""] * 100)
    assert plots._most_frequent(labels) == sorted(f"label {i}" for i in range(20))
    coloured = n_colours(map_plot(rows(len(labels)), labels))
    assert coloured > n_colours(map_plot(rows(len(labels)))) + 5


def test_a_confusion_plot_shows_all_of_few_classes() -> None:
    shown, title = shown_classes(mixed(CONFUSION_CLASSES, 3))
    assert (shown.tolist(), "%" in title) == (list(range(CONFUSION_CLASSES)), True)


def test_a_confusion_plot_shows_the_classes_with_mistakes_of_many() -> None:
    shown, title = shown_classes(mixed(100, 7))
    assert (shown.tolist(), title) == (list(range(8)), "The 8 of 100 classes with mistakes, in %")
    shown, title = shown_classes(mixed(100, 90))
    assert (shown.tolist(), title) == (list(range(40)), "The 40 most confused of 100 classes, in %")
    shown, title = shown_classes(mixed(100, 0))
    assert (len(shown), title) == (40, "No mistakes: 40 of 100 classes, in %")


def test_predictions_of_hidden_classes_have_a_column() -> None:
    labels = [f"class {i}" for i in range(100)]
    counts = mixed(100, 90)
    counts[:40, 99] = 0
    without = pixels(confusion_plot(counts, labels))
    counts[:40, 99] = 1
    assert pixels(confusion_plot(counts, labels)).shape == without.shape
    assert (pixels(confusion_plot(counts, labels)) != without).any()


@pytest.mark.parametrize(("counts", "labels"), [([[1, 2]], ["a"]), ([[1]], ["a", "b"]), ([], [])])
def test_a_matrix_of_another_size_than_its_labels_is_refused(counts: list[list[int]], labels: list[str]) -> None:
    with pytest.raises(AnalysisError, match="one row and one column per label"):
        confusion_plot(counts, labels)


def test_global_state_of_matplotlib_is_unchanged() -> None:
    program = """
import sys
import featurepress.reports.plots as plots
assert "matplotlib" not in sys.modules
plots.variance_plot([0.5, 0.4])
assert "matplotlib.pyplot" not in sys.modules
import matplotlib
before = dict(matplotlib.rcParams)
before["text.usetex"] = matplotlib.rcParams["text.usetex"] = True  # as a user may set it
plots.confusion_plot([[1, 0], [1, 2]], ["$a", "b"])
assert dict(matplotlib.rcParams) == before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120)
