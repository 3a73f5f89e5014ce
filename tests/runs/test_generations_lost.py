"""Files that are lost, and drivers that wake, while a set is between two generations: any command mends it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import featurepress as fp
from featurepress import ledger
from featurepress.embedding.shard import embed_shard
from featurepress.errors import StorageError, TooManyFailuresError
from featurepress.features.feature_set import FeatureSet
from featurepress.ledger.layout import Layout, Tier
from featurepress.ledger.names import part_name
from featurepress.runs.verbs import run_plan
from featurepress.storage import Data, FolderStorage
from featurepress.testing import InlineEngine
from tests.running import draft, read_failures, read_json, read_rows
from tests.runs.worlds import WATCHERS, World, commit_late_revision, killed_at, plan_of, shards_of, watched

VERBS = ["resume", "update", "retry"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return a set of generation 2 with one failure."""
    world = World(tmp_path)
    world.pictures[0].write_bytes(b"no picture")
    world.update()
    return world


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("with_receipt", [False, True])
def test_a_part_that_is_lost_does_not_stop_any_command(
    world: World, tmp_path: Path, verb: str, with_receipt: bool
) -> None:
    lost = shards_of(world, 1)[-1]
    (world.out / part_name(lost)).unlink()
    if with_receipt:
        (world.out / "receipts" / f"part-{lost:08d}.json").unlink()
    assert getattr(world, verb)().is_complete
    world.assert_up_to_date(tmp_path)


@pytest.mark.parametrize("verb", VERBS)
def test_a_part_that_is_lost_after_an_update_was_killed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    world.change()
    killed_at("plan/g3/listing.json", world, monkeypatch)
    (world.out / part_name(shards_of(world, 1)[-1])).unlink()
    assert getattr(world, verb)().is_complete
    world.assert_up_to_date(tmp_path)


@pytest.mark.parametrize("verb", VERBS)
def test_a_receipt_that_is_lost_after_a_retry_was_killed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    killed_at("plan/g3/listing.json", world, monkeypatch, "retry")
    (shard,) = ledger.revised_shards(plan_of(world, 3))
    for receipt in (world.out / "receipts").glob(f"part-{shard:08d}*"):
        receipt.unlink()
    assert getattr(world, verb)().is_complete
    world.assert_up_to_date(tmp_path)


def test_a_lost_receipt_of_a_set_with_too_many_failures_does_not_stop_a_retry(tmp_path: Path) -> None:
    world = World(tmp_path, max_failures=0.05)
    for path in world.pictures[:8]:
        path.write_bytes(b"no picture")
    with pytest.raises(TooManyFailuresError):
        world.update()
    (world.out / "receipts" / "part-00000003.json").unlink()
    for path in world.pictures[:8]:
        shutil.copy(world.pictures[20], path)
    assert world.retry().summary.changes == fp.Changes(0, 0, 0, 8)
    world.assert_up_to_date(tmp_path)


def test_failures_are_retried_though_their_file_is_gone(world: World, tmp_path: Path) -> None:
    """The part's footer decides; a worker of an earlier generation that woke may have deleted the file."""
    for path in world.out.glob("failures/*"):
        path.unlink()
    shutil.copy(world.pictures[20], world.pictures[0])
    assert world.retry().summary.changes == fp.Changes(0, 0, 0, 1)
    world.assert_up_to_date(tmp_path)


# -- drivers that wake ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", ["plan/g3/listing.json", "manifest.json", None])
@pytest.mark.parametrize("verb", VERBS)
def test_a_revision_that_comes_after_the_next_generation_has_begun_is_not_taken_up(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, killed: str | None
) -> None:
    shard = shards_of(world, 1)[0]
    Path(ledger.read_shard(plan_of(world, 1), shard)[3].uri).unlink()
    world.pictures[-1].unlink()
    if killed is None:
        world.update()
    else:
        n_seen = [0]

        def stop(name: str) -> None:
            n_seen[0] += name == killed
            if n_seen[0] == (2 if killed == "manifest.json" else 1) and name == killed:
                raise StorageError("killed")

        with watched(world.out, stop, monkeypatch), pytest.raises(StorageError, match="killed"):
            world.update()
    commit_late_revision(world, 2, shard)
    assert getattr(world, verb)().is_complete
    world.assert_up_to_date(tmp_path)
    assert world.update().summary.changes == fp.Changes(0, 0, 0, 0)
    world.assert_up_to_date(tmp_path)


