"""Update and retry: the next generation of a feature set costs what has changed, and is right at any moment."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

import featurepress as fp
from featurepress import ledger
from featurepress.errors import FeatureSetError, IncompleteError, SettingError, StoppedError, StorageError
from featurepress.ledger.names import part_name
from featurepress.storage import FolderStorage
from featurepress.testing import InlineEngine, fake_backbone
from tests.running import draw, embed, read_failures, read_footers, read_json, read_rows, snapshot
from tests.runs.worlds import World, watched


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- update --------------------------------------------------------------------------------------------------


def test_an_updated_set_holds_what_a_new_run_would(world: World, tmp_path: Path) -> None:
    world.change()
    features = world.update()
    changes = features.summary.changes
    assert (changes.new, changes.changed, changes.deleted, changes.inferred) == (4, 5, 3, 7)
    assert features.is_complete
    assert len(features) == 41
    world.assert_up_to_date(tmp_path)


def test_the_model_runs_on_what_is_new_or_has_other_bytes_only(world: World) -> None:
    world.change()
    world.update()
    receipts = [footer["receipt"] for footer in read_footers(world.out)]
    assert sum(r["embedded"] - r["carried"] for r in receipts if r["generation"] == 2) == 7
    assert sum(r["embedded"] for r in receipts) == 41


def test_without_changes_nothing_is_written(world: World) -> None:
    before = snapshot(world.out)
    features = world.update()
    assert features.summary.changes == fp.Changes(0, 0, 0, 0)
    assert features.summary.already_done
    assert snapshot(world.out) == before
    assert world.retry().summary.changes == fp.Changes(0, 0, 0, 0)
    assert snapshot(world.out) == before


def test_another_time_alone_costs_no_inference_and_is_remembered(world: World, tmp_path: Path) -> None:
    rows = read_rows(world.out)
    for path in world.pictures:
        os.utime(path, ns=(10**9, 10**9))
    assert world.update().summary.changes == fp.Changes(0, 40, 0, 0)
    assert read_rows(world.out) == rows
    assert world.update().summary.changes == fp.Changes(0, 0, 0, 0)


def test_parts_without_changes_keep_their_bytes_and_a_uri_never_leaves_its_part(world: World) -> None:
    before, files = world.parts(), snapshot(world.out / "features")
    world.pictures[0].unlink()
    shutil.copy(world.pictures[20], world.pictures[1].with_name("new.jpg"))
    world.update()
    after = world.parts()
    for name, uris in before.items():
        assert after[name] == uris - {str(world.pictures[0])}
    (new,) = set(after) - set(before)
    assert after[new] == {str(world.pictures[1].with_name("new.jpg"))}
    now = snapshot(world.out / "features")
    assert [name for name in files if now[name] != files[name]] == [next(iter(before))]


def test_updates_of_updates(world: World, tmp_path: Path) -> None:
    for round_number in range(4):
        pictures = sorted(p for p in world.source.rglob("*.*") if p.is_file())
        for path in pictures[round_number::9]:
            path.unlink()
        for i, path in enumerate(pictures[4 + round_number :: 11]):
            if path.exists():
                shutil.copy(path, path.with_name(f"n{round_number}-{i}-{path.name}"))
        changed = [p for p in pictures[6::13] if p.exists()]
        for path in changed:
            path.write_bytes(path.read_bytes() + b"x")
        features = world.update()
        assert features.plan.generation == 2 + round_number
        world.assert_up_to_date(tmp_path)


def test_a_part_whose_images_are_all_gone_stays_empty_and_what_comes_back_is_new(
    world: World, tmp_path: Path
) -> None:
    first = sorted(world.parts().items())[0]
    kept = {uri: Path(uri).read_bytes() for uri in first[1]}
    for uri in kept:
        Path(uri).unlink()
    world.update()
    assert world.parts()[first[0]] == set()
    world.assert_up_to_date(tmp_path)
    for uri, data in kept.items():
        Path(uri).write_bytes(data)
    assert world.update().summary.changes.new == len(kept)
    assert world.parts()[first[0]] == set()
    world.assert_up_to_date(tmp_path)


def test_an_update_may_find_deleted_images_only(tmp_path: Path) -> None:
    """With the sizes of parts that people have: they depend on how many are new."""
    source = draw(tmp_path / "in", 5)
    features = embed(str(source), tmp_path / "out")
    gone = Path(features.uris[2])
    gone.unlink()
    updated = fp.update(tmp_path / "out")
    assert updated.summary.changes == fp.Changes(0, 0, 1, 0)
    assert str(gone) not in updated.uris.tolist()
    assert len(updated) == len(features) - 1


def test_failures_are_carried_over_without_a_look_at_them(tmp_path: Path) -> None:
    world = World(tmp_path)
    (world.source / "bad.jpg").write_text("no picture")
    world.update()
    failures = read_failures(world.out)
    assert len(failures) == 1
    (world.source / "bad2.jpg").write_text("no picture, too")
    world.pictures[1].unlink()
    features = world.update()
    assert features.summary.changes == fp.Changes(1, 0, 1, 0)
    assert set(failures) < set(read_failures(world.out))
    world.assert_up_to_date(tmp_path)
    (world.source / "bad.jpg").unlink()
    (world.source / "bad2.jpg").unlink()
    world.update()
    assert list(world.out.glob("failures/*")) == []
    world.assert_up_to_date(tmp_path)


def test_a_lost_part_is_embedded_again(world: World, tmp_path: Path) -> None:
    world.change()
    world.update()
    untouched, *_ = [f["receipt"]["shard"] for f in read_footers(world.out) if f["receipt"]["generation"] == 1]
    for command in (world.update, world.resume, world.retry):
        (world.out / part_name(untouched)).unlink()
        assert command().is_complete
        world.assert_up_to_date(tmp_path)


def test_the_csv_files_are_made_again(tmp_path: Path) -> None:
    world = World(tmp_path, format="csv", parts=3)
    world.pictures[0].unlink()
    world.update()
    rows = sum(path.read_text().count("\n") - 1 for path in world.out.glob("csv/*.csv"))
    assert rows == 39


# -- any moment ----------------------------------------------------------------------------------------------


def test_an_update_that_is_stopped_at_any_write_is_finished_by_resume_or_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, 24)
    (world.source / "bad.jpg").write_text("no picture")
    world.pictures[3].unlink()
    world.pictures[9].write_bytes(world.pictures[1].read_bytes() + b" ")
    shutil.copy(world.pictures[2], world.pictures[2].with_name("zz.jpg"))
    start = tmp_path / "start"
    shutil.copytree(world.out, start)
    n_writes = [0]

    def count(name: str) -> None:
        n_writes[0] += 1

    with watched(world.out, count, monkeypatch):
        world.update()
    world.assert_up_to_date(tmp_path)
    names = {p.name for p in world.out.rglob("*")}
    assert n_writes[0] > 10
    for stop_at in range(1, n_writes[0] + 1):
        shutil.rmtree(world.out)
        shutil.copytree(start, world.out)
        n_left = [stop_at]

        def stop(name: str, n_left: list[int] = n_left) -> None:
            n_left[0] -= 1
            if n_left[0] == 0:
                raise StorageError(f"no space for {name}")

        with watched(world.out, stop, monkeypatch), pytest.raises(StorageError):
            world.update()
        # At the first not even its plan was written: there is nothing to resume.
        finish = world.resume if stop_at % 2 and stop_at > 1 else world.update
        assert finish().is_complete
        world.assert_up_to_date(tmp_path)
        assert {p.name for p in world.out.rglob("*")} == names


def test_a_reader_at_any_moment_sees_one_whole_row_a_uri(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_rows(world.out)
    world.change()
    world.embed(tmp_path / "anew")
    after = read_rows(tmp_path / "anew")
    statuses: list[str] = []

    def look(name: str) -> None:
        rows = read_rows(world.out)  # fails on a uri that is there twice
        for uri, row in rows.items():
            assert row in (before.get(uri), after.get(uri))
        statuses.append(read_json(world.out / "manifest.json")["status"])
        if statuses[-1] == "updating":
            with pytest.raises(IncompleteError, match=r"being updated.*featurepress resume"):
                fp.open_features(world.out)
            assert not fp.open_features(world.out, allow_incomplete=True).is_complete

    with watched(world.out, look, monkeypatch):
        world.update()
    assert "updating" in statuses
    world.assert_up_to_date(tmp_path)


def test_the_manifest_says_updating_from_before_the_first_change_to_after_the_last(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.change()
    seen: list[tuple[str, str]] = []

    def look(name: str) -> None:
        seen.append((name, read_json(world.out / "manifest.json")["status"]))

    with watched(world.out, look, monkeypatch):
        world.update()
    assert [name for name, _ in seen[:3]] == ["plan/g2/before.json", "plan/g2/plan.json", "manifest.json"]
    assert {status for _, status in seen[:3]} == {"complete"}
    assert {status for _, status in seen[3:]} == {"updating"}
    assert seen[-1][0] == "manifest.json"
    assert read_json(world.out / "manifest.json")["status"] == "complete"


@pytest.mark.parametrize("verb", ["update", "resume"])
def test_an_update_that_was_killed_before_it_could_say_so_says_so_first(
    world: World, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    world.change()

    def stop(name: str) -> None:
        if name == "manifest.json":
            raise StorageError("killed")

    with watched(world.out, stop, monkeypatch), pytest.raises(StorageError):
        world.update()
    assert read_json(world.out / "manifest.json")["generation"] == 1
    seen: list[tuple[str, str]] = []

    def look(name: str) -> None:
        seen.append((name, read_json(world.out / "manifest.json")["status"]))

    with watched(world.out, look, monkeypatch):
        assert getattr(world, verb)().is_complete
    assert seen[0] == ("manifest.json", "complete")
    assert {status for _, status in seen[1:]} == {"updating"}


def test_of_two_updates_at_once_one_changes_and_the_other_says_so(world: World, tmp_path: Path) -> None:
    world.change()
    barrier, outcomes = threading.Barrier(2), []

    def run() -> None:
        barrier.wait()
        try:
            outcomes.append(world.update().is_complete)
        except StoppedError as error:
            outcomes.append("Another process has begun" in str(error))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True, True]
    fp.resume(world.out, engine=InlineEngine())
    world.assert_up_to_date(tmp_path)


def test_an_interrupted_update_is_finished_by_two_at_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.change()

    def stop(name: str) -> None:
        if name == part_name(2):
            raise StorageError("the network is gone")

    with watched(world.out, stop, monkeypatch), pytest.raises(StorageError):
        world.update()
    errors: list[BaseException] = []

    def resume() -> None:
        try:
            fp.resume(world.out, engine=InlineEngine())
        except BaseException as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    threads = [threading.Thread(target=resume) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    world.assert_up_to_date(tmp_path)


# -- retry ---------------------------------------------------------------------------------------------------


def test_a_retry_embeds_the_failures_and_nothing_else(tmp_path: Path) -> None:
    source = draw(tmp_path / "in", 20, broken=True)
    world = World(tmp_path)
    assert {Path(uri).name for uri, _, _ in read_failures(world.out)} == {"empty.jpg", "list.jpg", "truncated.jpg"}
    good = sorted(p for p in source.rglob("*.jpg") if p.stat().st_size > 300)[0].read_bytes()
    (source / "empty.jpg").write_bytes(good)
    shutil.copy(source / "empty.jpg", source / "not-asked-for.jpg")
    features = world.retry()
    assert features.summary.changes == fp.Changes(0, 0, 0, 1)
    assert features.summary.listed == 43
    assert {Path(uri).name for uri, _, _ in read_failures(world.out)} == {"list.jpg", "truncated.jpg"}
    assert any(uri.endswith("empty.jpg") for uri in read_rows(world.out))
    assert not any("not-asked-for" in uri for uri in read_rows(world.out))
    world.update()
    world.assert_up_to_date(tmp_path)


def test_a_failure_that_is_gone_stays_a_failure_until_an_update(tmp_path: Path) -> None:
    source = draw(tmp_path / "in", 20, broken=True)
    world = World(tmp_path)
    (source / "empty.jpg").unlink()
    world.retry()
    assert [(r, s) for uri, s, r in read_failures(world.out) if "empty" in uri] == [
        ("vanished since listing", "list")
    ]
    world.update()
    world.assert_up_to_date(tmp_path)


def test_a_retry_may_raise_a_limit(tmp_path: Path) -> None:
    draw(tmp_path / "in" / "large", 3, image_size_px=200)
    world = World(tmp_path, max_bytes=2_000)
    n_large = sum(path.stat().st_size > 2_000 for path in world.source.rglob("*.jpg"))
    assert n_large > 0
    assert {reason.partition(":")[0] for _, _, reason in read_failures(world.out)} == {"too many bytes"}
    assert world.retry(max_bytes=10**6).summary.changes.inferred == n_large
    assert read_failures(world.out) == []


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["update", "retry"])
def test_what_is_no_complete_set_is_refused(world: World, tmp_path: Path, verb: str) -> None:
    call = getattr(fp, verb)
    with pytest.raises(FeatureSetError, match=f"There is nothing to {verb} in '{tmp_path}/nowhere'"):
        call(tmp_path / "nowhere")
    (world.out / "manifest.json").unlink()
    with pytest.raises(FeatureSetError, match=f"not complete.*{verb}.*featurepress resume"):
        call(world.out)


def test_settings_of_the_set_cannot_change(world: World) -> None:
    with pytest.raises(SettingError, match=r"An update.* pooling cannot change"):
        world.update(pooling="avg" if world.options.get("pooling") else "max")
    with pytest.raises(SettingError, match="A retry keeps the settings"):
        world.retry(labels="none")
    with pytest.raises(SettingError, match=r"An update.* max_bytes"):
        world.update(max_bytes=3)


def test_the_plan_of_a_generation_names_its_purpose(world: World) -> None:
    world.change()
    world.update()
    plan = ledger.read_plan(FolderStorage(str(world.out)))
    assert plan is not None
    assert (plan.generation, plan.purpose, plan.backbone) == (2, "update", fake_backbone())
    first = ledger.read_generation(plan.storage, 1)
    assert first is not None
    assert plan.first_shard >= 5
    assert plan.run_id != first.run_id
