"""Embed one shard: who wins, what is marked, and that care changes nothing."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurepress import ledger
from featurepress.errors import ImageError, StorageError
from featurepress.images import decode
from featurepress.ledger import Plan
from featurepress.runs.tasks import EmbedShard
from featurepress.sources import Listing
from featurepress.specs import Receipt
from featurepress.storage import Data
from featurepress.testing import MemoryStorage, fake_backbone, memory_source
from tests.running import draft, draw, names_below, read_failures, read_footers, read_json, read_rows


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = draw(tmp_path_factory.mktemp("in"), 6)
    return {f"{i}.jpg": path.read_bytes() for i, path in enumerate(sorted(folder.rglob("*.jpg")))}


def commit(plan: Plan) -> Plan:
    """Write the plan and its listing, so that shards can be embedded."""
    plan.storage.prepare()
    assert ledger.create_plan(plan)
    ledger.commit_chunk(plan, 0, list(Listing(plan.sources, plan.settings.listing)), {})
    return plan


def test_a_shard_becomes_a_part_its_failures_and_a_receipt(tmp_path: Path, images: dict[str, bytes]) -> None:
    plan = commit(draft(tmp_path, memory_source({**images, "bad.jpg": b"", "evil.jpg": b"no image"})))
    receipt = EmbedShard()(plan, 0)
    assert (receipt.listed, receipt.embedded, receipt.failed) == (8, 6, 2)
    assert receipt.failed_by_kind == {"decode: zero bytes": 1, "decode: not an image": 1}
    assert receipt.bytes_read == sum(map(len, images.values())) + 8
    assert receipt.balances
    assert Receipt(**read_json(tmp_path / "receipts" / "part-00000000.json")) == receipt
    assert [footer["receipt"] for footer in read_footers(tmp_path)] == [receipt.to_json()]
    assert read_failures(tmp_path) == [tuple(row) for row in read_footers(tmp_path)[0]["failures"]]
    assert list(read_rows(tmp_path)) == list(images)
    assert not list((tmp_path / "attempts").iterdir())


def test_a_second_embed_gives_the_first_ones_receipt_and_decodes_nothing(
    tmp_path: Path, images: dict[str, bytes]
) -> None:
    plan = commit(draft(tmp_path, memory_source(images)))
    first = EmbedShard()(plan, 0)

    def never(data: bytes, *, max_pixels: int) -> Any:
        raise AssertionError("decoded again")

    assert EmbedShard(decode=never)(plan, 0) == first


def other_pixels(data: bytes, *, max_pixels: int) -> Any:
    return 255 - decode(data, max_pixels=max_pixels)


class HeldStorage(MemoryStorage):
    """Holds whoever wants to create a part until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived, self.may_go = threading.Event(), threading.Event()

    def create(self, name: str, data: Data, *, durable: bool = True) -> bool:
        if name.startswith("features/") and not self.arrived.is_set():
            self.arrived.set()
            assert self.may_go.wait(60)
        return super().create(name, data, durable=durable)


def race(
    plan: Plan, slow: EmbedShard, quick: EmbedShard, arrived: threading.Event, may_go: threading.Event
) -> list[Receipt]:
    """Start the slow attempt, let the quick one win while it is held, and return both receipts."""
    receipts: list[Receipt] = []
    thread = threading.Thread(target=lambda: receipts.append(slow(plan, 0)))
    thread.start()
    try:
        assert arrived.wait(60)
        receipts.append(quick(plan, 0))
    finally:
        may_go.set()
        thread.join(60)
    return receipts


