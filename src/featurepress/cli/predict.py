"""featurepress predict."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurepress.cli import output
from featurepress.cli.options import AsJson, Out, with_run_settings
from featurepress.progress import format_seconds
from featurepress.settings import PredictionSettings, PredictOptions

if TYPE_CHECKING:
    from featurepress.learning.predictions import Predictions

_MOST_FREQUENT = 10


@with_run_settings(PredictOptions.__optional_keys__, PredictionSettings)
def predict(
    options: dict[str, Any],
    model: Annotated[str, typer.Argument(help="A model that featurepress train has written.", metavar="MODEL")],
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Images: folders, globs in quotes, buckets, archives, tables; or one feature set.",
            metavar="SOURCES...",
        ),
    ],
    out: Out = "predictions{time}",
    as_json: AsJson = False,
) -> None:
    """Predict the labels of images, or of a feature set, with a trained model.

    The same command again finishes an interrupted run, and predicts only what has changed since.
    """
    from featurepress.learning import prediction
    from featurepress.ledger.names import PREDICTIONS_REQUEST
    from featurepress.runs.verbs import expand_time

    out = expand_time(out)
    command = f"the same command and --out {shlex.quote(out)}"
    with (
        output.resumable(out, command=command, request=PREDICTIONS_REQUEST),
        output.reporting(lambda found: _report(found, as_json=as_json)),
    ):
        _report(prediction.predict(model, sources, out, **options), as_json=as_json)


def _report(found: Predictions, *, as_json: bool) -> None:
    summary, counts = found.summary, found.counts
    lines = output.Lines()
    has_regions = summary["settings"]["regions"] or summary["settings"]["tiles"]
    what = "regions" if has_regions else "labels"
    lines.add("rows", f"{len(found):,} {what} of {summary['images']:,} images, {summary['failed']:,} failed")
    if unread := summary.get("unread"):
        lines.add("unread", f"{unread:,} images could not be read again; the same command tries again")
    lines.add_counts("labels", dict(list(counts.items())[:_MOST_FREQUENT]))
    if len(counts) > _MOST_FREQUENT:
        lines.add("", f"and {len(counts) - _MOST_FREQUENT:,} more labels")
    if has_regions and not summary["knows_background"]:
        lines.add("note", "the model has no label 'background', so that empty regions get another label")
    has_speed = found.images_per_second and not summary["settings"]["tiles"]  # tiles cost far more than embedding
    speed = f", {found.images_per_second:,.0f} images/s embedded" if has_speed else ""
    lines.add("time", format_seconds(found.seconds) + speed)
    lines.add("model", f"{summary['model']['location']}, sha256 {summary['model']['sha256'][:12]}…")
    lines.add("where", f"{found.location.rstrip('/')}/predictions")
    lines.print(output.console())
    if found.features.location == found.location:
        verb = "failures" if summary["failed"] else "info"
        typer.echo(f"next: featurepress {verb} {shlex.quote(found.location)}", err=True)
    if as_json:
        speeds = {"seconds": found.seconds, "images_per_second": found.images_per_second}
        output.print_json({"location": found.location, **summary, **speeds})
