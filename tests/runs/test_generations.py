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
from tests.running import read_footers, read_json, read_rows, snapshot
from tests.runs.worlds import World, killed_at, plan_of, watched


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def generations_of_parts(world: World) -> dict[int, int]:
    return {footer["receipt"]["shard"]: footer["receipt"]["generation"] for footer in read_footers(world.out)}


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
    world, names = World(tmp_path), list[str]()
    start = tmp_path / "start"
    world.change()
    shutil.copytree(world.out, start)
    with watched(world.out, names.append, monkeypatch):
        world.update()
    files = {path: path.read_bytes() for path in world.source.rglob("*.jpg")}
    assert len(names) > 10
    for stop_at in range(2, len(names)):
        shutil.rmtree(world.out)
        shutil.copytree(start, world.out)
        for path in world.source.rglob("*.jpg"):
            path.unlink()
        for path, data in files.items():
            path.write_bytes(data)
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
    world, names = World(tmp_path, images_per_part=images_per_part), list[str]()
    start = tmp_path / "start"
    world.change()
    shutil.copytree(world.out, start)
    with watched(world.out, names.append, monkeypatch):
        world.update()
    files = {path: path.read_bytes() for path in world.source.rglob("*.jpg")}
    for other_at in range(2, len(names) + 1, 1 if images_per_part > 1 else 9):
        shutil.rmtree(world.out)
        shutil.copytree(start, world.out)
        for path in world.source.rglob("*.jpg"):
            path.unlink()
        for path, data in files.items():
            path.write_bytes(data)
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
    shard = next(shard for shard, generation in generations_of_parts(world).items() if generation == 3)
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
    assert generations_of_parts(world)[shard] >= 2
    world.update()
    world.assert_up_to_date(tmp_path)


def test_a_revision_that_came_too_late_is_embedded_before_anything_else(world: World, tmp_path: Path) -> None:
    """A second driver saw one more change, committed it, and died; the first one declared the set complete."""
    world.change()
    world.update()
    plan = plan_of(world, 2)
    shard = next(shard for shard, generation in generations_of_parts(world).items() if generation == 1)
    refs = ledger.read_shard(plan_of(world, 1), shard)
    Path(refs[0].uri).unlink()
    late = References(refs[1:], [True] * (len(refs) - 1), 1)
    ledger.commit_revision(plan, shard, late, len(refs))
    assert ledger.unfinished_shards(plan.storage) == {2: {shard}}
    world.resume()
    assert ledger.unfinished_shards(plan.storage) == {}
    world.assert_up_to_date(tmp_path)
    Path(refs[1].uri).unlink()
    late = References(refs[2:], [True] * (len(refs) - 2), 1)
    world.update()
    world.assert_up_to_date(tmp_path)


def test_an_update_finishes_a_revision_that_came_too_late_and_goes_on(world: World, tmp_path: Path) -> None:
    world.change()
    world.update()
    plan = plan_of(world, 2)
    shard = next(shard for shard, generation in generations_of_parts(world).items() if generation == 1)
    refs = ledger.read_shard(plan_of(world, 1), shard)
    Path(refs[0].uri).unlink()
    ledger.commit_revision(plan, shard, References(refs[1:], [True] * (len(refs) - 1), 1), len(refs))
    change_more(world)
    assert world.update().plan.generation == 3
    world.assert_up_to_date(tmp_path)


def test_rows_are_carried_over_unread_only_from_the_part_that_was_compared(world: World, tmp_path: Path) -> None:
    """Between the comparison and the embedding, the part became another one."""
    world.change()
    world.update()
    shard = next(shard for shard, generation in generations_of_parts(world).items() if generation == 2)
    refs = ledger.read_revision(plan_of(world, 2), shard).refs
    wrong = References(refs, [True] * len(refs), 1)  # compared with generation 1, though 2 stands
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
def test_a_receipt_that_a_power_cut_took_is_made_again_from_its_part(
    world: World, tmp_path: Path, generation: int, verb: str, data: bytes | None
) -> None:
    world.change()
    world.update()
    shards = [shard for shard, g in generations_of_parts(world).items() if g == generation]
    for shard in shards:
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
