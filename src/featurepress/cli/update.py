"""featurepress update."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from featurepress.cli import output
from featurepress.cli.options import with_run_settings
from featurepress.settings import ResumeOptions


@with_run_settings(ResumeOptions.__optional_keys__)
def update(
    destination: Annotated[str, typer.Argument(help="A complete feature set.", metavar="DEST")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    options: dict[str, Any] = {},  # noqa: B006 - never changed
) -> None:
    """Embed new and changed images, and remove the rows of deleted ones."""
    from featurepress.runs import verbs

    output.run(lambda: verbs.update(destination, **options), destination, as_json=as_json)
