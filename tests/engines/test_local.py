"""Worker processes on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurepress.engines import LocalEngine
from featurepress.errors import SettingError, WorkerDeathError
from featurepress.ledger import Plan
from featurepress.storage import FolderStorage
from featurepress.testing import draft_plan, memory_source
from tests.contracts import tasks


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return draft_plan(FolderStorage(str(tmp_path / "out")), memory_source({"a": b"1"}))


def test_workers_are_reused_by_the_next_run(plan: Plan) -> None:
    with LocalEngine(2) as engine:
        first = set(engine.run(tasks.worker_id, plan, range(8)))
        second = set(engine.run(tasks.worker_id, plan, range(8)))
        assert first == second
        assert len(first) == 2
        assert first <= tasks.running()
    assert not first & tasks.running()


def test_zero_workers_are_refused() -> None:
    with pytest.raises(SettingError, match=r"at least 1\. Got 0"):
        LocalEngine(0)


def test_at_most_one_worker_per_shard_is_started(plan: Plan) -> None:
    before = tasks.running()
    with LocalEngine(8) as engine:
        list(engine.run(tasks.square, plan, [1, 2]))
        assert len(tasks.running() - before) <= 2


def test_warm_up_starts_the_missing_workers(plan: Plan) -> None:
    before = tasks.running()
    with LocalEngine(3) as engine:
        engine.warm_up(1)
        assert len(tasks.running() - before) == 1
        engine.warm_up(10)
        warm = tasks.running() - before
        assert len(warm) == 3
        engine.warm_up(2)
        assert tasks.running() - before == warm
        assert set(engine.run(tasks.worker_id, plan, range(3))) <= warm
    assert not warm & tasks.running()


def test_a_silent_worker_is_killed(plan: Plan) -> None:
    task = HangOnce()
    with LocalEngine(1, silence_seconds=1.5) as engine:
        begun = time.monotonic()
        with pytest.raises(WorkerDeathError, match=r"1\.5 seconds, 1 time\."):
            list(engine.run(task, plan, [0]))
        assert 1.5 <= time.monotonic() - begun < 20
        assert tasks.running() == set()
        assert list(engine.run(tasks.square, plan, [3])) == [9]


class HangOnce:
    """Hangs, and allows one death."""

    max_deaths = 1

    def __call__(self, plan: Plan, shard: int) -> None:
        tasks.hang(plan, shard)


def test_a_worker_that_sends_messages_is_not_killed(plan: Plan) -> None:
    with LocalEngine(1, silence_seconds=2.0) as engine:
        list(engine.run(tasks.square, plan, [0]))
        assert list(engine.run(tasks.sending_slowly, plan, [0])) == [6]  # takes 3 seconds


def test_a_shard_is_retried_after_a_silent_worker(plan: Plan, tmp_path: Path) -> None:
    with LocalEngine(1, silence_seconds=2.0) as engine:
        assert list(engine.run(tasks.Recorded(tmp_path, HangAtFirst(tmp_path)), plan, [3])) == [9]
    assert len(tasks.attempts(tmp_path, 3)) == 2


class HangAtFirst:
    """Hangs at the first attempt that `Recorded` has noted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, plan: Plan, shard: int) -> int:
        if len(tasks.attempts(self.folder, shard)) == 1:
            tasks.hang(plan, shard)
        return shard * shard


def test_close_from_another_thread_ends_a_run(plan: Plan) -> None:
    engine = LocalEngine(2)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            list(engine.run(tasks.hang, plan, range(10)))
        except WorkerDeathError as error:
            ended.append(error)

    before = tasks.running()
    thread = threading.Thread(target=run)
    thread.start()
    while len(tasks.running() - before) < 2:
        time.sleep(0.01)
    engine.close()
    thread.join(20)
    assert not thread.is_alive()
    assert len(ended) == 1
    assert tasks.running() <= before


def test_close_ends_a_run_whose_results_are_not_read(plan: Plan) -> None:
    before = tasks.running()
    engine = LocalEngine(2)
    results = engine.run(FirstThenHang(), plan, range(10))
    assert next(results) == 0
    engine.close()  # as an error in the caller's loop does, while its traceback holds the results
    time.sleep(0.3)
    assert tasks.running() <= before
    results.close()


class FirstThenHang:
    """Hangs at every shard but the first."""

    def __call__(self, plan: Plan, shard: int) -> int:
        if shard:
            tasks.hang(plan, shard)
        return shard


def test_shards_are_taken_when_workers_are_free(plan: Plan) -> None:
    taken: list[int] = []

    def shards() -> Iterator[int]:
        for shard in range(100):
            taken.append(shard)
            yield shard

    with LocalEngine(2) as engine:
        results = engine.run(tasks.worker_id, plan, shards())
        next(results)
        assert len(taken) <= 4
        results.close()
