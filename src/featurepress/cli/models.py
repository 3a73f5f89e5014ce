"""The commands `featurepress models`: list, show, pull, add, verify, bench."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from featurepress.cli.options import with_choices
from featurepress.progress import show_progress

app = typer.Typer(help="List, download, add, verify and time models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A name from the list, a model file, or hf:org/repo.", metavar="MODEL")]
Size = Annotated[int | None, typer.Option(help="Side of the input in pixels.", min=1, max=4096)]
Alpha = Annotated[float | None, typer.Option(help="Width of a MobileNet.")]
Weights = Annotated[str | None, typer.Option(help="'imagenet' (default), or a keras weights file.")]
Pooling = Annotated[str, typer.Option(help="avg, flatten or max.")]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")]


def register(parent: typer.Typer) -> None:
    """Add these commands to the main one."""
    parent.add_typer(app, name="models")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List all models that have a name."""
    import featurepress.models as fp_models
    from featurepress.cli import output, tables

    with show_progress(True) as on_progress:
        found = fp_models.list(on_progress=on_progress)
    if as_json:
        output.print_json({"models": [asdict(model) for model in found]})
    else:
        tables.print_models(found)


@app.command()
def show(
    model: Name,
    outputs: Annotated[
        bool, typer.Option("--outputs", help="List the tensors of a file that can be its features.")
    ] = False,
    size: Size = None,
    alpha: Alpha = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Show what is known about a model."""
    import featurepress.models as fp_models
    from featurepress.cli import output, tables

    if outputs:
        tensors = fp_models.outputs(model)
        return output.print_json({"outputs": tensors}) if as_json else tables.print_outputs(tensors)
    facts = fp_models.show(model, size=size, alpha=alpha, weights=weights)
    return output.print_json(facts) if as_json else tables.print_model(facts)


@app.command()
def pull(
    model: Name,
    size: Size = None,
    alpha: Alpha = None,
    weights: Weights = None,
    pooling: Pooling = "avg",
    as_json: Json = False,
) -> None:
    """Download a model, check it, convert it, and store it."""
    import featurepress.models as fp_models
    from featurepress.cli import output, tables

    with show_progress(True) as on_progress:
        card = fp_models.pull(
            model, size=size, alpha=alpha, weights=weights, pooling=pooling, on_progress=on_progress
        )
    tables.print_ready(card)
    if as_json:
        output.print_json(card.to_json())


@app.command()
@with_choices()
def add(
    file: Annotated[str, typer.Argument(help=".keras, .onnx, .tflite, .xml or SavedModel.", metavar="FILE")],
    name: Annotated[str, typer.Option(help="Name for --model.", show_default=False)],
    as_json: Json = False,
    options: dict[str, Any] = {},  # noqa: B006 - never changed
) -> None:
    """Check and convert your own model file, and store it under a name for embed."""
    import featurepress.models as fp_models
    from featurepress.cli import output, tables

    with show_progress(True) as on_progress:
        card = fp_models.add(file, name, **options, on_progress=on_progress)
    tables.print_ready(card)
    if as_json:
        output.print_json(card.to_json())


@app.command()
def verify(
    model: Name,
    images: Annotated[list[str], typer.Argument(help="Folders, globs in quotes, or files.", metavar="IMAGES...")],
    pooling: Pooling = "avg",
    limit: Annotated[int, typer.Option(help="Maximum number of images.", min=1)] = 64,
    size: Size = None,
    alpha: Alpha = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Compare a model's features with those of its original library, and store a parity certificate."""
    import featurepress.models as fp_models
    from featurepress.cli import output, tables

    with show_progress(True) as on_progress:
        certificate = fp_models.verify(
            model,
            images,
            pooling=pooling,
            limit=limit,
            size=size,
            alpha=alpha,
            weights=weights,
            on_progress=on_progress,
        )
    tables.print_certificate(asdict(certificate))
    if as_json:
        output.print_json(asdict(certificate))


@app.command()
def bench(
    models: Annotated[
        list[str] | None, typer.Argument(help="Names or files (default: all stored models).", metavar="[MODEL]...")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Images to embed (default: drawn ones of 100x100).", metavar="DIR")
    ] = None,
    size: Size = None,
    random: Annotated[
        bool, typer.Option("--random", help="Random weights for models that are not stored: nothing is downloaded.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure the speed of models on this machine, in images per second of a whole run."""
    import featurepress.models as fp_models
    from featurepress.cli import output, tables

    with show_progress(True) as on_progress:
        speeds = fp_models.bench(models or [], images=images, size=size, random=random, on_progress=on_progress)
    if as_json:
        output.print_json({"speeds": [asdict(speed) for speed in speeds]})
    else:
        tables.print_speeds(speeds)