def test_a_slow_decoder_that_finishes_after_another_attempt_won_leaves_no_trace(
    tmp_path: Path, images: dict[str, bytes]
) -> None:
    arrived, may_go = threading.Event(), threading.Event()

    def held(data: bytes, *, max_pixels: int) -> Any:
        arrived.set()
        assert may_go.wait(60)
        if data == images["3.jpg"]:
            raise ImageError("decode", "only the slow one fails here")
        return other_pixels(data, max_pixels=max_pixels)

    out, alone = tmp_path / "out", tmp_path / "alone"
    plan = commit(draft(out, memory_source(images)))
    winner, loser = race(plan, EmbedShard(decode=held), EmbedShard(), arrived, may_go)
    assert loser == winner
    assert winner.embedded == 6
    EmbedShard()(commit(draft(alone, memory_source(images))), 0)
    assert read_rows(out) == read_rows(alone)
    assert names_below(out) == names_below(alone)
    assert Receipt(**read_json(out / "receipts" / "part-00000000.json")) == winner


def test_a_slow_writer_that_comes_after_another_attempt_won_leaves_no_trace(images: dict[str, bytes]) -> None:
    storage = HeldStorage()
    plan = commit(draft(storage, memory_source({**images, "bad.jpg": b""})))
    winner, loser = race(plan, EmbedShard(decode=other_pixels), EmbedShard(), storage.arrived, storage.may_go)
    assert loser == winner
    alone = MemoryStorage()
    EmbedShard()(commit(draft(alone, memory_source({**images, "bad.jpg": b""}))), 0)
    features = [rows_of(one) for one in (storage, alone)]
    assert np.array_equal(*features)
    assert set(storage.objects) == set(alone.objects)


def test_the_slow_attempt_wins_where_it_was_first(images: dict[str, bytes]) -> None:
    """The part decides, whoever wrote it: a guard against a test above that could not fail."""
    storage, plain = MemoryStorage(), MemoryStorage()
    plan = commit(draft(storage, memory_source(images)))
    EmbedShard(decode=other_pixels)(plan, 0)
    EmbedShard()(plan, 0)
    EmbedShard()(commit(draft(plain, memory_source(images))), 0)
    assert not np.array_equal(rows_of(storage), rows_of(plain))


def rows_of(storage: MemoryStorage) -> Any:
    import pyarrow.parquet as pq

    table = pq.read_table(storage.open("features/part-00000000.parquet"))
    return table["features"].combine_chunks().flatten().to_numpy()


# -- attempts ------------------------------------------------------------------------------------------------


def test_an_attempt_is_marked_while_it_lasts(tmp_path: Path, images: dict[str, bytes]) -> None:
    marks: list[int] = []

    def look(data: bytes, *, max_pixels: int) -> Any:
        marks.append(len(list((tmp_path / "attempts").iterdir())))
        return decode(data, max_pixels=max_pixels)

    EmbedShard(decode=look)(commit(draft(tmp_path, memory_source(images))), 0)
    assert marks == [1] * 6
    assert not list((tmp_path / "attempts").iterdir())


def test_an_attempt_that_ends_by_an_error_takes_its_mark_away(tmp_path: Path, images: dict[str, bytes]) -> None:
    def broken(data: bytes, *, max_pixels: int) -> Any:
        raise ZeroDivisionError

    plan = commit(draft(tmp_path, memory_source(images)))
    with pytest.raises(ZeroDivisionError):
        EmbedShard(decode=broken)(plan, 0)
    assert not list((tmp_path / "attempts").iterdir())
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("n_deaths", [0, 1, 2, 7])
def test_after_two_deaths_images_are_embedded_one_by_one_with_the_same_result(
    tmp_path: Path, images: dict[str, bytes], n_deaths: int
) -> None:
    bad = {**images, "2b.jpg": b"", "4b.jpg": b"no image"}
    plan = commit(draft(tmp_path / "out", memory_source(bad, faults={"1.jpg": "permission denied"})))
    for i in range(n_deaths):
        plan.storage.create(f"attempts/part-00000000-{i}", b"")
    plan.storage.create("attempts/part-00000001-0", b"")
    here: list[int] = []
    EmbedShard(decode=Counting(here))(plan, 0)
    assert len(here) == (0 if n_deaths >= 2 else 7)  # in another process nothing is counted
    EmbedShard()(commit(draft(tmp_path / "plain", plan.sources[0])), 0)
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "plain")
    assert read_failures(tmp_path / "out") == read_failures(tmp_path / "plain")
    footers = [read_footers(tmp_path / name)[0]["receipt"] for name in ("out", "plain")]
    for name in ("listed", "embedded", "failed", "failed_by_kind", "precision"):
        assert footers[0][name] == footers[1][name], name


