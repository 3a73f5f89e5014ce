"""featurepress export."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from featurepress.cli import output
from featurepress.cli.options import AsJson, with_settings
from featurepress.progress import format_bytes, format_seconds
from featurepress.settings import ExportSettings

_SHOWN_FILES = 5


@with_settings(ExportSettings)
def export(
    options: dict[str, Any],
    destination: Annotated[str, typer.Argument(help="A feature set.", metavar="FEATURES")],
    to: Annotated[
        str,
        typer.Option(
            "--to", help="The file: .npy, .npz, .csv, .parquet or .arrow; on disk or in a bucket.", metavar="FILE"
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Write a feature set as one file, or as several, for other tools."""
    from featurepress.features import export as exports
    from featurepress.features.feature_set import open_features

    started = time.perf_counter()
    features = open_features(destination)
    files = exports.export(features, to, **options)
    n_bytes, seconds = sum(map(_size, files)), time.perf_counter() - started
    lines = output.Lines()
    lines.add("rows", f"{len(features):,}, each of {features.n_features:,} features")
    lines.add("bytes", f"{format_bytes(n_bytes)} in {len(files):,} file{'s' if len(files) > 1 else ''}")
    lines.add("time", f"{format_seconds(seconds)}, {format_bytes(n_bytes / seconds)}/s")
    for i, file in enumerate(files[:_SHOWN_FILES]):
        lines.add("where" if i == 0 else "", file)
    if len(files) > _SHOWN_FILES:
        lines.add("", f"and {len(files) - _SHOWN_FILES:,} more, up to {files[-1].rpartition('/')[2]}")
    lines.print(output.console())
    if as_json:
        counts = {"files": files, "rows": len(features), "n_features": features.n_features}
        output.print_json({**counts, "bytes": n_bytes, "seconds": seconds})


def _size(file: str) -> int:
    from featurepress.storage import open_storage

    folder, _, name = file.rpartition("/")
    entry = open_storage(f"{folder}/").stat(name)
    return entry.size if entry is not None else 0
