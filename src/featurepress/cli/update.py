"""featurepress update and featurepress retry: the next generation of a feature set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from featurepress.cli.embed import report
from featurepress.cli.options import with_engine, with_settings
from featurepress.errors import TooManyFailuresError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(update)
    app.command()(retry)


RESOURCES = ("workers", "memory_bytes", "timeout_seconds", "max_failures", "anonymous", "allow_private_hosts")


@with_settings(RESOURCES)
@with_engine
def update(
    destination: Annotated[str, typer.Argument(help="A complete feature set.", metavar="DEST")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    options: dict[str, Any] = {},  # noqa: B006 - never changed
) -> None:
    """Embed what is new or has changed since; the rows of images that are gone leave."""
    from featurepress.runs import verbs

    carry_out(verbs.update, destination, options, as_json=as_json)


@with_settings((*RESOURCES, "max_bytes", "max_pixels"))
@with_engine
def retry(
    destination: Annotated[str, typer.Argument(help="A complete feature set.", metavar="DEST")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    options: dict[str, Any] = {},  # noqa: B006 - never changed
) -> None:
    """Embed the images that failed once more."""
    from featurepress.runs import verbs

    carry_out(verbs.retry, destination, options, as_json=as_json)


def carry_out(verb: Callable[..., Any], destination: str, options: dict[str, Any], *, as_json: bool) -> None:
    """Run a verb on a destination, show how it gets on, and report."""
    from featurepress.cli import output

    with output.resumable(destination):
        try:
            features = verb(destination, **options)
        except TooManyFailuresError as error:
            report(error.result, as_json=as_json)
            raise
    report(features, as_json=as_json)
