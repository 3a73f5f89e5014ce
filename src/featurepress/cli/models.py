"""featurepress models: list, show, pull, add, verify, bench."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from featurepress.cli.options import with_choices

app = typer.Typer(help="List, get, add, verify and time models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A name of the list, a model file, or hf:org/repo.", metavar="MODEL")]
Size = Annotated[int | None, typer.Option(help="Side of the input in pixels.", min=1, max=4096)]
Alpha = Annotated[float | None, typer.Option(help="Width of a MobileNet.")]
Weights = Annotated[str | None, typer.Option(help="'imagenet' (default), or a keras weights file.")]
Pooling = Annotated[str, typer.Option(help="avg, flatten or max.")]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")]


def register(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.add_typer(app, name="models")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List all models that have a name."""
    from featurepress.cli import output, tables
    from featurepress.models.catalog import list_models

    with output.live_line() as on_progress:
        models = list_models(on_progress=on_progress)
    if as_json:
        output.print_json({"models": [asdict(one) for one in models]})
    else:
        tables.print_models(models)


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
    """Show what is known of a model."""
    from featurepress.cli import output, tables
    from featurepress.models import catalog
    from featurepress.models.origins import files

    if outputs:
        found = files.outputs(model)
        return output.print_json({"outputs": found}) if as_json else tables.print_outputs(found)
    known = catalog.describe_model(model, size=size, alpha=alpha, weights=weights)
    return output.print_json(known) if as_json else tables.print_model(known)


@app.command()
def pull(
    model: Name,
    size: Size = None,
    alpha: Alpha = None,
    weights: Weights = None,
    pooling: Pooling = "avg",
    as_json: Json = False,
) -> None:
    """Download a model, check and convert it, and keep it ready."""
    from featurepress.cli import output, tables
    from featurepress.models.catalog import find_card

    with output.live_line() as on_progress:
        options: dict[str, Any] = {"size": size, "alpha": alpha, "weights": weights, "pooling": pooling}
        card = find_card(model, **options, on_progress=on_progress)
    tables.print_ready(card)
    if as_json:
        output.print_json(card.to_json())


@app.command()
@with_choices()
def add(
    file: Annotated[str, typer.Argument(help=".keras, .onnx, .tflite, .xml or SavedModel.", metavar="FILE")],
    name: Annotated[str, typer.Option(help="What to call it.", show_default=False)],
    as_json: Json = False,
    options: dict[str, Any] = {},  # noqa: B006 - never changed
) -> None:
    """Give a model of your own a name, by which embed finds it."""
    from featurepress.cli import output, tables
    from featurepress.models import catalog
    from featurepress.settings import Choices

    with output.live_line() as on_progress:
        card = catalog.add_model(file, name, Choices(**options), on_progress=on_progress)
    tables.print_ready(card)
    if as_json:
        output.print_json(card.to_json())


@app.command()
def verify(
    model: Name,
    pictures: Annotated[
        list[str], typer.Argument(help="Folders, globs in quotes, or files.", metavar="PICTURES...")
    ],
    pooling: Pooling = "avg",
    limit: Annotated[int, typer.Option(help="Pictures to take at most.", min=1)] = 64,
    size: Size = None,
    alpha: Alpha = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Hold a model's features against those of the library that it comes from: the parity certificate."""
    from featurepress.cli import output, tables
    from featurepress.embedding import parity as house

    with output.live_line() as on_progress:
        options: dict[str, Any] = {"size": size, "alpha": alpha, "weights": weights}
        certificate = house.verify(
            model, pictures, pooling=pooling, limit=limit, on_progress=on_progress, **options
        )
    tables.print_certificate(asdict(certificate))
    if as_json:
        output.print_json(asdict(certificate))


@app.command()
def bench(
    models: Annotated[
        list[str] | None, typer.Argument(help="Names or files (default: all that are ready).", metavar="[MODEL]...")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Pictures to embed (default: drawn ones of 100x100).", metavar="DIR")
    ] = None,
    size: Size = None,
    random: Annotated[
        bool, typer.Option("--random", help="Random weights for what is not ready: speed needs no download.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure images a second here, whole runs of embed, model by model."""
    from featurepress.cli import output, tables
    from featurepress.runs import benchmark as house

    with output.live_line() as on_progress:
        speeds = house.bench(models or [], images=images, size=size, random=random, on_progress=on_progress)
    if as_json:
        output.print_json({"speeds": [asdict(one) for one in speeds]})
    else:
        tables.print_speeds(speeds)
