"""featurepress retry."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from featurepress.cli import output
from featurepress.cli.options import AsJson, with_run_settings
from featurepress.settings import RetryOptions


@with_run_settings(RetryOptions.__optional_keys__)
def retry(
    options: dict[str, Any],
    destination: Annotated[str, typer.Argument(help="A complete feature set.", metavar="DEST")],
    as_json: AsJson = False,
) -> None:
    """Embed only the images that failed, once more."""
    from featurepress.runs import verbs

    output.run(lambda: verbs.retry(destination, **options), destination, as_json=as_json)
