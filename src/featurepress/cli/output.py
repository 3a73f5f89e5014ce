"""What the commands print: results for people and as JSON, and how to continue after a stop."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from featurepress.errors import FeaturepressError, RequestError, TooManyFailuresError
from featurepress.progress import format_bytes, format_seconds

if TYPE_CHECKING:
    from featurepress.features.feature_set import FeatureSet
    from featurepress.progress import Summary


def console(*, stderr: bool = True) -> Console:
    """Return a console for text that people read."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def print_json(values: Mapping[str, Any]) -> None:
    """Print JSON on stdout."""
    sys.stdout.write(json.dumps(values, indent=1) + "\n")


def run(verb: Callable[[], FeatureSet], destination: str, *, as_json: bool) -> None:
    """Run a verb and print its feature set, also if too many images failed."""

    def report(features: FeatureSet) -> None:
        print_summary(features)
        if as_json:
            print_json(result_json(features))

    with resumable(destination), reporting(report):
        report(verb())


@contextlib.contextmanager
def reporting(report: Callable[[Any], None]) -> Iterator[None]:
    """Report the result of a run in which too many images failed."""
    try:
        yield
    except TooManyFailuresError as error:
        report(error.result)
        raise


@contextlib.contextmanager
def resumable(destination: str, *, command: str = "", request: str = "") -> Iterator[None]:
    """Print the command that continues a stopped run, if its plan or `request` exists."""
    try:
        yield
    except (RequestError, TooManyFailuresError):
        raise
    except BaseException:
        if _has_begun(destination, request):
            command = command or f"featurepress resume {shlex.quote(destination)}"
            console().print(Text(f"Finished parts are kept. Continue with: {command}"))
        raise


def _has_begun(destination: str, request: str) -> bool:
    from featurepress.ledger.names import PLAN
    from featurepress.storage import open_storage

    try:
        storage = open_storage(destination)
        return any(storage.stat(name) is not None for name in (PLAN, request) if name)
    except FeaturepressError:  # it cannot be read now; report what stopped the command
        return True


def result_json(features: FeatureSet) -> dict[str, Any]:
    """Return the result of a run as JSON values."""
    from dataclasses import asdict

    manifest = features.manifest or {}
    return {
        "location": features.location,
        "status": manifest.get("status"),
        "model": features.plan.backbone.model,
        "pooling": features.plan.backbone.pooling,
        "n_features": features.n_features,
        "fingerprint": features.fingerprint,
        "precision": manifest.get("precision", {}),
        **(asdict(features.summary) if features.summary is not None else {}),
    }


def print_summary(features: FeatureSet) -> None:
    """Print what a run did on stderr."""
    summary, manifest = features.summary, features.manifest or {}
    lines = Lines()
    lines.add("images", f"{summary.listed:,} listed, {summary.embedded:,} embedded, {summary.failed:,} failed")
    lines.add_counts("failed", summary.failed_by_kind)
    lines.add_counts("skipped", summary.skipped)
    if (changes := summary.changes) is not None:
        lines.add("changes", f"{changes.new:,} new, {changes.changed:,} changed, {changes.deleted:,} deleted")
        lines.add("embedded", f"{changes.inferred:,} images went through the model, all others were carried over")
    lines.add("time", _time(summary))
    written = f"{format_bytes(summary.bytes_written)} of features"
    parts = "1 part" if summary.parts == 1 else f"{summary.parts:,} parts"
    lines.add("bytes", f"{format_bytes(summary.bytes_read)} read, {written} in {parts}")
    _add_model(lines, features, manifest)
    if not manifest.get("conditional_writes", True):
        lines.add("unsafe", "for two drivers at once: the store does not support conditional writes")
    for note in _notes(features):
        lines.add("note", note)
    lines.add("where", features.location)
    lines.print(console())
    if features.plan.backbone.model == "embedded-v1" and not summary.already_done:
        console().print(Text(_EMBEDDED_ADVICE, style="dim"))


def _time(summary: Summary) -> str:
    seconds = format_seconds(summary.seconds)
    if summary.changes is not None:
        return f"{seconds}, nothing to do: everything is up to date" if summary.already_done else seconds
    if summary.already_done:
        return "nothing to do: an earlier run has embedded everything"
    return f"{seconds}, {summary.images_per_second:,.0f} images/s"


