"""featurepress resume."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from featurepress.cli.embed import report
from featurepress.cli.options import with_settings
from featurepress.errors import TooManyFailuresError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(resume)


@with_settings(("workers", "memory_bytes", "timeout_seconds", "max_failures"))
def resume(
    destination: Annotated[str, typer.Argument(help="The --out of the run.", metavar="DEST")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    options: dict[str, Any] = {},  # noqa: B006 - never changed
) -> None:
    """Finish an interrupted run; everything else comes from its plan."""
    from featurepress import run
    from featurepress.cli import output

    with output.resumable(destination):
        try:
            with output.live_line() as on_progress:
                features = run.resume(destination, on_progress=on_progress, **options)
        except TooManyFailuresError as error:
            report(error.features, as_json=as_json)
            raise
    report(features, as_json=as_json)
