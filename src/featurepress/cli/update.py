"""featurepress update."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from featurepress.cli import output
from featurepress.cli.options import AsJson, with_run_settings
from featurepress.settings import ResumeOptions


@with_run_settings(ResumeOptions.__optional_keys__)
def update(
    options: dict[str, Any],
    destination: Annotated[str, typer.Argument(help="A complete feature set.", metavar="DEST")],
    as_json: AsJson = False,
) -> None:
    """Embed new and changed images, and remove the rows of deleted ones."""
    from featurepress.runs import verbs

    output.run(lambda: verbs.update(destination, **options), destination, as_json=as_json)