def test_what_another_driver_does_while_the_sums_are_made_is_in_them(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.change()
    others = [0]

    @dataclass(frozen=True)
    class Overtaken(FolderStorage):
        """A folder in which another driver finishes when the sums are ready to be written."""

        def replace(self, name: str, data: Data, version: str) -> bool:
            if name == "manifest.json" and b'"complete"' in bytes(data) and not others[0]:  # type: ignore[arg-type]
                others[0] += 1
                commit_late_revision(world, 3, shards_of(world, 1)[-1]).unlink()
                assert world.resume().is_complete
            return super().replace(name, data, version)

    monkeypatch.setattr("featurepress.runs.verbs.open_storage", lambda location: Overtaken(str(location)))
    assert world.update().is_complete
    monkeypatch.undo()
    assert others == [1]
    assert read_json(world.out / "manifest.json")["embedded"] == len(read_rows(world.out))
    world.assert_up_to_date(tmp_path)


def test_a_worker_that_wakes_before_it_settles_leaves_the_failures_of_a_later_generation(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.change()
    slept = [0]

    def sleep(name: str) -> None:
        """Sleep after a part was written, and before its failures are."""
        if name == "receipts/part-00000000.g3.json" or slept[0]:
            return
        if name == "features/part-00000000.parquet":
            slept[0] = 1
            WATCHERS[str(world.out)] = lambda name: None
            world.resume()
            shutil.copy(world.pictures[20], world.pictures[0])
            world.update()

    (world.pictures[1]).write_bytes(b"no picture either")
    with watched(world.out, sleep, monkeypatch), pytest.raises(fp.FeaturepressError):
        world.update()
    assert slept == [1]
    assert [Path(uri).name for uri, _, _ in read_failures(world.out)] == [world.pictures[1].name]
    world.assert_up_to_date(tmp_path)


class Chunked(World):
    """A world whose chunks hold four images."""

    def embed(self, out: Path) -> FeatureSet:
        plan = replace(draft(out, self.source, **self.options), layout=Layout((Tier(4, 2),)))
        return run_plan(plan, engine=InlineEngine())


def test_a_chunk_of_another_driver_never_makes_ours_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Chunked(tmp_path, 12)
    picture, others = world.pictures[0], [0]
    for i in range(11):
        shutil.copy(picture, picture.with_name(f"zz{i:02d}.jpg"))

    def kill_at_the_second(name: str) -> None:
        if name == "plan/g2/chunk-00000001.parquet":
            raise StorageError("killed")

    def meanwhile(name: str) -> None:
        """Another driver sees images that come before ours, commits a chunk of them, and dies."""
        if name == "plan/g2/chunk-00000000.parquet" and not others[0]:
            others[0] += 1
            for i in range(5):
                shutil.copy(picture, picture.with_name(f"aa{i}.jpg"))
            ours, WATCHERS[str(world.out)] = WATCHERS[str(world.out)], kill_at_the_second
            with pytest.raises(StorageError, match="killed"):
                world.resume()
            WATCHERS[str(world.out)] = ours

    with watched(world.out, meanwhile, monkeypatch):
        assert world.update().is_complete
    plan = plan_of(world, 2)
    sizes = [chunk.n_images for n in range(5) if (chunk := ledger.read_chunk(plan, n)) is not None]
    assert sizes == [4, 4, 4, 3]
    world.update()
    world.assert_up_to_date(tmp_path)


def test_a_storage_whose_versions_always_change_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Restless(FolderStorage):
        """A folder in which nothing has the version that was read."""

        def replace(self, name: str, data: Data, version: str) -> bool:
            return False

    plan = replace(draft(tmp_path, tmp_path), storage=Restless(str(tmp_path)))
    plan.storage.prepare()
    ledger.complete_manifest(plan, lambda: {"generation": 1})
    with pytest.raises(StorageError, match=r"manifest.json' cannot be replaced"):
        ledger.complete_manifest(plan, lambda: {"generation": 1})


@pytest.mark.parametrize("verb", VERBS)
def test_what_an_earlier_generation_has_lost_is_embedded_again_during_a_later_one(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    world.change()
    killed_at("plan/g3/listing.json", world, monkeypatch)
    revised = ledger.revised_shards(plan_of(world, 3))
    for generation, ending in ((1, ""), (2, ".g2")):
        for shard in shards_of(world, generation):
            if shard not in revised:
                (world.out / "receipts" / f"part-{shard:08d}{ending}.json").unlink()
                (world.out / part_name(shard)).unlink()
    assert getattr(world, verb)().is_complete
    world.assert_up_to_date(tmp_path)
    with pytest.raises(fp.FeaturepressError, match="at generation 3"):
        embed_shard(plan_of(world, 2), min(ledger.revised_shards(plan_of(world, 2))))
