"""Pictures of analyses as PNG bytes: variance, map, confusion, reliability, learning curve.

Drawn twice as fine as they are shown, on white, without matplotlib's global state. Labels are anyone's text:
nothing in them is a formula, and letters that no font of this machine has are written as escapes.
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

MAP_POINTS = 20_000  # of a map: more hide one another
NAMED_LABELS = 20  # labels with a colour of their own
CONFUSION_CLASSES = 40  # of a confusion matrix: more cannot be read

DOTS_PER_INCH = 200  # twice the 100 dots at which the sizes here are meant
_FONT, _FONT_SIZE, _SMALL = "DejaVu Sans", 9, 8  # the font comes with matplotlib
_MOST_LETTERS = 28
_LETTERS_AN_INCH = 13  # of small ones
_PALETTE = 128  # colours
_INK, _FAINT, _GREY, _BLUE, _ORANGE = "#333333", "#dddddd", "#b8b8b8", "#1f5fa8", "#c8501e"
_COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#3d3d3d", "#bcbd22", "#17becf"),
    *("#7fb2e5", "#ffc078", "#8fd694", "#ff9c99", "#c5b0d5", "#c49c94", "#f7b6d2", "#a0a0a0", "#dbdb8d", "#9edae5"),
)
_MARKERS = ("o", "^")  # the first ten colours, and their lighter sisters


def variance_plot(ratios: npt.ArrayLike) -> bytes:
    """Draw how much of the variance each component explains, and how much they do together.

    Parameters
    ----------
    ratios : array (n_components,)
        Shares of the variance of all features, the largest first.

    Returns
    -------
    bytes
        A PNG of 1800 x 760 pixels, to be shown at half that size.
    """
    shares = np.asarray(ratios, np.float64)
    lettering, figure = _Lettering(()), _figure(9, 3.8)
    each, together = figure.subplots(1, 2)
    numbers = np.arange(1, len(shares) + 1)
    if len(shares) <= 40:
        each.bar(numbers, shares, color=_BLUE, width=0.8)
    else:
        each.fill_between(numbers, shares, step="mid", color=_BLUE, linewidth=0)
    _titled(each, "Variance of each component", "component", "share of the variance")
    each.set_xlim(0.4, len(shares) + 0.6)
    each.set_ylim(0, 1.05 * float(shares.max(initial=0.0)) or 1.0)
    reached = np.cumsum(shares)
    together.plot(numbers, reached, color=_BLUE, linewidth=1.8, marker="o", markersize=4 if len(shares) < 20 else 0)
    said = []
    for wanted, colour in ((0.90, _ORANGE), (0.95, _INK)):
        together.axhline(wanted, color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
        n = components_for(shares, wanted)
        if n is not None:
            together.plot([n], [reached[n - 1]], "o", color=colour, markersize=6)
        said.append(f"{100 * wanted:.0f} %: " + (f"{n:,} components" if n else f"not reached by {len(shares):,}"))
    _titled(together, "Variance of the first components together", "components kept", "share of the variance")
    together.text(0.97, 0.06, "\n".join(said), transform=together.transAxes, ha="right", fontsize=_FONT_SIZE + 1)
    together.set_xlim(0, len(shares) + 0.6)
    together.set_ylim(0, 1.03)
    for axes in (each, together):
        _in_percent(axes.yaxis)
        _whole_numbers(axes.xaxis)
    return lettering.png(figure)


def components_for(ratios: npt.ArrayLike, share: float) -> int | None:
    """Give how many of the first components explain a share of the variance; None if all do not."""
    reached = np.cumsum(np.asarray(ratios, np.float64))
    enough = np.flatnonzero(reached >= share - 1e-12)
    return int(enough[0]) + 1 if len(enough) else None


def map_plot(Z: npt.NDArray[Any], labels: npt.NDArray[np.str_] | None = None) -> bytes:
    """Draw rows at their first two components, coloured by label.

    Parameters
    ----------
    Z : array (n_samples, n_components)
        Reduced rows. With one component, the height of a point is drawn at random.
    labels : array (n_samples,) of str, optional
        Of each row, "" for none. Of more than 20 labels, the most frequent are named, the others grey.

    Returns
    -------
    bytes
        A PNG of 1760 x 1160 pixels, to be shown at half that size. Of more than 20,000 rows so many are drawn at
        random, always the same; the picture says so.
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
    of = f"{len(Z):,} pictures" if drawn == len(Z) else f"{drawn:,} of {len(Z):,} pictures, drawn at random"
    second = "component 2" if Z.shape[1] > 1 else "(drawn at random: there is one component)"
    _titled(axes, of, "component 1", second)
    if Z.shape[1] > 1:
        axes.set_aspect("equal", adjustable="datalim")
    else:
        axes.set_yticks([])
    return lettering.png(figure)


