"""What the models commands show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from featurepress.cli.output import Lines, console

if TYPE_CHECKING:
    from featurepress.models.card import ModelCard
    from featurepress.models.catalog import ListedModel
    from featurepress.runs.benchmark import Speed


def print_models(models: Sequence[ListedModel]) -> None:
    """Print the list of models, on stdout."""
    columns = [("name", False), ("parameters", True), ("input", True), ("features", True)]
    columns += [("weights", False), ("licence", False), ("here", False), ("images/s", True)]
    table = _table(columns)
    for one in models:
        table.add_row(
            one.name,
            f"{one.n_parameters / 1e6:.1f} M" if one.n_parameters else "",
            one.input,
            f"{one.n_features:,}" if one.n_features else "",
            one.weights,
            one.licence.partition(" (")[0],
            one.here,
            f"{one.images_per_second:,.0f}" if one.images_per_second else "",
        )
    screen = _wide()
    screen.print(table)
    screen.print(
        Text(
            "features: with --pooling avg. here: sizes that are ready, the others are made so when first used. "
            "images/s: measured by featurepress models bench.",
            style="dim",
        )
    )


def print_outputs(found: Sequence[Mapping[str, Any]]) -> None:
    """Print the tensors of a model file, on stdout."""
    table = _table([("output", False), ("shape", False), ("made by", False)])
    for one in found:
        table.add_row(
            one["name"], " x ".join("N" if side == -1 else str(side) for side in one["shape"]), one["made_by"]
        )
    _wide().print(table)


def print_model(known: Mapping[str, Any]) -> None:
    """Print what is known of a model, on stdout."""
    lines = Lines()
    for word, text in known.items():
        if word == "certificates":
            for one in text.values():
                _add_certificate(lines, one)
        elif word == "quality":
            for name, (probe, neighbours) in text.items():
                lines.add("quality", f"{name}: linear probe {probe:.3f}, 5 nearest neighbours {neighbours:.3f}")
        elif isinstance(text, list | tuple):
            for line in text:
                lines.add(word, str(line))
        elif text not in (None, "", {}):
            lines.add(word, f"{text:,}" if isinstance(text, int) else str(text))
    lines.print(console(stderr=False))


def print_ready(card: ModelCard) -> None:
    """Print that a model is ready, on stderr."""
    lines = Lines()
    lines.add("ready", f"{card.name}: {card.architecture}")
    lines.add("input", str(card.preprocess))
    height, width, channels = card.grid
    lines.add("output", f"{card.output}, {height}x{width}x{channels:,}" if card.pooled == "" else card.output)
    lines.add("weights", f"{card.source}, sha256 {card.weights_sha256[:12]}…")
    for note in card.notes:
        lines.add("note", note)
    lines.print(console())


def print_certificate(certificate: Mapping[str, Any]) -> None:
    """Print a parity certificate, on stderr."""
    lines = Lines()
    lines.add("model", f"{certificate['model']}, {certificate['pooling']}")
    _add_certificate(lines, certificate)
    lines.print(console())


def _add_certificate(lines: Lines, certificate: Mapping[str, Any]) -> None:
    lines.add(
        "parity",
        f"{certificate['pooling']}, against {certificate['reference']}, {certificate['n_images']} pictures",
    )
    for name, found in certificate["precisions"].items():
        share = found["max_difference"] / found["largest_feature"] if found["largest_feature"] else 0.0
        lines.add(
            "",
            f"{name}: cosine at least {found['min_cosine']:.6f}, mean {found['mean_cosine']:.6f}; largest "
            f"difference {found['max_difference']:.2g}, {share:.1e} of the largest feature",
        )


def print_speeds(speeds: Sequence[Speed]) -> None:
    """Print measured speeds, on stdout."""
    columns = [("model", False), ("input", True), ("features", True), ("parameters", True)]
    columns += [("float32 images/s", True), ("bfloat16 images/s", True), ("pictures", True), ("weights", False)]
    table = _table(columns)
    for one in speeds:
        table.add_row(
            one.model,
            str(one.size),
            f"{one.n_features:,}",
            f"{one.n_parameters / 1e6:.1f} M",
            *(
                f"{one.images_per_second[p]:,.1f}" if p in one.images_per_second else ""
                for p in ("float32", "bfloat16")
            ),
            f"{one.n_images:,}",
            one.weights,
        )
    screen = _wide()
    screen.print(table)
    if speeds:
        screen.print(Text(f"{speeds[0].cpu}, {speeds[0].workers} workers; {speeds[0].pictures}", style="dim"))


def _wide() -> Console:
    """Return a console that cuts nothing off where the output is no terminal."""
    screen = console(stderr=False)
    if not screen.is_terminal:
        screen.width = 200
    return screen


def _table(columns: Sequence[tuple[str, bool]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, is_number in columns:
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    return table
