"""Plots as PNG bytes: explained variance, map, confusion matrix, reliability diagram, learning curve.

They have twice the pixels of their size on the page, a white background, and do not touch matplotlib's global state
(scikit-learn's displays import pyplot, which does). Labels may be any text: they are never parsed as formulas, and
characters that no installed font has are escaped.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.errors import AnalysisError

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.analysis.evaluation import LearningPoint
    from featurepress.analysis.scores import Bin

MAP_POINTS = 20_000  # rows on a map: more hide one another
NAMED_LABELS = 20  # labels with their own colour on a map
CONFUSION_CLASSES = 40  # in a confusion matrix: more cannot be read

DOTS_PER_INCH = 200  # twice the 100 dots at which the sizes here are meant
_FONT, _FONT_SIZE, _SMALL = "DejaVu Sans", 9, 8  # matplotlib includes this font
_MAX_LABEL_LENGTH = 28
_CHARACTERS_PER_INCH = 13  # at the small font size
_PALETTE_SIZE = 128  # colours of a PNG: a quarter of the bytes, without a visible difference
_INK, _FAINT, _GREY, _BLUE, _ORANGE = "#333333", "#dddddd", "#b8b8b8", "#1f5fa8", "#c8501e"
_LABEL_COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#3d3d3d", "#bcbd22", "#17becf"),
    *("#7fb2e5", "#ffc078", "#8fd694", "#ff9c99", "#c5b0d5", "#c49c94", "#f7b6d2", "#a0a0a0", "#dbdb8d", "#9edae5"),
)
_MARKERS = ("o", "^")  # for the ten dark and the ten light colours


def variance_plot(ratios: npt.ArrayLike) -> bytes:
    """Return a plot of the variance that each component explains, and the first ones together.

    `ratios` are shares of the variance: array (n_components,), largest first. The PNG has 1800 x 760 pixels.
    """
    shares = np.asarray(ratios, np.float64)
    lettering, figure = _Lettering(()), _figure(9, 3.8)
    each, together = figure.subplots(1, 2)
    numbers = np.arange(1, len(shares) + 1)
    if len(shares) <= 40:
        each.bar(numbers, shares, color=_BLUE, width=0.8)
    else:
        each.fill_between(numbers, shares, step="mid", color=_BLUE, linewidth=0)
    _set_labels(each, "Each component", "component", "share of the variance")
    each.set_xlim(0.4, len(shares) + 0.6)
    each.set_ylim(0, 1.05 * float(shares.max(initial=0.0)) or 1.0)
    reached = np.cumsum(shares)
    together.plot(numbers, reached, color=_BLUE, linewidth=1.8, marker="o", markersize=4 if len(shares) < 20 else 0)
    notes = []
    for share, colour in ((0.90, _ORANGE), (0.95, _INK)):
        together.axhline(share, color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
        n = components_for(shares, share)
        if n is not None:
            together.plot([n], [reached[n - 1]], "o", color=colour, markersize=6)
        notes.append(f"{100 * share:.0f} %: {components_text(shares, share)} components")
    _set_labels(together, "First components together", "number of components", "share of the variance")
    together.text(0.97, 0.06, "\n".join(notes), transform=together.transAxes, ha="right", fontsize=_FONT_SIZE + 1)
    together.set_xlim(0, len(shares) + 0.6)
    together.set_ylim(0, 1.03)
    for axes in (each, together):
        _format_percent(axes.yaxis)
        _format_integers(axes.xaxis)
    return lettering.png(figure)


def components_for(ratios: npt.ArrayLike, share: float) -> int | None:
    """Return how many of the first components explain a share of the variance, or None if all explain less."""
    reached = np.cumsum(np.asarray(ratios, np.float64))
    enough = np.flatnonzero(reached >= share - 1e-12)
    return int(enough[0]) + 1 if len(enough) else None


def components_text(ratios: npt.ArrayLike, share: float) -> str:
    """Return the number of components of `components_for` as text."""
    n = components_for(ratios, share)
    return f"{n:,}" if n is not None else f"more than {len(np.asarray(ratios)):,}"


def map_plot(Z: npt.NDArray[Any], labels: npt.NDArray[np.str_] | None = None) -> bytes:
    """Return a scatter plot of the first two components of each row, coloured by label.

    `Z` are reduced rows: array (n_samples, n_components); with one component, the vertical position is random.
    `labels`: array (n_samples,) of str, "" for none. The 20 most frequent labels have a colour; the others are
    grey. The PNG has 1760 x 1160 pixels. Of more than 20,000 rows it shows a random sample of 20,000, always the
    same, and says so.
    """
    rows = drawn_rows(len(Z))
    drawn = len(rows)
    x = Z[rows, 0]
    y = Z[rows, 1] if Z.shape[1] > 1 else np.random.default_rng(0).uniform(-1, 1, drawn)
    lettering, figure = _Lettering(() if labels is None else np.unique(labels)), _figure(8.8, 5.8)
    axes = figure.subplots()
    size = float(np.clip(40_000 / max(1, drawn), 4.0, 26.0))
    if labels is None:
        axes.scatter(x, y, s=size, color=_BLUE, alpha=0.6, linewidths=0)
    else:
        _by_label(axes, x, y, labels[rows], most_frequent=_most_frequent(labels), size=size, lettering=lettering)
    title = f"{len(Z):,} images" if drawn == len(Z) else f"Random sample of {drawn:,} of {len(Z):,} images"
    second = "component 2" if Z.shape[1] > 1 else "(random: there is only one component)"
    _set_labels(axes, title, "component 1", second)
    if Z.shape[1] > 1:
        axes.set_aspect("equal", adjustable="datalim")
    else:
        axes.set_yticks([])
    return lettering.png(figure)


def drawn_rows(n_samples: int) -> npt.NDArray[np.int64]:
    """Return the rows that a map shows, in random order: otherwise the last label would hide the others."""
    return np.random.default_rng(0).permutation(n_samples)[:MAP_POINTS]


def _most_frequent(labels: npt.NDArray[np.str_]) -> list[str]:
    """Return the labels that get a colour, in alphabetical order."""
    names, counts = np.unique(labels[labels != ""], return_counts=True)
    return sorted(names[np.argsort(-counts, kind="stable")][:NAMED_LABELS].tolist())


def _by_label(
    axes: Any,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    labels: npt.NDArray[np.str_],
    *,
    most_frequent: list[str],
    size: float,
    lettering: _Lettering,
) -> None:
    """Draw points in the colours of their labels, with a legend."""
    number = {label: i for i, label in enumerate(most_frequent)}
    numbers = np.array([number.get(label, -1) for label in labels.tolist()], int)
    others = numbers < 0
    keys = []
    if others.any():
        axes.scatter(x[others], y[others], s=size, color=_GREY, alpha=0.5, linewidths=0)
    for shape, marker in enumerate(_MARKERS):
        chosen = numbers // 10 == shape
        colours = np.array(_LABEL_COLOURS)[numbers[chosen]]
        axes.scatter(x[chosen], y[chosen], s=size, c=colours, marker=marker, alpha=0.85, linewidths=0)
    for i, label in enumerate(most_frequent):
        keys.append((_LABEL_COLOURS[i], _MARKERS[i // 10], lettering.of(label)))
    n_others = len(set(labels[others].tolist()) - {""})
    if n_others:
        keys.append((_GREY, "o", f"{n_others:,} other labels"))
    if (labels == "").any():
        keys.append((_GREY, "o", "no label"))
    _legend(axes.figure, keys)


def _legend(figure: Any, keys: Sequence[tuple[str, str, str]]) -> None:
    """Draw a legend on the right. Texts are set last: matplotlib ignores entries that start with an underscore."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=6) for colour, marker, _ in keys
    ]
    legend = figure.legend(handles, ["-"] * len(keys), loc="outside right upper", frameon=False, fontsize=_SMALL)
    for text, (_, _, label) in zip(legend.get_texts(), keys, strict=True):
        text.set_text(label)


