"""featurepress resume."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from featurepress.cli.options import with_engine, with_settings
from featurepress.cli.update import RESOURCES, carry_out


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(resume)


@with_settings(RESOURCES)
@with_engine
def resume(
    destination: Annotated[str, typer.Argument(help="The --out of the run.", metavar="DEST")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    options: dict[str, Any] = {},  # noqa: B006 - never changed
) -> None:
    """Finish an interrupted run, update or retry; everything else comes from its plan."""
    from featurepress.runs import verbs

    carry_out(verbs.resume, destination, options, as_json=as_json)
