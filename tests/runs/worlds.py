"""A folder of pictures that changes, and a feature set of it whose every write can be watched."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import featurepress as fp
from featurepress import ledger
from featurepress.errors import StorageError
from featurepress.features.feature_set import FeatureSet
from featurepress.ledger import Plan, References
from featurepress.runs.verbs import run_plan
from featurepress.storage import FolderStorage
from featurepress.testing import InlineEngine
from tests.running import draft, draw, leftovers, read_failures, read_footers, read_json, read_rows
from tests.storages import HookedStorage


class World:
    """A folder of pictures and the feature set that was made of it, by the fake backbone."""

    def __init__(self, folder: Path, n: int = 40, **options: Any) -> None:
        self.source, self.out = folder / "in", folder / "out"
        self.options = {"labels": "parent", "images_per_part": 8, "max_failures": 1.0, **options}
        self.pictures = sorted(p for p in draw(self.source, n).rglob("*.*") if p.is_file())
        self.embed(self.out)

    def embed(self, out: Path) -> FeatureSet:
        return run_plan(draft(out, self.source, **self.options), engine=InlineEngine())

    def update(self, **options: Any) -> FeatureSet:
        return fp.update(self.out, engine=InlineEngine(), **options)

    def resume(self) -> FeatureSet:
        return fp.resume(self.out, engine=InlineEngine())

    def retry(self, **options: Any) -> FeatureSet:
        return fp.retry(self.out, engine=InlineEngine(), **options)

    def change(self) -> None:
        """Delete, change, touch and add some pictures."""
        for path in self.pictures[3:6]:
            path.unlink()
        for path, other in zip(self.pictures[10:13], self.pictures[20:23], strict=True):
            path.write_bytes(other.read_bytes() + b" ")
        for path in self.pictures[17:19]:
            os.utime(path, ns=(0, 0))
        for i, path in enumerate(self.pictures[30:34]):
            shutil.copy(path, path.with_name(f"{'amz'[i % 3]}-new{i}.jpg"))

    def assert_up_to_date(self, folder: Path) -> None:
        """Fail unless the rows and failures are those of a run that begins now."""
        anew = folder / "anew"
        shutil.rmtree(anew, ignore_errors=True)
        self.embed(anew)
        assert read_rows(self.out) == read_rows(anew)
        assert sorted(read_failures(self.out)) == sorted(read_failures(anew))
        ours, theirs = (read_json(out / "manifest.json") for out in (self.out, anew))
        for name in ("status", "listed", "embedded", "failed", "failed_by_kind", "skipped"):
            assert ours[name] == theirs[name], name
        assert leftovers(self.out) == []

    def parts(self) -> dict[str, set[str]]:
        """Return the uris in each part."""
        return {
            path.name: set(pq.read_table(path, columns=["uri"])["uri"].to_pylist())
            for path in sorted(self.out.glob("features/*.parquet"))
        }


@dataclass(frozen=True)
class WatchedStorage(HookedStorage):
    """A folder that calls a function with the name of each object before it is written."""

    def before(self, request: str, name: str, n_bytes: int) -> None:
        if request in ("create", "write", "replace"):
            WATCHERS[self.root](name)


WATCHERS: dict[str, Callable[[str], None]] = {}


@contextlib.contextmanager
def watched(out: Path, watcher: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have everything that is written to a feature set watched."""
    WATCHERS[str(out)] = watcher
    monkeypatch.setattr("featurepress.runs.verbs.open_storage", lambda location: WatchedStorage(str(location)))
    yield
    monkeypatch.undo()


def written_by_update(world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Callable[[], None]]:
    """Update a world; return the names that were written, and a function that restores the set and the images."""
    start = world.out.with_name("start")
    shutil.copytree(world.out, start)
    names = list[str]()
    with watched(world.out, names.append, monkeypatch):
        world.update()
    images = {path: path.read_bytes() for path in world.source.rglob("*.jpg")}

    def restore() -> None:
        shutil.rmtree(world.out)
        shutil.copytree(start, world.out)
        for path in world.source.rglob("*.jpg"):
            path.unlink()
        for path, data in images.items():
            path.write_bytes(data)

    return names, restore


def killed_at(prefix: str, world: World, monkeypatch: pytest.MonkeyPatch, verb: str = "update") -> None:
    """Run a command that is killed when it first writes something whose name begins so."""

    def stop(name: str) -> None:
        if name.startswith(prefix):
            raise StorageError("killed")

    with watched(world.out, stop, monkeypatch), pytest.raises(StorageError, match="killed"):
        getattr(world, verb)()


def shards_of(world: World, generation: int) -> list[int]:
    """Return the shards whose part was written by a generation."""
    receipts = [footer["receipt"] for footer in read_footers(world.out)]
    return [receipt["shard"] for receipt in receipts if receipt["generation"] == generation]


def commit_late_revision(world: World, generation: int, shard: int) -> Path:
    """Commit a revision without the first image of a shard, and return the path of that image."""
    refs = ledger.read_shard(plan_of(world, 1), shard)
    late = References(refs[1:], [True] * (len(refs) - 1), 1)
    ledger.commit_revision(plan_of(world, generation), shard, late, len(refs))
    return Path(refs[0].uri)


def plan_of(world: World, generation: int) -> Plan:
    """Return the plan of a generation of a world's set."""
    plan = ledger.read_generation(FolderStorage(str(world.out)), generation)
    assert plan is not None
    return plan