def confusion_plot(confusion: npt.ArrayLike, labels: Sequence[str]) -> bytes:
    """Return a plot of a confusion matrix, each row in shares of its sum.

    `confusion` are counts: array (n_classes, n_classes), rows are true classes, columns predicted ones, both in
    the order of `labels`. Of more than 40 classes the plot shows those with mistakes, at most the 40 most confused,
    and says so. The PNG grows with the number of classes. AnalysisError if there are no classes, or the matrix has
    another shape.
    """
    counts = np.asarray(confusion, np.int64)
    if not len(labels) or counts.shape != (len(labels), len(labels)):
        raise AnalysisError(
            f"A confusion matrix must have one row and one column per label. Got {len(labels)} labels and an array "
            f"of shape {counts.shape}."
        )
    shown, title = shown_classes(counts)
    sums = counts.sum(axis=1)[shown]
    part = counts[np.ix_(shown, shown)]
    rest = sums - part.sum(axis=1)
    columns = [labels[i] for i in shown]
    if rest.any():  # predictions of classes that are not shown
        part, columns = np.column_stack([part, rest]), [*columns, "(all others)"]
    untested = np.broadcast_to((sums == 0)[:, None], part.shape)
    shares = np.ma.MaskedArray(part / np.maximum(sums, 1)[:, None], untested)
    n, lettering = len(shown), _Lettering(labels)
    side = max(3.4, 0.24 * n)
    figure = _figure(side + 2.4, side + 1.6)
    axes = figure.subplots()
    _cells(axes, shares, small=n > 15)
    axes.set_yticks(range(n), [f"{lettering.of(labels[i])} ({sums[k]:,})" for k, i in enumerate(shown)])
    axes.set_xticks(range(len(columns)), [lettering.of(column) for column in columns])
    is_long = max(map(len, columns)) > _CHARACTERS_PER_INCH * side / len(columns)
    axes.tick_params(axis="x", labelrotation=90 if is_long else 0)
    axes.tick_params(length=0, labelsize=_SMALL)
    _set_labels(axes, title, "predicted class", "true class (test images)")
    axes.grid(False)
    return lettering.png(figure)


