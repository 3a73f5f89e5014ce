"""The same plan has the same files, rows and values on every engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.engines.clusters.conftest import require_spark
from tests.engines.clusters.runs import embed
from tests.running import draw, read_failures

KINDS: dict[str, tuple[str, ...]] = {
    "local[2]": (),
    "local-cluster[2,1,1024]": (),
    "local-cluster[2,2,1024]": ("spark.task.cpus=2",),  # two shards a task
    "connect": (),
    "ray": (),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("pictures"), 1_000, broken=True)


@pytest.fixture(scope="module")
def locally(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "out"
    embed("local", pictures, out)
    return out


def names(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def tables(out: Path) -> dict[str, Any]:
    return {path.name: pq.read_table(path).replace_schema_metadata() for path in out.glob("features/*.parquet")}


LONG = {"local[2]", "local-cluster[2,2,1024]"}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.long) if k in LONG else k for k in KINDS])
def test_every_engine_computes_the_same(kind: str, pictures: Path, locally: Path, tmp_path: Path) -> None:
    if kind == "ray":
        pytest.importorskip("ray", reason="ray is not installed: make test-engines")
    else:
        require_spark()
    if kind == "connect":
        pytest.importorskip("grpc", reason="grpcio is not installed: make test-engines")
    out = tmp_path / "out"
    embed(kind, pictures, out, *KINDS[kind])
    assert names(out) == names(locally)
    ours, theirs = tables(out), tables(locally)
    assert sum(len(table) for table in ours.values()) == 1_000
    assert ours.keys() == theirs.keys()
    for name, table in ours.items():
        assert table.equals(theirs[name]), name  # NaN would not be equal, and there is none
    assert read_failures(out) == read_failures(locally)
    assert len(read_failures(out)) == 3
