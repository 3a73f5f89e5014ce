"""What two drivers, kills and power cuts can do to a feature set between its generations: nothing that lasts."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import featurepress as fp
from featurepress import ledger
from featurepress.embedding.shard import embed_shard
from featurepress.errors import StoppedError, StorageError
from featurepress.images import decode
from featurepress.ledger import References
from featurepress.ledger.names import part_name
from featurepress.testing import InlineEngine
from tests.running import read_json, read_rows, snapshot
from tests.runs.worlds import (
    World,
    commit_late_revision,
    killed_at,
    plan_of,
    shards_of,
    watched,
    written_by_update,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def change_more(world: World) -> None:
    """Change pictures of parts that `World.change` changes, and of others; take some changes back."""
    pictures = world.pictures
    pictures[7].unlink(missing_ok=True)
    pictures[10].write_bytes(pictures[25].read_bytes() + b"  ")
    pictures[26].write_bytes(pictures[27].read_bytes() + b"   ")
    shutil.copy(pictures[20], pictures[3])  # it was deleted
    shutil.copy(pictures[20], pictures[20].with_name("b-more.jpg"))
    shutil.copy(pictures[20], pictures[20].with_name("zz-more.jpg"))


# -- kills ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["resume", "update"])
def test_what_changes_again_between_the_kill_of_an_update_and_its_end_is_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    world = World(tmp_path)
    world.change()
    names, restore = written_by_update(world, monkeypatch)
    assert len(names) > 10
    for stop_at in range(2, len(names)):
        restore()
        written = list[str]()

        def stop(name: str, written: list[str] = written, stop_at: int = stop_at) -> None:
            written.append(name)
            if len(written) == stop_at:
                raise StorageError("killed")

        with watched(world.out, stop, monkeypatch), pytest.raises(StorageError, match="killed"):
            world.update()
        change_more(world)
        assert getattr(world, verb)().is_complete, names[stop_at - 1]
        assert world.update().is_complete
        assert world.update().summary.changes == fp.Changes(0, 0, 0, 0)
        world.assert_up_to_date(tmp_path)


# -- two drivers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images_per_part", [8, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("meanwhile", [World.resume, World.update])
def test_another_driver_with_another_view_of_the_sources_at_any_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[World], object], images_per_part: int
) -> None:
    world = World(tmp_path, images_per_part=images_per_part)
    world.change()
    names, restore = written_by_update(world, monkeypatch)
    for other_at in range(2, len(names) + 1, 1 if images_per_part > 1 else 9):
        restore()
        n_written = [0]

        def other(name: str, n_written: list[int] = n_written, other_at: int = other_at) -> None:
            n_written[0] += 1
            if n_written[0] == other_at:
                change_more(world)
                assert meanwhile(world)

        with watched(world.out, other, monkeypatch), contextlib.suppress(StoppedError):
            assert world.update().is_complete
        read_rows(world.out)  # fails on a uri that is there twice
        world.update()  # which finishes an interrupted one
        assert world.update().is_complete, names[other_at - 1]
        world.assert_up_to_date(tmp_path)
        assert ledger.unfinished_shards(plan_of(world, 1).storage) == {}


def test_a_driver_that_comes_late_does_not_set_the_set_back(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.change()
    others = [0]

    def overtake(name: str) -> None:
        if name == "manifest.json" and (world.out / "plan" / "g2" / "listing.json").exists() and not others[0]:
            others[0] += 1
            world.resume()
            change_more(world)
            world.update()

    with (
        watched(world.out, overtake, monkeypatch),
        pytest.raises(StoppedError, match=r"at generation 3, .* at generation 2"),
    ):
        world.update()
    assert others == [1]
    manifest = read_json(world.out / "manifest.json")
    assert (manifest["status"], manifest["generation"]) == ("complete", 3)
    world.assert_up_to_date(tmp_path)


def test_a_worker_that_slept_does_not_replace_a_part_of_a_later_generation(world: World, tmp_path: Path) -> None:
    world.change()
    world.update()
    change_more(world)
    world.update()
    shard = shards_of(world, 3)[0]
    assert (world.out / "plan" / "g2" / f"part-{shard:08d}.parquet").exists()
    before = snapshot(world.out)
    with pytest.raises(StoppedError, match=r"at generation 3, .* at generation 2"):
        embed_shard(plan_of(world, 2), shard)
    assert snapshot(world.out) == before
    world.assert_up_to_date(tmp_path)


def test_a_worker_that_sleeps_while_it_embeds_does_not_either(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.change()
    killed_at("features/", world, monkeypatch)
    slept = [False]

    def sleep(data: bytes, *, max_pixels: int) -> object:
        if not slept[0]:
            slept[0] = True
            world.resume()
            change_more(world)
            world.update()
        return decode(data, max_pixels=max_pixels)

    # Of the revised parts, one in which something is embedded.
    shard = next(
        shard
        for shard in sorted(ledger.revised_shards(plan_of(world, 2)))
        if not all(ledger.read_revision(plan_of(world, 2), shard).carried)
    )
    with contextlib.suppress(StoppedError):
        embed_shard(plan_of(world, 2), shard, sleep)
    assert slept == [True]
    assert shard not in shards_of(world, 1)
    world.update()
    world.assert_up_to_date(tmp_path)


@pytest.mark.parametrize(("verb", "generation"), [("resume", 2), ("update", 3)])
def test_a_revision_that_came_too_late_is_embedded_before_anything_else(
    world: World, tmp_path: Path, verb: str, generation: int
) -> None:
    """A second driver saw one more change, committed it, and died; the first one declared the set complete."""
    world.change()
    world.update()
    storage, shard = plan_of(world, 2).storage, shards_of(world, 1)[0]
    commit_late_revision(world, 2, shard).unlink()
    assert ledger.unfinished_shards(storage) == {2: {shard}}
    if verb == "update":
        change_more(world)
    assert getattr(world, verb)().plan.generation == generation
    assert ledger.unfinished_shards(storage) == {}
    world.assert_up_to_date(tmp_path)


def test_rows_are_carried_over_unread_only_from_the_part_that_was_compared(world: World, tmp_path: Path) -> None:
    """Between the comparison and the embedding, the part was replaced."""
    world.change()
    world.update()
    shard = shards_of(world, 2)[0]
    refs = ledger.read_revision(plan_of(world, 2), shard).refs
    wrong = References(refs, [True] * len(refs), 1)  # compared with generation 1, but 2 is current
    plan = ledger.next_plan(plan_of(world, 2), "update")
    ledger.create_plan(plan)
    ledger.commit_revision(plan, shard, wrong, len(refs))
    receipt = embed_shard(plan, shard)
    assert receipt.bytes_read == sum(ref.size for ref in refs)
    assert (receipt.carried, receipt.embedded, receipt.failed) == (len(refs), len(refs), 0)


# -- power cuts and losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", None], ids=["empty", "lost"])
@pytest.mark.parametrize("verb", ["update", "resume", "retry"])
@pytest.mark.parametrize("generation", [1, 2])
def test_a_receipt_that_a_power_cut_has_destroyed_is_rebuilt_from_its_part(
    world: World, tmp_path: Path, generation: int, verb: str, data: bytes | None
) -> None:
    world.change()
    world.update()
    for shard in shards_of(world, generation):
        ending = "" if generation == 1 else f".g{generation}"
        receipt = world.out / "receipts" / f"part-{shard:08d}{ending}.json"
        assert receipt.stat().st_size
        receipt.unlink() if data is None else receipt.write_bytes(data)
    parts = snapshot(world.out / "features")
    assert getattr(world, verb)().is_complete
    assert snapshot(world.out / "features") == parts
    world.assert_up_to_date(tmp_path)
    change_more(world)
    world.update()
    world.assert_up_to_date(tmp_path)


@pytest.mark.parametrize("verb", ["update", "resume", "retry"])
def test_a_lost_part_without_images_has_lost_nothing(world: World, tmp_path: Path, verb: str) -> None:
    name, uris = sorted(world.parts().items())[0]
    for uri in uris:
        Path(uri).unlink()
    world.update()
    assert world.parts()[name] == set()
    (world.out / "features" / name).unlink()
    assert getattr(world, verb)().is_complete
    world.assert_up_to_date(tmp_path)
    change_more(world)
    world.update()
    world.assert_up_to_date(tmp_path)


def test_a_lost_part_is_embedded_anew_though_its_rows_should_have_been_carried_over(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.change()
    killed_at("features/", world, monkeypatch)
    (world.out / part_name(min(ledger.revised_shards(plan_of(world, 2))))).unlink()
    fp.resume(world.out, engine=InlineEngine())
    world.assert_up_to_date(tmp_path)
