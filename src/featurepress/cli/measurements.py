"""How the commands show what was measured of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featurepress.cli.output import Lines


def add_measured(lines: Lines, measured: Mapping[str, Any]) -> None:
    """Add the naive and the leak-aware figure, from the values of metrics or of an evaluation."""
    lines.add("leak-aware", _told(measured["leak_aware"]))
    lines.add("naive", _told(measured["naive"]))
    lines.add("twins", f"from cosine {measured['twin_threshold']:.3f} on: {measured['twin_rule']}")
    if untested := measured["leak_aware"]["not_evaluable"]:
        lines.add("not tested", shortened(list(untested)))
    for note in measured["notes"]:
        lines.add("note", note)


def _told(side: Mapping[str, Any]) -> str:
    scores = side["scores"]
    twins = f", {side['n_twins']:,} left out for a twin in training" if side["n_twins"] else ""
    if scores is None:
        return f"not measurable: {side['reason']}"
    low, high = scores["interval"]
    return (
        f"accuracy {scores['accuracy']:.1%} (95 %: {low:.1%} to {high:.1%}), macro F1 {scores['macro_f1']:.3f}, "
        f"top-3 {scores['top_3']:.1%}, of {side['n_test']:,} test pictures{twins}"
    )


def shortened(words: Sequence[str], most: int = 8) -> str:
    """Give some words in a line, and how many there are if they are too many."""
    more = f", … {len(words):,} in all" if len(words) > most else ""
    return ", ".join(words[:most]) + more
