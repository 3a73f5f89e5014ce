"""The ledger: how a listing is split, and the state of the destination at each moment of a run."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from featurepress import ledger
from featurepress.errors import FeatureSetError, StoppedError
from featurepress.ledger import Plan, Totals
from featurepress.ledger.layout import Layout, Tier
from featurepress.ledger.names import part_name
from featurepress.models.catalog import EMBEDDED_V1
from featurepress.process import Child, ChildDiedError
from featurepress.specs import Failure, ImageRef, Receipt
from featurepress.storage import FolderStorage
from featurepress.testing import MemoryStorage, draft_plan, memory_source
from tests.contracts import tasks


@pytest.fixture
def plan() -> Plan:
    return small_plan(MemoryStorage())


def small_plan(storage: Any, **options: Any) -> Plan:
    draft = draft_plan(storage, memory_source({"a": b"1"}), **options)
    return replace(draft, layout=Layout((Tier(6, 2), Tier(9, 3))))


# -- plan ----------------------------------------------------------------------------------------------------


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    backbone = EMBEDDED_V1.backbone("flatten")
    options: dict[str, Any] = {"labels": "parent", "pooling": "flatten", "limit": 7}
    draft = draft_plan(FolderStorage(str(tmp_path)), memory_source({"ä": b"1"}), backbone=backbone, **options)
    plan = replace(draft, precision="bfloat16", certificate={"asked": "auto", "min_cosine": 0.9991})
    assert ledger.read_plan(plan.storage) is None
    assert ledger.create_plan(plan)
    assert ledger.read_plan(plan.storage) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert plan.differences(plan) == []


def test_the_first_plan_wins(plan: Plan) -> None:
    other = replace(plan, run_id="another")
    assert ledger.create_plan(plan)
    assert not ledger.create_plan(other)
    standing = ledger.read_plan(plan.storage)
    assert standing is not None
    assert standing.run_id == plan.run_id


def test_new_plans_have_names_of_their_own() -> None:
    names = {small_plan(MemoryStorage()).run_id for _ in range(100)}
    assert len(names) == 100


def test_plan_json_is_for_people_too(plan: Plan) -> None:
    ledger.create_plan(plan)
    assert hash(ledger.read_plan(plan.storage)) == hash(plan)
    values = json.loads(plan.storage.read(ledger.PLAN) or b"")
    assert next(iter(values)) == "format"
    assert values["format"] == "featurepress"
    assert values["format_version"] == 2
    assert values["fingerprint"] == plan.backbone.fingerprint


def test_differences_name_what_was_asked_otherwise(plan: Plan) -> None:
    options: dict[str, Any] = {"labels": "parent", "limit": 3, "workers": 2, "max_failures": 0.5}
    other = draft_plan(plan.storage, memory_source({"a": b"1"}), **options)
    assert plan.differences(other) == ["labels: 'auto', not 'parent'", "limit: None, not 3"]
    assert plan.differences(replace(plan, run_id="x", created="y", precision="bfloat16")) == []


@pytest.mark.parametrize(("version", "remedy"), [(1, "Embed the images again"), (3, "Update featurepress")])
def test_a_plan_of_another_format_is_refused(plan: Plan, version: int, remedy: str) -> None:
    plan.storage.write(ledger.PLAN, json.dumps({**plan.to_json(), "format_version": version}).encode())
    with pytest.raises(FeatureSetError, match=rf"plan\.json' has format version {version}; .* reads 2\. {remedy}"):
        ledger.read_plan(plan.storage)


FOREIGN = [
    b"", b"{}", b"[]", b"null", b'"featurepress"', b"7", b"{", b"\xff\xfe", b'{"format": "plan of a house"}',
    b'{"format": "featurepress"}', b'{"format": "featurepress", "format_version": "2"}',
    b'{"format": "featurepress", "format_version": 2, "sources": []}',
]  # fmt: skip


@pytest.mark.parametrize("data", FOREIGN)
def test_foreign_json_is_no_plan(plan: Plan, data: bytes) -> None:
    plan.storage.write(ledger.PLAN, data)
    with pytest.raises(FeatureSetError, match=r"^'memory/plan/plan\.json' is not a featurepress plan: "):
        ledger.read_plan(plan.storage)


DAMAGES = [
    *((name, damage) for name in ("sources", "backbone", "settings", "layout") for damage in (None, [1], {"x": 1})),
    *((name, "missing") for name in ("sources", "backbone", "settings", "layout", "field_names", "run_id")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_plan_is_refused(plan: Plan, name: str, damage: Any) -> None:
    values = plan.to_json()
    if damage == "missing":
        del values[name]
    else:
        values[name] = damage
    plan.storage.write(ledger.PLAN, json.dumps(values).encode())
    with pytest.raises(FeatureSetError, match="is not a featurepress plan"):
        ledger.read_plan(plan.storage)


# -- chunks --------------------------------------------------------------------------------------------------

REFS = [
    ImageRef("a/1.jpg", 0, 10, "v1", ("a",)),
    ImageRef("a/\\xff.jpg", 1, 2**40, "v2", ("",), key=b"a/\xff.jpg"),
    ImageRef("ä\n/日本.jpg", 0, 0, "", ("ä\n",), problem="broken link: its target does not exist"),
    ImageRef("ü", 2, 1, "x" * 300, ('label, with "quotes"',)),
    ImageRef("ý", 0, 5, "v5", ("z",)),
]


def test_what_is_committed_is_read_again_shard_by_shard() -> None:
    plan = small_plan(MemoryStorage(), labels="parent")
    chunk = ledger.commit_chunk(plan, 0, REFS, {"dot file": 3}, [b"\xff", b""])
    assert chunk.n_images == 5
    assert chunk.last_key == "ý".encode()
    assert chunk.skipped == {"dot file": 3}
    assert chunk.positions == (b"\xff", b"")
    assert list(chunk.shards) == [0, 1, 2]
    assert ledger.read_chunk(plan, 0) == chunk
    assert [ref for shard in range(3) for ref in ledger.read_shard(plan, shard)] == REFS
    assert [len(ledger.read_shard(plan, shard)) for shard in range(3)] == [2, 2, 1]


def test_without_fields(plan: Plan) -> None:
    refs = [ref._replace(fields=()) for ref in REFS]
    ledger.commit_chunk(plan, 0, refs, {})
    assert [ref for shard in range(3) for ref in ledger.read_shard(plan, shard)] == refs


def test_a_shard_of_a_later_chunk(plan: Plan) -> None:
    refs = [ImageRef(f"{i:05d}", 0, i, "v") for i in range(6 + 9 + 4)]
    for number, (start, stop) in enumerate([(0, 6), (6, 15), (15, 19)]):
        ledger.commit_chunk(plan, number, refs[start:stop], {})
    n_shards = plan.layout.n_shards(len(refs))
    assert [ref for shard in range(n_shards) for ref in ledger.read_shard(plan, shard)] == refs


def test_the_first_commit_of_a_chunk_wins(plan: Plan) -> None:
    one = ledger.commit_chunk(plan, 0, [REFS[0]], {"x": 1})
    other = ledger.commit_chunk(plan, 0, REFS[:3], {})
    assert other == one
    assert [ref.uri for ref in ledger.read_shard(plan, 0)] == ["a/1.jpg"]


def test_of_many_drivers_one_commits_and_all_agree(tmp_path: Path) -> None:
    plan = small_plan(FolderStorage(str(tmp_path)))
    barrier = threading.Barrier(6)
    seen: list[ledger.Chunk] = []

    def commit(n: int) -> None:
        barrier.wait(30)
        seen.append(ledger.commit_chunk(plan, 0, REFS[:n], {}))

    threads = [threading.Thread(target=commit, args=(1 + i % 5,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 6
    assert all(chunk == seen[0] for chunk in seen)


def test_a_chunk_that_is_not_there(plan: Plan) -> None:
    assert ledger.read_chunk(plan, 0) is None
    assert ledger.read_listing(plan) is None


def test_the_end_of_the_listing_is_said_once(plan: Plan) -> None:
    ledger.finish_listing(plan, 2, 15, {"dot file": 1})
    ledger.finish_listing(plan, 3, 16, {})
    assert ledger.read_listing(plan) == {"chunks": 2, "images": 15, "skipped": {"dot file": 1}}


def test_a_later_generation_has_names_of_its_own(plan: Plan) -> None:
    later = replace(plan, generation=2)
    ledger.commit_chunk(plan, 0, [REFS[0]], {})
    ledger.commit_chunk(later, 0, [REFS[4]], {})
    ledger.finish_listing(later, 1, 1, {})
    assert ledger.read_listing(plan) is None
    assert ledger.read_shard(later, 0)[0].uri == "ý"
    assert ledger.read_shard(plan, 0)[0].uri == "a/1.jpg"


# -- receipts ------------------------------------------------------------------------------------------------


def receipt(shard: int, **changes: Any) -> Receipt:
    values: dict[str, Any] = {
        "shard": shard, "generation": 1, "listed": 3, "embedded": 2, "failed": 1, "failed_by_kind": {"read: x": 1},
        "bytes_read": 10, "seconds": 1.0, "precision": "float32", "cpu": "c", "host": "h", "versions": {},
    }  # fmt: skip
    return Receipt(**{**values, **changes})


FAILURES = [Failure("ü", "read", "x: y")]


def settle(plan: Plan, shard: int, *, with_part: bool = True) -> None:
    if with_part:
        plan.storage.create(part_name(shard), b"the rows")
    ledger.finalize_shard(plan, receipt(shard), FAILURES)


def test_a_settled_shard_is_finished(plan: Plan) -> None:
    settle(plan, 0)
    settle(plan, 12)
    assert ledger.finished_shards(plan) == {0, 12}
    assert ledger.read_receipt(plan, 12) == receipt(12)
    with plan.storage.open("failures/part-00000012.parquet") as file:
        assert pq.read_table(file).to_pylist() == [{"uri": "ü", "stage": "read", "reason": "x: y"}]


def test_no_failures_no_failure_file(plan: Plan) -> None:
    ledger.finalize_shard(plan, receipt(0), [])
    assert [entry.name for entry in plan.storage.list("failures")] == []


def test_a_receipt_without_a_part_is_none(plan: Plan) -> None:
    settle(plan, 0)
    settle(plan, 1, with_part=False)
    assert ledger.finished_shards(plan) == {0}


def test_a_part_without_a_receipt_is_not_finished(plan: Plan) -> None:
    plan.storage.create(part_name(0), b"the rows")
    assert ledger.finished_shards(plan) == set()
    assert ledger.read_receipt(plan, 0) is None


def test_strange_names_are_no_receipts(plan: Plan) -> None:
    settle(plan, 0)
    for name in ("part-00000001.g2.json", "part-x.json", "part-00000001.json.bak", "README", "part-.json"):
        plan.storage.write(f"receipts/{name}", b"{}")
    plan.storage.write(part_name(1), b"the rows")
    assert ledger.finished_shards(plan) == {0}
    assert ledger.finished_shards(replace(plan, generation=2)) == {1}


DAMAGED = [b"", b"{", b"[]", b"null", b"7", b"{}", b'{"shard": 0}', b"\xff\xfe\x00"]


@pytest.mark.parametrize("data", DAMAGED)
def test_a_damaged_receipt_is_none_and_is_written_anew(plan: Plan, data: bytes) -> None:
    settle(plan, 0)
    plan.storage.write("receipts/part-00000000.json", data)
    assert ledger.read_receipt(plan, 0) is None
    settle(plan, 0)
    assert ledger.read_receipt(plan, 0) == receipt(0)


def test_what_a_lost_part_left_gives_way_to_what_the_new_part_says(plan: Plan) -> None:
    ledger.finalize_shard(plan, receipt(0, host="the first"), FAILURES)
    new = receipt(0, host="the second", embedded=3, failed=0, failed_by_kind={})
    ledger.finalize_shard(plan, new, [])
    assert ledger.read_receipt(plan, 0) == new
    assert list(plan.storage.list("failures")) == []


def test_a_deleted_receipt_can_be_written_again(plan: Plan) -> None:
    settle(plan, 0)
    ledger.delete_receipt(plan, 0)
    assert ledger.read_receipt(plan, 0) is None
    ledger.finalize_shard(plan, receipt(0, host="again"), [])
    assert ledger.finished_shards(plan) == {0}


def test_totals_add_up() -> None:
    totals = Totals()
    totals.add(receipt(0))
    totals.add(receipt(1, precision="bfloat16", failed_by_kind={"read: x": 0, "decode: z": 1}))
    assert (totals.parts, totals.listed, totals.embedded, totals.failed, totals.bytes_read) == (2, 6, 4, 2, 20)
    assert totals.failed_by_kind == {"read: x": 1, "decode: z": 1}
    assert totals.precisions == {"float32": 2, "bfloat16": 2}
    assert totals.cpus == {"c": 4}


def test_the_manifest_is_read_as_it_was_written(plan: Plan) -> None:
    assert ledger.read_manifest(plan.storage) is None
    ledger.complete_manifest(plan, lambda: {"status": "updating"})
    ledger.complete_manifest(plan, lambda: {"status": "complete", "ü": 1})
    assert ledger.read_manifest(plan.storage) == {"status": "complete", "ü": 1}


def test_a_later_generation_is_never_set_back(plan: Plan) -> None:
    first = {"status": "complete", "generation": 1, "listed": 7}
    ledger.complete_manifest(plan, lambda: first)
    second = replace(plan, generation=2)
    ledger.begin_generation(second)
    updating = {"status": "updating", "generation": 2, "listed": 7}
    assert ledger.read_manifest(plan.storage) == updating
    with pytest.raises(StoppedError, match=r"at generation 2, .* at generation 1"):
        ledger.complete_manifest(plan, lambda: first)
    assert ledger.read_manifest(plan.storage) == updating
    complete = {"status": "complete", "generation": 2, "listed": 8}
    ledger.complete_manifest(second, lambda: complete)
    ledger.begin_generation(second)  # another driver of the same generation, late
    assert ledger.read_manifest(plan.storage) == complete


def test_of_drivers_that_finish_at_once_the_latest_generation_wins(plan: Plan) -> None:
    def declare(generation: int) -> None:
        with contextlib.suppress(StoppedError):
            ledger.complete_manifest(replace(plan, generation=generation), lambda: {"generation": generation})

    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(declare, [3, 1, 5, 2, 8, 4, 7, 6]))
        assert ledger.read_manifest(plan.storage) == {"generation": 8}
        plan.storage.delete(ledger.MANIFEST)


# -- attempts ------------------------------------------------------------------------------------------------


def marks(plan: Plan) -> list[str]:
    return [entry.name for entry in plan.storage.list("attempts")]


def test_an_attempt_is_marked_while_it_lasts(plan: Plan) -> None:
    with ledger.attempt(plan, 7) as n_deaths:
        assert n_deaths == 0
        (mark,) = marks(plan)
        assert mark.startswith("attempts/part-00000007-")
        assert json.loads(plan.storage.read(mark) or b"")["pid"] == os.getpid()
    assert marks(plan) == []


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_attempt_that_fails_takes_its_mark_away(plan: Plan, error: type[BaseException]) -> None:
    with pytest.raises(error), ledger.attempt(plan, 0):
        raise error
    assert marks(plan) == []


def test_earlier_marks_of_the_same_shard_are_counted(plan: Plan) -> None:
    for name in ("part-00000001-aaaa", "part-00000001-bbbb", "part-00000002-cccc", "part-00000011-dddd"):
        plan.storage.write(f"attempts/{name}", b"")
    for shard, n_expected in ((1, 2), (2, 1), (11, 1), (3, 0)):
        with ledger.attempt(plan, shard) as n_deaths:
            assert n_deaths == n_expected
    assert len(marks(plan)) == 4
    ledger.clear_attempts(plan)
    assert marks(plan) == []


def test_an_attempt_that_is_at_work_is_no_death(plan: Plan) -> None:
    with ledger.attempt(plan, 7), ledger.attempt(plan, 7) as n_deaths:
        assert n_deaths == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every mark counts")
@pytest.mark.parametrize("change", [{"start": "1"}, {"host": "another"}, {"pid": 2**22 + 1}, {"pid": "x"}])
def test_a_mark_of_another_process_is_a_death(plan: Plan, change: dict[str, Any]) -> None:
    with ledger.attempt(plan, 7):
        (mine,) = marks(plan)
        about = json.loads(plan.storage.read(mine) or b"")
    for values, n_expected in ((about, 0), ({**about, **change}, 1)):
        plan.storage.write(mine, json.dumps(values).encode())
        with ledger.attempt(plan, 7) as n_deaths:
            assert n_deaths == n_expected


@pytest.mark.parametrize("ending", ["killed", "given up"])
def test_only_a_death_leaves_the_mark(tmp_path: Path, ending: str) -> None:
    plan = small_plan(FolderStorage(str(tmp_path / "out")))
    plan.storage.prepare()
    child = Child()
    entered = tmp_path / "entered"
    thread = threading.Thread(target=_call_and_die, args=(child, plan, entered))
    thread.start()
    try:
        end = time.monotonic() + 30
        while not entered.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        assert len(marks(plan)) == 1
        if ending == "killed":
            os.kill(child.pid, signal.SIGKILL)
    finally:
        if ending == "given up":
            child.close()
        thread.join(30)
        child.close()
    with ledger.attempt(plan, 5) as n_deaths:
        assert n_deaths == (1 if ending == "killed" else 0)


def _call_and_die(child: Child, plan: Plan, entered: Path) -> None:
    with pytest.raises(ChildDiedError):
        child.call(tasks.mark_attempt, plan, 5, entered)
