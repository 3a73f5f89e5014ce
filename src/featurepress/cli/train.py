"""featurepress train."""

from __future__ import annotations

import shlex
import time
from typing import Annotated, Any

import typer

from featurepress.cli import output
from featurepress.cli.measurements import model_json, model_lines
from featurepress.cli.options import AsJson, Out, with_settings
from featurepress.progress import format_seconds
from featurepress.settings import ClassifierSettings, LabelSettings, SplitSettings, TrainingSettings


@with_settings(LabelSettings, ClassifierSettings, SplitSettings, TrainingSettings)
def train(
    options: dict[str, Any],
    destination: Annotated[str, typer.Argument(help="A feature set with labels.", metavar="FEATURES")],
    out: Out = "model{time}",
    as_json: AsJson = False,
) -> None:
    """Train a classifier on a feature set, and measure its accuracy with and without near-duplicates."""
    from featurepress.learning import training

    started = time.perf_counter()
    model = training.train(destination, out, **options)
    seconds, lines = time.perf_counter() - started, model_lines(model)
    lines.add("time", format_seconds(seconds))
    lines.print(output.console())
    typer.echo(
        f"next: featurepress predict {shlex.quote(model.location)} IMAGES --out predictions/, or "
        f"featurepress evaluate {shlex.quote(model.location)} FEATURES --report report.html",
        err=True,
    )
    if as_json:
        output.print_json({**model_json(model), "seconds": seconds})
