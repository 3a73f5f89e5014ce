"""featurepress resume."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from featurepress.cli import output
from featurepress.cli.options import AsJson, with_run_settings
from featurepress.settings import ResumeOptions


@with_run_settings(ResumeOptions.__optional_keys__)
def resume(
    options: dict[str, Any],
    destination: Annotated[str, typer.Argument(help="The --out of the run.", metavar="DEST")],
    as_json: AsJson = False,
) -> None:
    """Finish an interrupted run, update or retry, with the settings of its plan."""
    from featurepress.runs import verbs

    output.run(lambda: verbs.resume(destination, **options), destination, as_json=as_json)