def shown_classes(counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], str]:
    """Return the indices of the classes that a confusion plot shows, and its title."""
    n = len(counts)
    if n <= CONFUSION_CLASSES:
        return np.arange(n), "Predictions for each true class, in %"
    wrong = counts * ~np.eye(n, dtype=bool)
    mixed = np.flatnonzero(wrong.sum(axis=0) + wrong.sum(axis=1))
    if not len(mixed):
        return np.arange(CONFUSION_CLASSES), f"No mistakes: {CONFUSION_CLASSES} of {n:,} classes, in %"
    if len(mixed) <= CONFUSION_CLASSES:
        return mixed, f"The {len(mixed)} of {n:,} classes with mistakes, in %"
    chosen: set[int] = set()
    for cell in np.argsort(-wrong, axis=None, kind="stable"):
        pair = set(divmod(int(cell), n))
        if len(chosen | pair) > CONFUSION_CLASSES:
            break
        chosen |= pair
    return np.array(sorted(chosen)), f"The {len(chosen)} most confused of {n:,} classes, in %"


def _cells(axes: Any, shares: Any, *, small: bool) -> None:
    """Draw correct shares in blue and mistakes in orange, with numbers from 0.5 % on."""
    diagonal, style = np.eye(*shares.shape) > 0, {"vmin": 0, "interpolation": "nearest", "aspect": "equal"}
    axes.imshow(np.ma.masked_where(~diagonal, shares), cmap="Blues", vmax=1, **style)
    axes.imshow(np.ma.masked_where(diagonal | (shares.filled(0.0) == 0), shares), cmap="Oranges", vmax=0.7, **style)
    for untested in np.flatnonzero(shares.mask.all(axis=1)):
        axes.axhspan(untested - 0.5, untested + 0.5, color="#dcdcdc", linewidth=0)
    for edges, lines in ((shares.shape[0], axes.axhline), (shares.shape[1], axes.axvline)):
        for edge in range(edges - 1):
            lines(edge + 0.5, color="#e4e4e4", linewidth=0.6)
    for (i, j), share in np.ndenumerate(shares.filled(0.0)):
        if share >= 0.005:
            colour = "white" if share > 0.55 else _INK
            axes.text(
                j, i, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=6.5 if small else 8
            )


