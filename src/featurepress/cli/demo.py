"""featurepress demo."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    folder: Annotated[str, typer.Argument(help="Where to draw; made if need be.", metavar="FOLDER")] = "orchard",
    backgrounds: Annotated[
        int, typer.Option(help="Pictures of empty tables as well, as a kind 'background'.", metavar="N")
    ] = 0,
) -> None:
    """Draw an orchard of fruit pictures, a few of them broken, to try featurepress on."""
    from featurepress.cli import output
    from featurepress.demo.orchard import draw_orchard

    orchard = draw_orchard(folder, backgrounds=backgrounds)
    output.console().print(
        f"drew {orchard.images} pictures, {orchard.scenes} scenes and {orchard.broken} broken files into {folder}",
        markup=False,
    )
