"""Feature sets of known rows, written without a run, and readers of their exports."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featurepress import ledger
from featurepress.features.feature_set import FeatureSet
from featurepress.ledger.names import part_name
from featurepress.ledger.schemas import part_schema
from featurepress.specs import BackboneSpec, PreprocessSpec
from featurepress.storage import FolderStorage, Storage
from featurepress.testing import draft_plan, memory_source

FORMATS = ("npy", "npz", "csv", "parquet", "arrow")
N_ROWS, PART = 23, 5


def made(
    storage: Storage | Path,
    X: npt.NDArray[np.float32],
    uris: list[str] | None = None,
    /,
    *,
    rows_a_part: int = 4,
    complete: bool = True,
    distinct: bool = False,
    **fields: Sequence[str | None],
) -> FeatureSet:
    """Write a set with these rows, as if a run had embedded them; if `distinct`, every image has another hash."""
    if isinstance(storage, Path):
        storage = FolderStorage(str(storage))
    storage.prepare()
    n_rows, n_features = X.shape
    spec = BackboneSpec("fake", "fake", "0" * 64, "grid", (1, 1, n_features), "avg", PreprocessSpec(8, 8))
    plan = replace(draft_plan(storage, memory_source({}), backbone=spec), field_names=tuple(fields))
    ledger.create_plan(plan)
    columns: dict[str, Any] = {"uri": uris or [f"{i:06d}.jpg" for i in range(n_rows)], **fields}
    columns |= {
        "width": [8] * n_rows,
        "height": [8] * n_rows,
        "sha256": ["0" * 64] * n_rows,
    }
    if distinct:
        columns["sha256"] = [hashlib.sha256(uri.encode()).hexdigest() for uri in columns["uri"]]
    columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), n_features)
    table = pa.table(columns, schema=part_schema(plan.field_names, n_features))
    for part, start in enumerate(range(0, n_rows, rows_a_part)):
        with storage.stream(part_name(part)) as file:
            pq.write_table(table.slice(start, rows_a_part), file)
    if complete:
        ledger.complete_manifest(plan, lambda: {"status": "complete"})
    return FeatureSet(plan, ledger.read_manifest(storage))


def numbers(n_rows: int, n_features: int = 6) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(n_rows, n_features)).astype(np.float32)


def labelled(out: Path) -> FeatureSet:
    """Write a set of 23 rows in parts of 5, with labels."""
    labels: list[str | None] = [f"fruit {i % 3}" for i in range(N_ROWS)]
    return made(out, numbers(N_ROWS, 12), rows_a_part=PART, label=labels)


# -- reading exports back ------------------------------------------------------------------------------------

Read = Callable[[Path], tuple[npt.NDArray[np.float32], list[str] | None]]


def read_npy(path: Path) -> tuple[npt.NDArray[np.float32], None]:
    return np.load(path, allow_pickle=False), None


def read_npz(path: Path) -> tuple[npt.NDArray[np.float32], list[str]]:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["X"], arrays["uris"].tolist()


def read_csv(path: Path) -> tuple[npt.NDArray[np.float32], list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return _stacked([json.loads(row["features"]) for row in rows]), [row["uri"] for row in rows]


def read_parquet(path: Path) -> tuple[npt.NDArray[np.float32], list[str]]:
    table = pq.read_table(path)
    return _stacked(table["features"].to_pylist()), table["uri"].to_pylist()


def read_arrow(path: Path) -> tuple[npt.NDArray[np.float32], list[str]]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
        table = reader.read_all()
        return _stacked(table["features"].to_pylist()), table["uri"].to_pylist()


def _stacked(rows: list[list[float]]) -> npt.NDArray[np.float32]:
    return np.array(rows, np.float32) if rows else np.empty((0, 0), np.float32)


READERS: dict[str, Read] = {
    "npy": read_npy,
    "npz": read_npz,
    "csv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
}


def assert_same_rows(paths: list[str], kind: str, features: FeatureSet) -> list[int]:
    """Fail unless the files have all rows once, in order, bit for bit; return the number of rows of each."""
    found = [READERS[kind](Path(path)) for path in paths]
    X = [rows for rows, _ in found if len(rows)]
    assert (np.concatenate(X) if X else np.empty((0, 0))).tobytes() == features.to_numpy().tobytes()
    if kind != "npy":
        assert [uri for _, uris in found for uri in uris or ()] == list(features.uris)
    return [len(rows) for rows, _ in found]
