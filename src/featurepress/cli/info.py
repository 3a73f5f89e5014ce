"""featurepress info."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(info)


def info(
    destination: Annotated[str, typer.Argument(help="A feature set.", metavar="DEST")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show what a feature set holds and how it was made."""
    from featurepress.cli import output
    from featurepress.featureset import open_features

    features = open_features(destination, allow_incomplete=True)
    if as_json:
        complete = {} if features.is_complete else {"status": "incomplete", "pressed": len(features)}
        output.print_json({**features.plan.to_json(), **(features.manifest or {}), **complete})
    else:
        output.print_info(features)
