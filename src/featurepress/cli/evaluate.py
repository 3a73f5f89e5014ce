"""featurepress evaluate."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from featurepress.cli.options import with_stages
from featurepress.progress import format_seconds
from featurepress.settings import LabelSettings, SplitSettings, TrainingSettings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(evaluate)


@with_stages(labels=LabelSettings, split=SplitSettings, training=TrainingSettings)
def evaluate(
    model: Annotated[str, typer.Argument(help="A trained model.", metavar="MODEL")],
    destination: Annotated[
        str,
        typer.Argument(
            help="A feature set with labels: other pictures, or those it was trained on.", metavar="FEATURES"
        ),
    ],
    report: Annotated[
        str | None,
        typer.Option(
            "--report", help="A page with all of it; the same as JSON is written beside it.", metavar="FILE.html"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    options: dict[str, Any] = {},  # noqa: B006 - never changed
) -> None:
    """Measure a trained model: accuracy with and without near-duplicates, mistakes, calibration.

    What is not given of labels, split and memory is as it was when the model was trained.
    """
    from featurepress.cli import output
    from featurepress.cli.measurements import add_measured, hardest
    from featurepress.learning import evaluation

    started = time.perf_counter()
    found = evaluation.evaluate(model, destination, report, **options)
    lines, best = output.Lines(), found.best.scores
    lines.add("measured", found.split)
    add_measured(lines, found.to_json())
    if best is not None:
        lines.add("calibration", f"expected error {best.calibration_error:.3f}")
        lines.add("hardest", hardest(best))
    for one in found.baselines:
        accuracy = f"not measured: {one.reason}" if one.accuracy is None else f"{one.accuracy:.1%}"
        lines.add("beside it", f"{one.name}: {accuracy}")
    lines.add("time", format_seconds(time.perf_counter() - started))
    if report is not None:
        lines.add("report", report)
    lines.print(output.console())
    if as_json:
        output.print_json({**found.to_json(), "report": report})
