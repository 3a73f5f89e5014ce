"""featurepress demo."""

from __future__ import annotations

from typing import Annotated

import typer

from featurepress.cli import output


def demo(
    folder: Annotated[str, typer.Argument(help="Folder for the images; created if needed.", metavar="FOLDER")] = (
        "orchard"
    ),
    backgrounds: Annotated[
        int, typer.Option(help="Also draw N images of empty tables, labelled 'background'.", metavar="N")
    ] = 0,
) -> None:
    """Draw an orchard of fruit images, a few of them broken, to try featurepress on."""
    from featurepress.demo.orchard import draw_orchard

    orchard = draw_orchard(folder, backgrounds=backgrounds)
    output.console().print(
        f"drew {orchard.images} images, {orchard.scenes} scenes and {orchard.broken} broken files into {folder}",
        markup=False,
    )