def reliability_plot(bins: Sequence[Bin]) -> bytes:
    """Return a reliability diagram: accuracy of the predictions by confidence, in ascending order.

    The PNG has 1120 x 960 pixels.
    """
    lettering, figure = _Lettering(()), _figure(5.6, 4.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    confidence = [group.confidence for group in bins]
    upper.plot([0, 1], [0, 1], color=_GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    upper.plot(confidence, [group.accuracy for group in bins], color=_BLUE, marker="o", markersize=6, linewidth=1.6)
    note = "dashed: accuracy equals confidence\nbelow: overconfident"
    upper.text(0.97, 0.05, note, transform=upper.transAxes, ha="right", color="#777777", fontsize=_SMALL)
    _set_labels(upper, "Accuracy by confidence", "", "accuracy")
    lower.bar(confidence, [group.n_samples for group in bins], width=0.06, color=_BLUE)
    _set_labels(lower, "", "confidence", "images")
    upper.set(xlim=(0, 1.02), ylim=(0, 1.04))
    for axis in (upper.yaxis, lower.xaxis):
        _format_percent(axis)
    _format_integers(lower.yaxis, max_ticks=3)
    return lettering.png(figure)


def learning_curve_plot(points: Sequence[LearningPoint]) -> bytes:
    """Return a learning curve: accuracy by number of training images, in ascending order.

    The PNG has 1240 x 760 pixels.
    """
    lettering, figure = _Lettering(()), _figure(6.2, 3.8)
    axes = figure.subplots()
    sizes = [point.n_train for point in points]
    low, high = (np.array([point.interval[side] for point in points]) for side in (0, 1))
    axes.fill_between(sizes, low, high, color=_BLUE, alpha=0.18, linewidth=0)
    accuracy = np.array([point.accuracy for point in points])
    axes.errorbar(
        sizes, accuracy, [accuracy - low, high - accuracy], color=_BLUE, marker="o", linewidth=1.6, capsize=3
    )
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.minorticks_off()
    _set_labels(axes, "Accuracy with 95 % interval", "training images", "accuracy on the test images")
    margin = 0.1 * max(0.1, float(high.max(initial=0.0) - low.min(initial=1.0)))
    axes.set_ylim(max(0.0, float(low.min(initial=1.0)) - margin), min(1.003, float(high.max(initial=0.0)) + margin))
    _format_percent(axes.yaxis)
    return lettering.png(figure)


# -- shared by all plots -----------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Any:
    """Return an empty figure; sizes are in inches of 100 pixels on the page."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")


def _set_labels(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=_FONT_SIZE + 1, loc="left", color=_INK)
    axes.set_xlabel(x, fontsize=_FONT_SIZE, color=_INK)
    axes.set_ylabel(y, fontsize=_FONT_SIZE, color=_INK)
    axes.set_facecolor("white")
    axes.tick_params(labelsize=_SMALL, colors=_INK)
    axes.grid(True, color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set(visible=name in ("left", "bottom"), color=_GREY)


def _format_percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _format_integers(axis: Any, max_ticks: int = 8) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.set_major_locator(MaxNLocator(max_ticks, integer=True, min_n_ticks=1))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


class _Lettering:
    """Draws any text, such as the labels of a plot, in installed fonts that have its characters."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._families = [_FONT]
        letters = {letter for text in texts for letter in str(text) if unicodedata.category(letter)[0] != "C"}
        self._drawable = letters - self._add_fonts_for(_characters_missing_in(_FONT, letters))

    def _add_fonts_for(self, missing: set[str]) -> set[str]:
        """Add installed fonts that have missing characters; return the characters that no font has."""
        from matplotlib import font_manager

        listed = font_manager.fontManager.ttflist
        upright = [font for font in listed if font.style == "normal" and font.weight in (400, "normal", "regular")]
        for name in dict.fromkeys(font.name for font in upright if font.stretch == "normal"):
            if not missing:
                break
            still_missing = _characters_missing_in(name, missing)
            if len(still_missing) < len(missing):
                self._families.append(name)
                missing = still_missing
        return missing

    def of(self, text: str) -> str:
        """Return a text that can be drawn: shortened in the middle, with escapes for missing characters."""
        drawn = "".join(
            letter if letter in self._drawable else letter.encode("unicode_escape").decode() for letter in str(text)
        )
        return drawn if len(drawn) <= _MAX_LABEL_LENGTH else f"{drawn[: _MAX_LABEL_LENGTH - 11]}…{drawn[-10:]}"

    def png(self, figure: Any) -> bytes:
        """Return a figure as PNG, with all its texts in the fonts found and none parsed as a formula."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.text import Text
        from PIL import Image

        for text in figure.findobj(Text):
            text.set(family=self._families, parse_math=False, usetex=False)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = Image.fromarray(np.array(canvas.buffer_rgba())[:, :, :3])
        reduced = pixels.quantize(_PALETTE_SIZE, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        reduced.save(buffer, "PNG", optimize=True, dpi=(DOTS_PER_INCH, DOTS_PER_INCH))
        return buffer.getvalue()


def _characters_missing_in(family: str, letters: set[str]) -> set[str]:
    """Return the characters that a font does not have."""
    from matplotlib import font_manager

    if not letters or family.startswith("Last Resort"):  # it has only boxes
        return letters
    try:
        path = font_manager.findfont(font_manager.FontProperties(family=family), fallback_to_default=False)
        font = font_manager.get_font(path)
    except (ValueError, RuntimeError, OSError):  # removed since it was listed, or unreadable
        return letters
    return {letter for letter in letters if not font.get_char_index(ord(letter))}
