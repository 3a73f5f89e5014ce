"""featurepress embed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from featurepress.cli.options import with_engine, with_settings
from featurepress.errors import TooManyFailuresError
from featurepress.progress import format_bytes

DEFAULT_OUT = "results{time}"
_SOURCES_HELP = "Folders, globs in quotes, files, buckets, archives, tables, lists of urls."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(embed)


@with_settings()
@with_engine
def embed(
    sources: Annotated[
        list[str],
        typer.Argument(help=_SOURCES_HELP, metavar="SOURCES..."),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="The destination; {time} in it becomes the date and time.")
    ] = DEFAULT_OUT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List and count only; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    options: dict[str, Any] = {},  # noqa: B006 - never changed
) -> None:
    """Embed images into a feature set.

    The same command again finishes what was interrupted, and does nothing when all is done.
    """
    from featurepress.cli import output
    from featurepress.runs import verbs

    if dry_run:
        listed = {name: value for name, value in options.items() if name != "engine"}
        _print_estimate(verbs.estimate(sources, out=out, **listed), as_json=as_json)
        return
    destination = verbs.expand_time(out)
    with output.resumable(destination):
        try:
            features = verbs.embed(sources, destination, **options)
        except TooManyFailuresError as error:
            report(error.result, as_json=as_json)
            raise
    report(features, as_json=as_json)


def report(features: Any, *, as_json: bool) -> None:
    """Show the result of a run."""
    from featurepress.cli import output

    output.print_summary(features)
    if as_json:
        output.print_json(output.result_json(features))


def _print_estimate(estimate: Any, *, as_json: bool) -> None:
    from dataclasses import asdict

    from featurepress.cli import output

    if as_json:
        output.print_json(asdict(estimate))
        return
    skipped = "".join(f", {count:,} skipped ({reason})" for reason, count in estimate.skipped.items())
    screen = output.console()
    screen.print(f"{estimate.images:,} images, {format_bytes(estimate.bytes)}{skipped}", markup=False)
    screen.print(
        f"would become {estimate.parts:,} parts of {estimate.n_features:,} features an image, "
        f"{format_bytes(estimate.expected_bytes)} at most (compression saves a fifth and more)"
    )