def drawn_rows(n_samples: int) -> npt.NDArray[np.int64]:
    """Give the rows that a map draws, in no order: the last label would hide the others."""
    return np.random.default_rng(0).permutation(n_samples)[:MAP_POINTS]


def _most_frequent(labels: npt.NDArray[np.str_]) -> list[str]:
    """Give the labels that get a colour, in alphabetical order."""
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
    """Draw points in the colours of their labels, and a legend."""
    number = {label: i for i, label in enumerate(most_frequent)}
    own = np.array([number.get(label, -1) for label in labels.tolist()], int)
    others = own < 0
    keys = []
    if others.any():
        axes.scatter(x[others], y[others], s=size, color=_GREY, alpha=0.5, linewidths=0)
    for shape, marker in enumerate(_MARKERS):
        chosen = own // 10 == shape
        colours = np.array(_COLOURS)[own[chosen]]
        axes.scatter(x[chosen], y[chosen], s=size, c=colours, marker=marker, alpha=0.85, linewidths=0)
    for i, label in enumerate(most_frequent):
        keys.append((_COLOURS[i], _MARKERS[i // 10], lettering.of(label)))
    n_others = len(set(labels[others].tolist()) - {""})
    if n_others:
        keys.append((_GREY, "o", f"{n_others:,} other labels"))
    if (labels == "").any():
        keys.append((_GREY, "o", "no label"))
    _legend(axes.figure, keys)


def _legend(figure: Any, keys: Sequence[tuple[str, str, str]]) -> None:
    """Draw colours, markers and their texts to the right; texts are set later: one with a leading _ is refused."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=6) for colour, marker, _ in keys
    ]
    legend = figure.legend(handles, ["-"] * len(keys), loc="outside right upper", frameon=False, fontsize=_SMALL)
    for text, (_, _, said) in zip(legend.get_texts(), keys, strict=True):
        text.set_text(said)


def confusion_plot(confusion: npt.ArrayLike, labels: Sequence[str]) -> bytes:
    """Draw which classes are taken for which.

    Parameters
    ----------
    confusion : array (n_classes, n_classes) of int
        Row: the class that is right, column: the one that is told. Each row is shown in shares of its sum.
    labels : sequence of str
        The classes, in the order of the rows. Of more than 40 those with mistakes are shown, or the 40 that are
        mixed up most, and the picture says so.

    Returns
    -------
    bytes
        A PNG that grows with the classes, to be shown at half its size.

    Raises
    ------
    AnalysisError
        There is no class, or not one row and column for each.
    """
    counts = np.asarray(confusion, np.int64)
    if not len(labels) or counts.shape != (len(labels), len(labels)):
        raise AnalysisError(
            f"A confusion matrix has a row and a column for each of its labels. Got {len(labels)} labels and an "
            f"array of shape {counts.shape}."
        )
    shown, title = shown_classes(counts)
    sums = counts.sum(axis=1)[shown]
    part = counts[np.ix_(shown, shown)]
    rest = sums - part.sum(axis=1)
    columns = [labels[i] for i in shown]
    if rest.any():  # mistakes that would be left out
        part, columns = np.column_stack([part, rest]), [*columns, "(all others)"]
    untested = np.broadcast_to((sums == 0)[:, None], part.shape)
    shares = np.ma.MaskedArray(part / np.maximum(sums, 1)[:, None], untested)
    n, lettering = len(shown), _Lettering(labels)
    side = max(3.4, 0.24 * n)
    figure = _figure(side + 2.4, side + 1.6)
    axes = figure.subplots()
    _cells(axes, shares, small=n > 15)
    axes.set_yticks(range(n), [f"{lettering.of(labels[i])} ({sums[k]:,})" for k, i in enumerate(shown)])
    axes.set_xticks(range(len(columns)), [lettering.of(one) for one in columns])
    lengthy = max(map(len, columns)) > _LETTERS_AN_INCH * side / len(columns)
    axes.tick_params(axis="x", labelrotation=90 if lengthy else 0)
    axes.tick_params(length=0, labelsize=_SMALL)
    _titled(axes, title, "class that is told", "class that is right (test pictures)")
    axes.grid(False)
    return lettering.png(figure)


def shown_classes(counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], str]:
    """Give the numbers of the classes that a confusion picture shows, and what it says of them."""
    n = len(counts)
    if n <= CONFUSION_CLASSES:
        return np.arange(n), "Share of each class that is told as …, in %"
    wrong = counts * ~np.eye(n, dtype=bool)
    mixed = np.flatnonzero(wrong.sum(axis=0) + wrong.sum(axis=1))
    if not len(mixed):
        return np.arange(CONFUSION_CLASSES), f"No mistakes; {CONFUSION_CLASSES} of {n:,} classes, in %"
    if len(mixed) <= CONFUSION_CLASSES:
        return mixed, f"The {len(mixed)} of {n:,} classes with mistakes, in %"
    chosen: set[int] = set()
    for place in np.argsort(-wrong, axis=None, kind="stable"):
        pair = {int(place) // n, int(place) % n}
        if len(chosen | pair) > CONFUSION_CLASSES:
            break
        chosen |= pair
    return np.array(sorted(chosen)), f"The {len(chosen)} of {n:,} classes that are mixed up most, in %"


def _cells(axes: Any, shares: Any, *, small: bool) -> None:
    """Draw shares as shades, mistakes in another colour, with numbers in those that are not nearly nothing."""
    diagonal, whole = np.eye(*shares.shape) > 0, {"vmin": 0, "interpolation": "nearest", "aspect": "equal"}
    axes.imshow(np.ma.masked_where(~diagonal, shares), cmap="Blues", vmax=1, **whole)
    axes.imshow(np.ma.masked_where(diagonal | (shares.filled(0.0) == 0), shares), cmap="Oranges", vmax=0.7, **whole)
    for untested in np.flatnonzero(shares.mask.all(axis=1)):
        axes.axhspan(untested - 0.5, untested + 0.5, color="#dcdcdc", linewidth=0)
    for edges, lines in ((shares.shape[0], axes.axhline), (shares.shape[1], axes.axvline)):
        for place in range(edges - 1):
            lines(place + 0.5, color="#e4e4e4", linewidth=0.6)
    for (i, j), share in np.ndenumerate(shares.filled(0.0)):
        if share >= 0.005:
            colour = "white" if share > 0.55 else _INK
            axes.text(
                j, i, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=6.5 if small else 8
            )


def reliability_plot(bins: Sequence[Bin]) -> bytes:
    """Draw how often predictions are right, by how confident they are.

    Parameters
    ----------
    bins : sequence of Bin
        From the least confident to the most.

    Returns
    -------
    bytes
        A PNG of 1120 x 960 pixels, to be shown at half that size.
    """
    lettering, figure = _Lettering(()), _figure(5.6, 4.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    confidence = [one.confidence for one in bins]
    upper.plot([0, 1], [0, 1], color=_GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    upper.plot(confidence, [one.accuracy for one in bins], color=_BLUE, marker="o", markersize=6, linewidth=1.6)
    said = "dashed: as often right as confident;\nbelow it: too confident"
    upper.text(0.97, 0.05, said, transform=upper.transAxes, ha="right", color="#777777", fontsize=_SMALL)
    _titled(upper, "Confidence and accuracy", "", "share that is right")
    lower.bar(confidence, [one.n_samples for one in bins], width=0.06, color=_BLUE)
    _titled(lower, "", "confidence of the prediction", "pictures")
    upper.set(xlim=(0, 1.02), ylim=(0, 1.04))
    for axis in (upper.yaxis, lower.xaxis):
        _in_percent(axis)
    _whole_numbers(lower.yaxis, most=3)
    return lettering.png(figure)


def learning_curve_plot(points: Sequence[LearningPoint]) -> bytes:
    """Draw how the accuracy grows with the training pictures.

    Parameters
    ----------
    points : sequence of LearningPoint
        From few training pictures to all.

    Returns
    -------
    bytes
        A PNG of 1240 x 760 pixels, to be shown at half that size.
    """
    lettering, figure = _Lettering(()), _figure(6.2, 3.8)
    axes = figure.subplots()
    sizes = [one.n_train for one in points]
    low, high = (np.array([one.interval[side] for one in points]) for side in (0, 1))
    axes.fill_between(sizes, low, high, color=_BLUE, alpha=0.18, linewidth=0)
    reached = np.array([one.accuracy for one in points])
    axes.errorbar(
        sizes, reached, [reached - low, high - reached], color=_BLUE, marker="o", linewidth=1.6, capsize=3
    )
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.minorticks_off()
    _titled(axes, "Accuracy, with its 95 % interval", "training pictures", "accuracy on the test pictures")
    room = 0.1 * max(0.1, float(high.max(initial=0.0) - low.min(initial=1.0)))
    axes.set_ylim(max(0.0, float(low.min(initial=1.0)) - room), min(1.003, float(high.max(initial=0.0)) + room))
    _in_percent(axes.yaxis)
    return lettering.png(figure)


# -- what all pictures have ------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Any:
    """Give an empty picture of so many inches, a hundred dots each as it is shown."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")


def _titled(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=_FONT_SIZE + 1, loc="left", color=_INK)
    axes.set_xlabel(x, fontsize=_FONT_SIZE, color=_INK)
    axes.set_ylabel(y, fontsize=_FONT_SIZE, color=_INK)
    axes.set_facecolor("white")
    axes.tick_params(labelsize=_SMALL, colors=_INK)
    axes.grid(True, color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set(visible=name in ("left", "bottom"), color=_GREY)


def _in_percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _whole_numbers(axis: Any, most: int = 8) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


class _Lettering:
    """Writes anyone's text in fonts that have its letters, as plain text.

    Parameters
    ----------
    texts : iterable of str
        All that comes from outside.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._families = [_FONT]
        letters = {letter for text in texts for letter in str(text) if unicodedata.category(letter)[0] != "C"}
        self._has = letters - self._look_for(_lacking(_FONT, letters))

    def _look_for(self, missing: set[str]) -> set[str]:
        """Add fonts of this machine that have missing letters; give those that none has."""
        from matplotlib import font_manager

        listed = font_manager.fontManager.ttflist
        upright = [one for one in listed if one.style == "normal" and one.weight in (400, "normal", "regular")]
        for name in dict.fromkeys(one.name for one in upright if one.stretch == "normal"):
            if not missing:
                break
            left = _lacking(name, missing)
            if len(left) < len(missing):
                self._families.append(name)
                missing = left
        return missing

    def of(self, text: str) -> str:
        """Give a text as it can be drawn: without the middle if it is long, what cannot be drawn as escapes."""
        letters = (one if one in self._has else one.encode("unicode_escape").decode() for one in str(text))
        drawn = "".join(letters)
        return drawn if len(drawn) <= _MOST_LETTERS else f"{drawn[: _MOST_LETTERS - 11]}…{drawn[-10:]}"

    def png(self, figure: Any) -> bytes:
        """Give a picture as PNG, all its texts in the fonts found, none taken for a formula."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.text import Text
        from PIL import Image

        for text in figure.findobj(Text):
            text.set(family=self._families, parse_math=False, usetex=False)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = Image.fromarray(np.array(canvas.buffer_rgba())[:, :, :3])
        # A palette takes a quarter of the bytes, and no eye sees the difference.
        few = pixels.quantize(_PALETTE, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        few.save(buffer, "PNG", optimize=True, dpi=(DOTS_PER_INCH, DOTS_PER_INCH))
        return buffer.getvalue()


def _lacking(family: str, letters: set[str]) -> set[str]:
    """Give the letters that a font does not have."""
    from matplotlib import font_manager

    if not letters or family.startswith("Last Resort"):  # which has boxes only
        return letters
    try:
        path = font_manager.findfont(font_manager.FontProperties(family=family), fallback_to_default=False)
        font = font_manager.get_font(path)
    except (ValueError, RuntimeError, OSError):  # gone since it was listed, or nothing that can be read
        return letters
    return {letter for letter in letters if not font.get_char_index(ord(letter))}
