"""The commands `featurepress models`: list, show, pull, add, verify, bench."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

import featurepress.models as fp_models
from featurepress.cli import output, tables
from featurepress.cli.options import AsJson, with_settings
from featurepress.settings import Choices

app = typer.Typer(help="List, download, add, verify and time models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A name from the list, a model file, or hf:org/repo.", metavar="MODEL")]
Size = Annotated[int | None, typer.Option(help="Side of the input in pixels.", min=1, max=4096)]
Alpha = Annotated[float | None, typer.Option(help="Width of a MobileNet.")]
Weights = Annotated[str | None, typer.Option(help="Weights of a Keras model: 'imagenet' (default), or a .h5 file.")]
Pooling = Annotated[str, typer.Option(help="avg, flatten or max.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List all models: bundled, your own, and those of Keras Applications."""
    found = fp_models.list()
    if as_json:
        output.print_json({"models": [asdict(model) for model in found]})
    else:
        tables.print_models(found)


@app.command()
def show(
    model: Name,
    outputs: Annotated[
        bool, typer.Option("--outputs", help="List the tensors of a model file that can be its features.")
    ] = False,
    size: Size = None,
    alpha: Alpha = None,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Describe a model."""
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
    as_json: AsJson = False,
) -> None:
    """Download a model, check it, convert it, and store it."""
    card = fp_models.pull(model, size=size, alpha=alpha, weights=weights, pooling=pooling)
    tables.print_ready(card)
    if as_json:
        output.print_json(card.to_json())


@app.command()
@with_settings(Choices)
def add(
    options: dict[str, Any],
    file: Annotated[str, typer.Argument(help=".keras, .onnx, .tflite, .xml or SavedModel.", metavar="FILE")],
    name: Annotated[str, typer.Option(help="Name for --model.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Check and convert your own model file, and store it under a name for embed."""
    card = fp_models.add(file, name, **options)
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
    as_json: AsJson = False,
) -> None:
    """Compare a model's features with those of its original library, and store a parity certificate."""
    certificate = fp_models.verify(
        model, images, pooling=pooling, limit=limit, size=size, alpha=alpha, weights=weights
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
        str | None, typer.Option(help="Folder of images to embed (default: drawn ones of 100x100).", metavar="DIR")
    ] = None,
    size: Size = None,
    random: Annotated[
        bool,
        typer.Option("--random", help="Use random weights for models that are not stored; nothing is downloaded."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the images per second that models embed on this machine."""
    speeds = fp_models.bench(models or [], images=images, size=size, random=random)
    if as_json:
        output.print_json({"speeds": [asdict(speed) for speed in speeds]})
    else:
        tables.print_speeds(speeds)