def _notes(features: FeatureSet) -> tuple[str, ...]:
    """Return the assumptions about the model, if it is stored on this machine."""
    from featurepress.models.store import read_card

    card = read_card(features.plan.backbone.file)
    return card.notes if card is not None else ()


_EMBEDDED_ADVICE = (
    "The embedded model is for trying out: a linear probe on its features classifies 37 % of 81 kinds of "
    "groceries correctly, on those of ImageNet's MobileNetV2 67 %.\n"
    "better vectors: --model mobilenet_v2 (9 MB once)"
)


def print_info(features: FeatureSet) -> None:
    """Print the description of a feature set on stdout."""
    from featurepress.specs import Failure

    manifest, plan = features.manifest or {}, features.plan
    lines = Lines()
    lines.add("where", features.location)
    lines.add("status", _status(features))
    lines.add("images", f"{len(features):,} embedded, {features.failures.num_rows:,} failed")
    kinds = Counter(Failure(**row).kind for row in features.failures.to_pylist())
    lines.add_counts("failed", kinds)
    lines.add_counts("skipped", manifest.get("skipped", {}))
    lines.add("features", f"{features.n_features:,} float32 per row, {format_bytes(features.bytes)} in total")
    lines.add("columns", ", ".join(features.schema.names))
    if (labels := features.labels) is not None:
        lines.add("labels", f"{len(set(labels.tolist())):,} different")
    _add_model(lines, features, manifest)
    if reduced := manifest.get("reduced"):
        kept = f"{reduced['explained_variance_ratio']:.2%} of the variance"
        lines.add("reduced", f"from '{reduced['features']}', {kept} of {reduced['fitted_to']:,} images is kept")
    lines.add("fingerprint", features.fingerprint)
    for i, spec in enumerate(plan.sources):
        lines.add("sources" if i == 0 else "", str(spec))
    lines.add("made", f"{plan.created} by featurepress {plan.library_version}")
    lines.print(console(stderr=False))


def _status(features: FeatureSet) -> str:
    if features.is_complete:
        return "complete"
    status = "being updated" if features.manifest is not None else "incomplete"
    command = "the same featurepress reduce" if features.plan.backbone.projection else "featurepress resume"
    return f"{status}: {command} finishes it"


def _add_model(lines: Lines, features: FeatureSet, manifest: Mapping[str, Any]) -> None:
    backbone, certificate = features.plan.backbone, features.plan.certificate
    size = f"{backbone.preprocess.width}x{backbone.preprocess.height}"
    lines.add("model", f"{backbone.model} at {size}, {backbone.pooling}, {features.n_features:,} features")
    precisions = manifest.get("precision", {}).get("images") or {features.plan.precision: 0}
    text = " and ".join(sorted(precisions))
    if "min_cosine" in certificate:
        measured = f"cosine to float32 at least {certificate['min_cosine']:.5f} on {certificate['n_images']} images"
        if features.plan.precision != "bfloat16":
            measured = f"bfloat16 not used: {measured}, {certificate['required']} required"
        text += f" ({measured})"
    lines.add("precision", text)
    if parity := manifest.get("parity"):
        least = parity["precisions"]["float32"]["min_cosine"]
        lines.add("parity", f"cosine at least {least:.6f} in float32 to {parity['reference']}")


class Lines:
    """Lines of a word in bold and a text."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []

    def add(self, word: str, text: str) -> None:
        """Add a line."""
        self._lines.append((word, text))

    def add_counts(self, word: str, counts: Mapping[str, int]) -> None:
        """Add a line per reason, the most frequent first."""
        for i, (reason, count) in enumerate(sorted(counts.items(), key=lambda item: (-item[1], item[0]))):
            self.add(word if i == 0 else "", f"{count:,} {reason}")

    def print(self, screen: Console) -> None:
        """Print the lines, with the texts aligned."""
        width = max(len(word) for word, _ in self._lines) + 2
        for word, text in self._lines:
            screen.print(Text.assemble((word.ljust(width), "bold"), text))
