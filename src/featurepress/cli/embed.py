"""featurepress embed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurepress.cli import output
from featurepress.cli.options import AsJson, Out, with_run_settings
from featurepress.progress import format_bytes

if TYPE_CHECKING:
    from featurepress.runs.verbs import Estimate


@with_run_settings()
def embed(
    options: dict[str, Any],
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders, globs in quotes, files, buckets, archives, tables, lists of urls.", metavar="SOURCES..."
        ),
    ],
    out: Out = "results{time}",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List and count only; write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Embed images into a feature set.

    The same command again finishes an interrupted run, and does nothing after a finished one.
    """
    from featurepress.runs import verbs

    if dry_run:
        del options["engine"]
        _print_estimate(verbs.estimate(sources, out, **options), as_json=as_json)
        return
    out = verbs.expand_time(out)
    output.run(lambda: verbs.embed(sources, out, **options), out, as_json=as_json)


def _print_estimate(estimate: Estimate, *, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        output.print_json(asdict(estimate))
        return
    skipped = "".join(f", {count:,} skipped ({reason})" for reason, count in estimate.skipped.items())
    screen = output.console()
    screen.print(f"{estimate.images:,} images, {format_bytes(estimate.bytes)}{skipped}", markup=False)
    screen.print(
        f"would become {estimate.parts:,} parts of {estimate.n_features:,} features per image, "
        f"{format_bytes(estimate.expected_bytes)} at most (compression saves a fifth or more)"
    )
