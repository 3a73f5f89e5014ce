"""Names on disk: each is written in one file, and names are parsed back into what they were made of."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import featurepress
from featurepress.ledger import names

PACKAGE = Path(featurepress.__file__).parent
NAMES = PACKAGE / "ledger" / "names.py"
# Files, and folders with something below them. Columns and settings are called `features` and `csv`, too.
ON_DISK = re.compile(
    r"^(manifest|model|plan|listing|before)\.json$|^(moments|classifier|projection)\.npz$|^(part|chunk)-$"
    r"|^(plan|features|failures|receipts|attempts|csv|analysis|projection|predictions|annotated)/[a-z]"
    r"|^(receipts|attempts|annotated)$"
)


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the value of each string of a file, except docstrings and messages."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            yield node.lineno, node.value


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_on_disk_are_written_in_one_file_only(path: Path) -> None:
    found = [(line, text) for line, text in texts_of(path) if ON_DISK.search(text)]
    assert path == NAMES or not found


def test_the_search_for_names_finds_them() -> None:
    found = {text for _, text in texts_of(NAMES) if ON_DISK.search(text)}
    assert {"manifest.json", "model.json", "receipts"} <= found


@pytest.mark.parametrize("generation", [1, 2, 12])
def test_names_are_parsed_into_what_they_were_made_of(generation: int) -> None:
    assert names.parse_receipt_name(names.receipt_name(7, generation)) == (7, generation)
    assert names.shard_of(names.part_name(7)) == names.shard_of(names.prediction_name(7, "json")) == 7
    if generation > 1:  # the first generation revises nothing
        assert names.parse_revision_name(names.revision_name(generation, 7)) == (generation, 7)


@pytest.mark.parametrize(
    "name", ["manifest.json", "plan/g2/plan.json", "receipts/part-0.tmp", "features/a.parquet"]
)
def test_other_names_are_not_parsed(name: str) -> None:
    assert names.parse_receipt_name(name) is None
    assert names.parse_revision_name(name) is None


@pytest.mark.parametrize(
    "name",
    [
        names.MANIFEST, names.PLAN, names.plan_name(3), names.listing_name(1), names.listing_name(3), names.MOMENTS,
        names.chunk_name(1, 0), names.chunk_name(2, 5), names.part_name(0), names.failures_name(0),
        names.receipt_name(0, 1), names.receipt_name(0, 4), names.attempt_name(0, "0a1b2c3d"), names.csv_name(0),
        names.projection_name("0" * 64),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "sets/fruits/"])
def test_keys_of_a_feature_set_are_recognized_below_any_prefix(prefix: str, name: str) -> None:
    match = names.KEY_IN_FEATURE_SET.fullmatch(prefix + name)
    assert match is not None
    assert (match[1] or "") == prefix.rstrip("/")
