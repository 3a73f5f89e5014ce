"""featurepress evaluate."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from featurepress.cli import output
from featurepress.cli.measurements import add_measured, hardest
from featurepress.cli.options import AsJson, with_settings
from featurepress.progress import format_seconds
from featurepress.settings import LabelSettings, SplitSettings, TrainingSettings


@with_settings(LabelSettings, SplitSettings, TrainingSettings)
def evaluate(
    options: dict[str, Any],
    model: Annotated[str, typer.Argument(help="A trained model.", metavar="MODEL")],
    destination: Annotated[
        str,
        typer.Argument(
            help="A feature set with labels: other images, or those of the training.", metavar="FEATURES"
        ),
    ],
    report: Annotated[
        str | None,
        typer.Option(
            "--report", help="Write an HTML page with all results, and a JSON file beside it.", metavar="FILE.html"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a trained model: accuracy with and without near-duplicates, mistakes, calibration.

    Options of labels, split and memory default to those of the training.
    """
    from featurepress.learning import evaluation

    started = time.perf_counter()
    found = evaluation.evaluate(model, destination, report, **options)
    lines, best = output.Lines(), found.best.scores
    lines.add("measured", found.split)
    add_measured(lines, found.to_json())
    if best is not None:
        lines.add("calibration", f"expected error {best.calibration_error:.3f}")
        lines.add("hardest", hardest(best))
    for baseline in found.baselines:
        accuracy = (
            f"{baseline.accuracy:.1%}" if baseline.accuracy is not None else f"not measured: {baseline.reason}"
        )
        lines.add("baseline", f"{baseline.name}: {accuracy}")
    lines.add("time", format_seconds(time.perf_counter() - started))
    if report is not None:
        lines.add("report", report)
    lines.print(output.console())
    if as_json:
        output.print_json({**found.to_json(), "report": report})
