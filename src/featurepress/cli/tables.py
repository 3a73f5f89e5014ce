"""The tables and lines of the models commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from featurepress.cli.output import Lines, console

if TYPE_CHECKING:
    from featurepress.models.card import ModelCard
    from featurepress.models.verbs import ListedModel
    from featurepress.runs.benchmark import Speed


def print_models(models: Sequence[ListedModel]) -> None:
    """Print the list of models on stdout."""
    rows = (
        (
            model.name,
            _millions(model.n_parameters),
            model.input,
            _count(model.n_features),
            model.weights,
            model.licence.partition(" (")[0],
            model.here,
            _count(model.images_per_second),
        )
        for model in models
    )
    columns = ("name", "parameters>", "input>", "features>", "weights", "licence", "here", "images/s>")
    note = (
        "features: with --pooling avg. here: the stored sizes; other sizes are prepared on first use. "
        "images/s: measured by featurepress models bench."
    )
    _print_table(columns, rows, note)


def print_outputs(tensors: Sequence[Mapping[str, Any]]) -> None:
    """Print the tensors of a model file on stdout."""
    shapes = (" x ".join("N" if side == -1 else str(side) for side in tensor["shape"]) for tensor in tensors)
    rows = ((tensor["name"], shape, tensor["made_by"]) for tensor, shape in zip(tensors, shapes, strict=True))
    _print_table(("output", "shape", "made by"), rows)


def print_model(facts: Mapping[str, Any]) -> None:
    """Print the description of a model on stdout."""
    lines = Lines()
    for word, value in facts.items():
        if word == "certificates":
            for certificate in value.values():
                _add_certificate(lines, certificate)
        elif word == "quality":
            for name, (probe, neighbours) in value.items():
                lines.add("quality", f"{name}: linear probe {probe:.3f}, 5 nearest neighbours {neighbours:.3f}")
        elif isinstance(value, list | tuple):
            for line in value:
                lines.add(word, str(line))
        elif value not in (None, "", {}):
            lines.add(word, f"{value:,}" if isinstance(value, int) else str(value))
    lines.print(console(stderr=False))


def print_ready(card: ModelCard) -> None:
    """Print on stderr that a model is ready."""
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
    """Print a parity certificate on stderr."""
    lines = Lines()
    lines.add("model", f"{certificate['model']}, {certificate['pooling']}")
    _add_certificate(lines, certificate)
    lines.print(console())


def _add_certificate(lines: Lines, certificate: Mapping[str, Any]) -> None:
    n_images, reference = certificate["n_images"], certificate["reference"]
    lines.add("parity", f"{certificate['pooling']}, {n_images} images compared with {reference}")
    for precision, found in certificate["precisions"].items():
        share = found["max_difference"] / found["largest_feature"] if found["largest_feature"] else 0.0
        lines.add(
            "",
            f"{precision}: cosine at least {found['min_cosine']:.6f}, mean {found['mean_cosine']:.6f}; largest "
            f"difference {found['max_difference']:.2g}, {share:.1e} of the largest feature",
        )


def print_speeds(speeds: Sequence[Speed]) -> None:
    """Print measured speeds on stdout."""
    rows = (
        (
            speed.model,
            str(speed.size),
            _count(speed.n_features),
            _millions(speed.n_parameters),
            *(_count(speed.images_per_second.get(precision), 1) for precision in ("float32", "bfloat16")),
            _count(speed.n_images),
            speed.weights,
        )
        for speed in speeds
    )
    columns = ("model", "input>", "features>", "parameters>", "float32 images/s>", "bfloat16 images/s>")
    note = f"{speeds[0].cpu}, {speeds[0].workers} workers; {speeds[0].images}" if speeds else ""
    _print_table((*columns, "images>", "weights"), rows, note)


def _count(number: float | None, digits: int = 0) -> str:
    return f"{number:,.{digits}f}" if number else ""


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number else ""


def _print_table(columns: Iterable[str], rows: Iterable[Sequence[str]], note: str = "") -> None:
    """Print a table on stdout; a column whose name ends with ``>`` is aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    screen = console(stderr=False)
    if not screen.is_terminal:
        screen.width = 200  # cut nothing off
    screen.print(table)
    if note:
        screen.print(Text(note, style="dim"))
