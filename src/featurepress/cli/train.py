"""featurepress train."""

from __future__ import annotations

import shlex
import time
from typing import Annotated, Any

import typer

from featurepress.cli.options import with_stages
from featurepress.progress import telling
from featurepress.settings import ClassifierSettings, LabelSettings, SplitSettings, TrainingSettings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(train)


@with_stages(labels=LabelSettings, classifier=ClassifierSettings, split=SplitSettings, training=TrainingSettings)
def train(
    destination: Annotated[str, typer.Argument(help="A feature set with labels.", metavar="FEATURES")],
    out: Annotated[
        str, typer.Option("--out", "-o", help="A new folder for the model; {time} becomes the date and time.")
    ] = "model{time}",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    options: dict[str, Any] = {},  # noqa: B006 - never changed
) -> None:
    """Train a classifier on a feature set, and measure it honestly."""
    from featurepress import training
    from featurepress.cli import output
    from featurepress.cli.measurements import add_measured, shortened
    from featurepress.run import expand_time

    started = time.perf_counter()
    with output.live_line() as on_progress:
        model = training.train(destination, expand_time(out), tell=telling(on_progress), **options)
    seconds, trained_on = time.perf_counter() - started, model.trained_on
    lines, classifier = output.Lines(), model.classifier
    strength = "" if classifier.regularization_ is None else f", regularisation {classifier.regularization_:g}"
    lines.add("model", f"{classifier.kind}{strength}, of {model.backbone.n_features:,} features a picture")
    lines.add("labels", shortened(model.labels.tolist()))
    lines.add("fitted", f"to {classifier.n_samples_:,} pictures; split {trained_on['split']}")
    add_measured(lines, model.metrics)
    lines.add("time", output.format_seconds(seconds))
    lines.add("where", model.location)
    lines.print(output.console())
    typer.echo(
        f"next: featurepress predict {shlex.quote(model.location)} PICTURES --out predictions/, or "
        f"featurepress evaluate {shlex.quote(model.location)} FEATURES --report report.html",
        err=True,
    )
    if as_json:
        about = {"where": model.location, "sha256": model.sha256, "labels": model.labels.tolist()}
        output.print_json({**about, "metrics": model.metrics, "trained_on": trained_on, "seconds": seconds})
