"""The ledger: how a listing is cut, and what stands at the destination at each moment of a run."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurepress import ledger
from featurepress.child import Child, ChildDiedError
from featurepress.errors import FeatureSetError
from featurepress.ledger import Layout, Plan, Tier, Totals
from featurepress.models.catalog import EMBEDDED_V1
from featurepress.records import Failure, ImageRef, Receipt, part_name
from featurepress.storage import FolderStorage
from featurepress.testing import MemoryStorage, PlanMaker, memory_source
from tests.contracts import tasks


@pytest.fixture
def plan() -> Plan:
    return small_plan(MemoryStorage())


def small_plan(storage: Any, **options: Any) -> Plan:
    draft = PlanMaker(storage)(memory_source({"a": b"1"}), **options)
    return replace(draft, layout=Layout((Tier(6, 2), Tier(9, 3))))


# -- layout --------------------------------------------------------------------------------------------------

LAYOUTS = {
    "avg": Layout.of(None, "avg"),
    "flatten": Layout.of(None, "flatten"),
    **{str(n): Layout.of(n, "avg") for n in (1, 3, 70, 4096, 99_999, 100_000, 1_000_000)},
    "one tier": Layout((Tier(8, 4),)),
}


def cut(layout: Layout, n_images: int) -> Iterator[tuple[int, int, int]]:
    """Cut a listing as plainly as it can be said: (chunk, row group, images) of each shard."""
    evenly = {tier.least > 0 for tier in layout.tiers} == {True}
    for chunk in range(n_images + 1):
        tier = layout.tier(chunk)
        in_chunk = min(tier.chunk, n_images)
        size = tier.part
        if evenly and in_chunk < tier.chunk:
            n_parts = next(n for n in itertools.count(4, 4) if n * tier.part >= in_chunk)
            size = max(32, next(size for size in itertools.count(1) if size * n_parts >= in_chunk))
        for row_group, start in enumerate(range(0, in_chunk, size)):
            yield chunk, row_group, min(size, in_chunk - start)
        n_images -= in_chunk
        if not n_images:
            return


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_parts_fill_chunks_without_a_rest(layout: Layout) -> None:
    for tier in layout.tiers:
        assert tier.chunk % tier.part == 0
        assert not tier.least or tier.chunk % (4 * tier.part) == 0
        assert 1 <= tier.part <= tier.chunk <= 1_000_000


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("n_images", [0, 1, 2, 127, 128, 129, 2_047, 2_048, 2_049, 16_384, 81_920, 300_001])
def test_the_number_of_shards_agrees_with_the_cut(layout: Layout, n_images: int) -> None:
    assert layout.n_shards(n_images) == sum(1 for _ in cut(layout, n_images))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_locate_is_the_inverse_of_numbering(layout: Layout) -> None:
    n_images = 4 * max(tier.chunk for tier in layout.tiers)
    numbers = []
    for chunk, row_group, _ in cut(layout, n_images):
        shard = layout.first_shard(chunk) + row_group
        assert layout.locate(shard) == (chunk, row_group)
        numbers.append(shard)
    assert numbers == list(range(len(numbers)))


@given(
    tiers=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=4),
    n_images=st.integers(0, 200),
)
def test_any_layout_numbers_its_shards_without_a_gap(tiers: list[tuple[int, int]], n_images: int) -> None:
    layout = Layout(tuple(Tier(steps * part, part) for steps, part in tiers))
    shards = [layout.first_shard(chunk) + row_group for chunk, row_group, _ in cut(layout, n_images)]
    assert shards == list(range(layout.n_shards(n_images)))
    assert [layout.locate(s) for s in shards] == [(chunk, group) for chunk, group, _ in cut(layout, n_images)]


def test_a_listing_of_22_7_million() -> None:
    n_images = 22_700_000
    for pooling, n_parts in (("avg", 5_614), ("flatten", 22_368)):
        layout = Layout.of(None, pooling)
        n_shards = layout.n_shards(n_images)
        assert n_shards == sum(1 for _ in cut(layout, n_images))
        assert abs(n_shards - n_parts) < 200, n_shards
        chunk, row_group = layout.locate(n_shards - 1)
        assert layout.first_shard(chunk) + row_group == n_shards - 1
        assert chunk < 1_000
    assert Layout.of(1, "avg").n_shards(n_images) == n_images


def test_the_first_parts_are_small_and_the_last_as_large_as_decided() -> None:
    assert Layout.of(None, "avg").tiers[0].part <= 128
    assert Layout.of(None, "avg").tiers[-1].part == 4_096
    assert Layout.of(None, "flatten").tiers[-1].part == 1_024
    assert Layout.of(500, "flatten").tiers == (Tier(100_000, 500),)


@pytest.mark.parametrize(
    ("n_images", "sizes"),
    [
        (1, {1}),
        (32, {32}),
        (33, {32, 1}),
        (120, {32, 24}),
        (160, {40}),
        (1_200, {100}),  # 12 parts: six each for two workers, three each for four
        (1_201, {101, 90}),
        (2_047, {128, 127}),
        (2_048, {128}),
        (12_000, {128, 498, 490}),
    ],
)
def test_the_last_chunk_is_cut_evenly(n_images: int, sizes: set[int]) -> None:
    """So that the workers end together; a part is never too small for what it costs to write."""
    layout = Layout.of(None, "avg")
    plan, refs = replace(small_plan(MemoryStorage()), layout=layout), iter(range(n_images))
    for chunk in range(2):
        if here := [ImageRef(f"{i:05d}", 0, i, "v") for i in itertools.islice(refs, layout.tier(chunk).chunk)]:
            ledger.commit_chunk(plan, chunk, here, {})
    lengths = [len(ledger.read_shard(plan, layout.first_shard(k) + i)) for k, i, _ in cut(layout, n_images)]
    assert sum(lengths) == n_images
    assert set(lengths) == sizes


# -- plan ----------------------------------------------------------------------------------------------------


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    maker = PlanMaker(FolderStorage(str(tmp_path)), EMBEDDED_V1.backbone("flatten"))
    draft = maker(memory_source({"ä": b"1"}), labels="parent", pooling="flatten", limit=7)
    plan = replace(draft, precision="bfloat16", certificate={"asked": "auto", "min_cosine": 0.9991})
    assert ledger.read_plan(plan.storage) is None
    assert ledger.create_plan(plan)
    assert ledger.read_plan(plan.storage) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert plan.differences(plan) == []


def test_the_first_plan_stands(plan: Plan) -> None:
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
    values = json.loads(plan.storage.read(ledger.PLAN) or b"")
    assert next(iter(values)) == "format"
    assert values["format"] == "featurepress"
    assert values["format_version"] == 1
    assert values["fingerprint"] == plan.backbone.fingerprint


def test_differences_name_what_was_asked_otherwise(plan: Plan) -> None:
    maker = PlanMaker(plan.storage)
    other = maker(memory_source({"a": b"1"}), labels="parent", limit=3, workers=2, max_failures=0.5)
    assert plan.differences(other) == ["labels: 'none', not 'parent'", "limit: None, not 3"]
    assert plan.differences(replace(plan, run_id="x", created="y", precision="bfloat16")) == []


def test_a_plan_of_a_later_format_is_refused(plan: Plan) -> None:
    values = {**plan.to_json(), "format_version": 2, "new_things": 1}
    plan.storage.write(ledger.PLAN, json.dumps(values).encode())
    with pytest.raises(
        FeatureSetError, match=r"^'memory/plan/plan\.json' has format version 2; this featurepress reads up to 1\."
    ):
        ledger.read_plan(plan.storage)


FOREIGN = [
    b"", b"{}", b"[]", b"null", b'"featurepress"', b"7", b"{", b"\xff\xfe", b'{"format": "plan of a house"}',
    b'{"format": "featurepress"}', b'{"format": "featurepress", "format_version": "1"}',
    b'{"format": "featurepress", "format_version": 1, "sources": []}',
]  # fmt: skip


@pytest.mark.parametrize("data", FOREIGN)
def test_foreign_json_is_no_plan(plan: Plan, data: bytes) -> None:
    plan.storage.write(ledger.PLAN, data)
    with pytest.raises(FeatureSetError, match=r"^'memory/plan/plan\.json' is no featurepress plan: "):
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
    with pytest.raises(FeatureSetError, match="is no featurepress plan"):
        ledger.read_plan(plan.storage)


# -- chunks --------------------------------------------------------------------------------------------------

REFS = [
    ImageRef("a/1.jpg", 0, 10, "v1", ("a",)),
    ImageRef("a/\\xff.jpg", 1, 2**40, "v2", ("",), key=b"a/\xff.jpg"),
    ImageRef("ä\n/日本.jpg", 0, 0, "", ("ä\n",), problem="broken link: it leads nowhere"),
    ImageRef("ü", 2, 1, "x" * 300, ('label, with "quotes"',)),
    ImageRef("ý", 0, 5, "v5", ("z",)),
]


def test_what_is_committed_is_read_again_shard_by_shard() -> None:
    plan = small_plan(MemoryStorage(), labels="parent")
    chunk = ledger.commit_chunk(plan, 0, REFS, {"dot file": 3}, [b"\xff", b""])
    assert chunk.n_images == 5
    assert chunk.n_shards == 3
    assert chunk.last_key == "ý".encode()
    assert chunk.skipped == {"dot file": 3}
    assert chunk.positions == (b"\xff", b"")
    assert list(chunk.shards(plan.layout)) == [0, 1, 2]
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


def test_the_first_commit_of_a_chunk_stands(plan: Plan) -> None:
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
        "shard": shard, "generation": 1, "listed": 3, "pressed": 2, "failed": 1, "failed_by_kind": {"read: x": 1},
        "bytes_read": 10, "seconds": 1.0, "precision": "float32", "cpu": "c", "host": "h", "versions": {},
    }  # fmt: skip
    return Receipt(**{**values, **changes})


FAILURES = [Failure("ü", "read", "x: y")]


def settle(plan: Plan, shard: int, *, with_part: bool = True) -> None:
    if with_part:
        plan.storage.create(part_name(shard), b"the rows")
    ledger.settle_shard(plan, receipt(shard), FAILURES)


def test_a_settled_shard_is_finished(plan: Plan) -> None:
    settle(plan, 0)
    settle(plan, 12)
    assert ledger.finished_shards(plan) == {0, 12}
    assert ledger.read_receipt(plan, 12) == receipt(12)
    with plan.storage.open("failures/part-00000012.parquet") as file:
        assert pq.read_table(file).to_pylist() == [{"uri": "ü", "stage": "read", "reason": "x: y"}]


def test_no_failures_no_failure_file(plan: Plan) -> None:
    ledger.settle_shard(plan, receipt(0), [])
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


def test_a_whole_receipt_stays_as_it_is(plan: Plan) -> None:
    ledger.settle_shard(plan, receipt(0, host="the first"), [])
    ledger.settle_shard(plan, receipt(0, host="the second"), [])
    standing = ledger.read_receipt(plan, 0)
    assert standing is not None
    assert standing.host == "the first"


def test_a_deleted_receipt_can_be_written_again(plan: Plan) -> None:
    settle(plan, 0)
    ledger.delete_receipt(plan, 0)
    assert ledger.read_receipt(plan, 0) is None
    ledger.settle_shard(plan, receipt(0, host="again"), [])
    assert ledger.finished_shards(plan) == {0}


def test_totals_add_up() -> None:
    totals = Totals()
    totals.add(receipt(0))
    totals.add(receipt(1, precision="bfloat16", failed_by_kind={"read: x": 0, "decode: z": 1}))
    assert (totals.parts, totals.listed, totals.pressed, totals.failed, totals.bytes_read) == (2, 6, 4, 2, 20)
    assert totals.failed_by_kind == {"read: x": 1, "decode: z": 1}
    assert totals.precisions == {"float32": 2, "bfloat16": 2}
    assert totals.cpus == {"c": 4}


def test_the_manifest_is_read_as_it_was_written(plan: Plan) -> None:
    assert ledger.read_manifest(plan.storage) is None
    ledger.write_manifest(plan, {"status": "updating"})
    ledger.write_manifest(plan, {"status": "complete", "ü": 1})
    assert ledger.read_manifest(plan.storage) == {"status": "complete", "ü": 1}


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
