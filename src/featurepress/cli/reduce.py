"""featurepress reduce."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurepress.cli import output
from featurepress.cli.options import AsJson, Out, with_settings
from featurepress.progress import format_bytes, format_seconds
from featurepress.settings import ReductionSettings

if TYPE_CHECKING:
    from featurepress.features.feature_set import FeatureSet
    from featurepress.learning.reduced import ReducedFeatureSet


@with_settings(ReductionSettings, engine=True)
def reduce(
    options: dict[str, Any],
    destination: Annotated[str, typer.Argument(help="A feature set.", metavar="FEATURES")],
    out: Out = "reduced{time}",
    using: Annotated[
        str | None,
        typer.Option(
            "--using",
            help="Use the projection of this reduced set, as for later images; nothing is fitted.",
            metavar="REDUCED",
        ),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(
            "--report",
            help="Write an HTML page with the variance kept and a map of the images; plots are written beside it.",
            metavar="FILE.html",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Reduce a feature set to fewer numbers per image (principal component analysis)."""
    from featurepress.features.feature_set import open_features
    from featurepress.learning import reduction
    from featurepress.runs.verbs import expand_time

    started, out = time.perf_counter(), expand_time(out)
    features = open_features(destination)
    reduced = reduction.reduce(features, out, using=using, report=report, **options)
    seconds = time.perf_counter() - started
    _print_result(features, reduced, seconds=seconds, report=report)
    if as_json:
        result = {"where": reduced.location, "report": report, "seconds": seconds}
        output.print_json({**(reduced.manifest or {}), **result})


def _print_result(features: FeatureSet, reduced: ReducedFeatureSet, *, seconds: float, report: str | None) -> None:
    pca = reduced.pca
    ratios = pca.explained_variance_ratio_
    lines = output.Lines()
    lines.add(
        "rows", f"{len(reduced):,}, each of {reduced.n_features:,} features instead of {features.n_features:,}"
    )
    first = ", ".join(f"{share:.1%}" for share in ratios[:5])
    lines.add("variance", f"{ratios.sum():.2%} explained; by the first components {first}")
    is_own = reduced.reduction["settings"]["using"] is None
    fitted = f"to {pca.n_samples_:,} images" if is_own else "to those of the other set"
    lines.add("fitted", f"{fitted}, solver {pca.solver_}")
    lines.add("bytes", f"{format_bytes(reduced.bytes)} instead of {format_bytes(features.bytes)}")
    lines.add("time", format_seconds(seconds))
    lines.add("where", reduced.location)
    if report is not None:
        lines.add("report", report)
    lines.print(output.console())
    typer.echo(f"next: featurepress info {shlex.quote(reduced.location)}", err=True)