class Counting:
    """Decodes, and counts in this process's list."""

    def __init__(self, calls: list[int]) -> None:
        self.calls = calls

    def __call__(self, data: bytes, *, max_pixels: int) -> Any:
        self.calls.append(len(data))
        return decode(data, max_pixels=max_pixels)


# -- what an image may do ------------------------------------------------------------------------------------


def test_a_source_that_raises_what_nobody_expects_fails_one_image(tmp_path: Path, images: dict[str, bytes]) -> None:
    plan = commit(draft(tmp_path, memory_source(images, faults={"3.jpg": "crash"})))
    assert EmbedShard()(plan, 0).embedded == 5
    assert read_failures(tmp_path) == [("3.jpg", "read", "ZeroDivisionError: unexpected")]


def test_a_read_that_hangs_fails_one_image(tmp_path: Path, images: dict[str, bytes]) -> None:
    plan = commit(draft(tmp_path, memory_source(images, faults={"0.jpg": "hang"}), timeout_seconds=0.3))
    assert EmbedShard()(plan, 0).embedded == 5
    assert read_failures(tmp_path) == [("0.jpg", "read", "timed out: no answer in 0.3 seconds")]


def test_a_source_that_stops_answering_stops_the_run(tmp_path: Path, images: dict[str, bytes]) -> None:
    many = {f"{i:02d}.jpg": images["0.jpg"] for i in range(12)}
    source = memory_source(many, faults=dict.fromkeys(many, "hang"))
    plan = commit(draft(tmp_path, source, timeout_seconds=0.1))
    with pytest.raises(StorageError, match="stopped answering"):
        EmbedShard()(plan, 0)
    assert not (tmp_path / "features").exists()


def test_reasons_are_one_line(tmp_path: Path, images: dict[str, bytes]) -> None:
    plan = commit(draft(tmp_path, memory_source(images, faults={"3.jpg": "two\nlines\tand more"})))
    EmbedShard()(plan, 0)
    assert read_failures(tmp_path)[0][2] == "two lines and more"


def test_features_that_are_no_numbers_are_failures_in_their_place(tmp_path: Path, images: dict[str, bytes]) -> None:
    import cv2

    black = cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    mixed = {**images, "0b.png": black, "3b.png": black}
    plan = commit(draft(tmp_path, memory_source(mixed), backbone=fake_backbone(sabotage="nan")))
    receipt = EmbedShard()(plan, 0)
    assert (receipt.embedded, receipt.failed) == (6, 2)
    assert receipt.failed_by_kind == {"infer: features are not finite": 2}
    assert list(read_rows(tmp_path)) == list(images)


def test_a_destination_that_is_gone_is_an_error(tmp_path: Path, images: dict[str, bytes]) -> None:
    plan = commit(draft(tmp_path / "out", memory_source(images)))
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(StorageError, match=r"destination is gone|no such file"):
        EmbedShard()(plan, 0)
    assert list(tmp_path.iterdir()) == []


def test_only_the_shards_own_images_are_embedded(tmp_path: Path, images: dict[str, bytes]) -> None:
    plan = commit(draft(tmp_path, memory_source(images), images_per_part=2))
    embed: Callable[[Plan, int], Receipt] = EmbedShard()
    assert [embed(plan, shard).listed for shard in (2, 0)] == [2, 2]
    assert list(read_rows(tmp_path)) == ["0.jpg", "1.jpg", "4.jpg", "5.jpg"]
