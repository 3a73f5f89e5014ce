"""Reports to test with, and a parser that reads them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
from PIL import Image

from featurepress.analysis.evaluation import Baseline, Evaluation, LearningPoint, Measured, Mistake
from featurepress.analysis.scores import Scores, score
from featurepress.reports.report import evaluation_page, reduction_report

BAD = "<script>alert(1)</script>"
QUOTES = "a \"b\" 'c' & <i>d</i>.jpg"
_VOID = {"meta", "img", "br"}


class Outline(HTMLParser):
    """Parses a page into tags and texts; asserts that every tag is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 64), "#a03020").save(buffer, "JPEG")
    return buffer.getvalue()


class Album:
    """Returns a thumbnail of every uri except those with one ending, and records the requests."""

    def __init__(self, without: str = "7.jpg") -> None:
        self.without, self.requests = without, list[list[str]]()

    def __call__(self, uris: Sequence[str]) -> Mapping[str, bytes]:
        self.requests.append(list(uris))
        return {uri: jpeg() for uri in uris if not uri.endswith(self.without)}


def scored(labels: Sequence[str], n: int = 300, sure: float = 2.0, seed: int = 0) -> Scores:
    draw, classes = np.random.default_rng(seed), np.unique(list(labels))
    y = draw.choice(classes, n)
    powers = np.exp(draw.standard_normal((n, len(classes))) + sure * (y[:, None] == classes))
    return score(y, powers / powers.sum(axis=1, keepdims=True), classes)


def made(labels: Sequence[str] = ("apple", "banana", "cherry"), **changes: Any) -> Evaluation:
    """Return an evaluation in which every field has a value and the naive accuracy is too high."""
    names = sorted(labels)
    mistakes = tuple(
        Mistake(f"s3://fruit/{i}.jpg", names[i % len(names)], names[(i + 1) % len(names)], 0.99 - i / 100)
        for i in range(30)
    )
    evaluation = Evaluation(
        model={
            "name": "fruits",
            "kind": "logistic",
            "n_features": 1280,
            "backbone": "mobilenet_v2",
            "fingerprint": "4d219424ba268d72",
            "labels": names,
            "trained_on": {"features": "features/", "n_samples": 900},
        },
        features="later-features",
        split="drawn",
        near_duplicate_rule="set by near_duplicate_threshold",
        near_duplicate_threshold=0.93,
        naive=Measured(900, 340, scores=scored(labels, 340, 4.0)),
        leak_aware=Measured(900, 300, 40, scores=scored(labels)),
        mistakes=mistakes,
        baselines=(
            Baseline("always the most frequent label", 0.4, (0.35, 0.45)),
            Baseline("colour histogram", reason="the images cannot be read"),
        ),
        learning_curve=(LearningPoint(100, 0.5, (0.4, 0.6)), LearningPoint(900, 0.7, (0.65, 0.75))),
        notes=("a sample of 1,240 images was measured",),
    )
    return replace(evaluation, **changes)


def labelled(text: str) -> Evaluation:
    """Return an evaluation with one text as every label, name and note."""
    labels = (text, "_a", "$b^")
    changes = {
        "model": {"name": text, "labels": list(labels), text: text},
        "features": text,
        "notes": (f"1 {text}",),
        "mistakes": (Mistake("a.jpg", text, text, 0.9), Mistake("7.jpg", text, "_a", 0.8)),
        "baselines": (Baseline(text, reason=text),),
    }
    return made(labels, **changes)


def outline(evaluation: Evaluation, album: Album | None = None) -> Outline:
    return Outline(evaluation_page(evaluation, album or Album()))


def reduced(text: str = "apple", n: int = 200) -> str:
    """Return the report of a reduction, with one text as label and fact."""
    Z = np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    labels = np.array([text, "b"] * (n // 2))
    return reduction_report([0.6, 0.25, 0.08, 0.03, 0.01], Z, labels, {"location": text, "images": "200"})[0]
