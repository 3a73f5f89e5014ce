"""featurepress failures."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from featurepress.cli.options import AsJson, with_settings
from featurepress.cli.output import console
from featurepress.errors import SettingError
from featurepress.settings.constraint import Stage, optional_setting

if TYPE_CHECKING:
    from featurepress.features.feature_set import FeatureSet
    from featurepress.specs import Failure

_SHOWN_ROWS = 50  # in a terminal, by default


@dataclass(frozen=True)
class ViewSettings(Stage):
    """How many failures are shown."""

    limit: int | None = optional_setting(
        int, "Show only the first N; 0 shows all (default: 50 in a terminal, else all).", minimum=0
    )


@with_settings(ViewSettings)
def failures(
    options: dict[str, Any],
    destination: Annotated[str, typer.Argument(help="A feature set.", metavar="DEST")],
    as_csv: Annotated[bool, typer.Option("--csv", help="Print as CSV on stdout: uri,stage,reason.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the images that could not be embedded, and why."""
    from featurepress.features.feature_set import open_features

    if as_csv and as_json:
        raise SettingError("Failures are printed as CSV or as JSON. Got --csv and --json; use one of them.")
    n_rows = ViewSettings(**options).limit
    features = open_features(destination, allow_incomplete=True)
    if as_csv:
        _print_csv(_rows(features, n_rows))
    elif as_json:
        _print_json(_rows(features, n_rows))
    else:
        _print_table(features, n_rows)
    if not features.is_complete:
        _print_note(destination)


def _rows(features: FeatureSet, limit: int | None) -> Iterator[Failure]:
    """Yield the first failures, or all; batch by batch."""
    from featurepress.specs import Failure

    found = (Failure(**row) for batch in features.failures.to_batches() for row in batch.to_pylist())
    return islice(found, limit or None)


def _print_csv(rows: Iterator[Failure]) -> None:
    from featurepress.specs import Failure

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # in every locale
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(Failure._fields)
    writer.writerows(rows)


def _print_json(rows: Iterator[Failure]) -> None:
    before = "[\n"
    for row in rows:
        sys.stdout.write(before + json.dumps(row._asdict()))
        before = ",\n"
    sys.stdout.write("[]\n" if before == "[\n" else "\n]\n")


def _print_table(features: FeatureSet, limit: int | None) -> None:
    is_terminal = sys.stdout.isatty()  # Rich would also accept FORCE_COLOR
    if limit is None and is_terminal:
        limit = _SHOWN_ROWS
    kinds = Counter(row.kind for row in _rows(features, None))
    n_failed = kinds.total()
    heading = Text(f"{n_failed:,} of {len(features) + n_failed:,} images failed", style="bold")
    for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])):
        heading.append(f" · {count:,} {kind}", style="not bold")
    screen = console(stderr=False)
    screen.print(heading)
    if is_terminal and n_failed:
        screen.print(_table(_rows(features, limit)))
    else:  # a line per failure for grep and cut, without the delay of laying out a table
        sys.stdout.writelines("\t".join(map(_printable, row)) + "\n" for row in _rows(features, limit))
    if limit and n_failed > limit:
        screen.print(
            Text(f"and {n_failed - limit:,} more; --limit 0 shows all, --csv prints them for programs", "dim")
        )


def _table(rows: Iterator[Failure]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("uri", overflow="fold")
    table.add_column("stage", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(text)) for text in row))
    return table


def _printable(text: str) -> str:
    """Escape the characters that control a terminal, such as a line feed in a name."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _print_note(destination: str) -> None:
    note = "The feature set is not complete: these are the failures so far. Finish it with: "
    sys.stdout.flush()
    console().print(Text(f"{note}featurepress resume {shlex.quote(destination)}"))
