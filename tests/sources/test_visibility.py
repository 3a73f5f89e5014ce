"""Workers that cannot read what the driver can read stop before an image becomes a failure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import pytest

from featurepress.embedding import reading
from featurepress.engines import Task
from featurepress.errors import EngineError, StoppedError
from featurepress.ledger import Plan
from featurepress.runs.verbs import run_plan
from featurepress.settings import ImageSettings, ListingSettings
from featurepress.sources import Listing, describe, require_visible, visible
from featurepress.specs import Receipt
from featurepress.testing import InlineEngine
from tests.running import draft, draw, read_failures, read_rows

Result = TypeVar("Result")
HOST = os.uname().nodename


class Elsewhere(InlineEngine):
    """A cluster whose workers find an empty folder, the mount point, where the driver has images."""

    is_cluster = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run_one(self, task: Task[Result], plan: Plan, shard: int) -> Result:
        """Hide the images while a task runs."""
        hidden = self.folder.with_name("hidden")
        self.folder.rename(hidden)
        self.folder.mkdir()
        try:
            return super().run_one(task, plan, shard)
        finally:
            self.folder.rmdir()
            hidden.rename(self.folder)


class Cluster(InlineEngine):
    """A cluster whose workers can read everything."""

    is_cluster = True


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return draw(tmp_path / "in", 12)


def test_a_worker_without_the_mount_stops_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    plan = draft(tmp_path / "out", source)
    with pytest.raises(EngineError, match=rf"^The worker {HOST} cannot see '{source}': .*the driver can read it"):
        run_plan(plan, engine=Elsewhere(source))
    assert not (tmp_path / "out").exists()


def stop(plan: Plan, shard: int) -> Receipt:
    raise StoppedError("enough")


def test_a_worker_without_the_mount_stops_in_a_later_run(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        run_plan(draft(out, source, images_per_part=4), engine=Cluster(), task=stop)
    reading._CHECKED_RUNS.clear()  # as in another process
    with pytest.raises(EngineError, match=r"cannot see .*run the same command again"):
        run_plan(draft(out, source, images_per_part=4), engine=Elsewhere(source))
    assert not list(out.glob("features/*"))
    run_plan(draft(out, source, images_per_part=4), engine=Cluster())
    assert len(read_rows(out)) == 12
    assert read_failures(out) == []


def test_images_that_the_driver_cannot_read_either_are_failures(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"images_per_part": 4, "max_failures": 1.0}
    with pytest.raises(StoppedError):
        run_plan(draft(out, source, **options), engine=Cluster(), task=stop)
    first, *_ = sorted(path for path in source.rglob("*.jpg"))
    first.unlink()
    run_plan(draft(out, source, **options), engine=Cluster())
    assert len(read_rows(out)) == 11
    assert read_failures(out) == [(str(first), "read", "vanished since listing")]


def test_each_source_is_checked(source: Path, tmp_path: Path) -> None:
    """Sources that come late in the listing are checked too."""
    last = draw(tmp_path / "z", 3)
    with pytest.raises(EngineError, match=rf"cannot see '{last}'"):
        run_plan(draft(tmp_path / "out", source, last), engine=Elsewhere(last))


def test_some_of_very_many_sources_are_checked(tmp_path: Path) -> None:
    folders = [draw(tmp_path / f"{number:03d}", 1) for number in range(100)]
    specs = describe(folders)
    listing = Listing(specs, ListingSettings())
    next(iter(listing))
    assert len(listing.firsts) == 100
    limits = ImageSettings()
    require_visible(specs, limits, listing.firsts)
    assert len(visible(specs, limits, listing.firsts)) == 50  # every second one
