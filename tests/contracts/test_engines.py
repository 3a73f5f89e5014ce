"""The contract of engines. A new one adds a row to `ENGINES`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featurepress.engines import Engine, LocalEngine
from featurepress.engines.local import MAX_DEATHS
from featurepress.errors import EngineError, WorkerDeathError
from featurepress.ledger import Plan
from featurepress.storage import FolderStorage
from featurepress.testing import InlineEngine, draft_plan, memory_source
from tests.contracts import tasks

# Workers beat or answer within a few seconds, even when the machine is busy with other tests.
TIMEOUT_SECONDS = 60.0

ENGINES: dict[str, Callable[[], Engine]] = {
    "inline": InlineEngine,
    "local 1": lambda: LocalEngine(1, silence_seconds=TIMEOUT_SECONDS),
    "local 3": lambda: LocalEngine(3, silence_seconds=TIMEOUT_SECONDS),
}
IN_PROCESSES = [name for name in ENGINES if name != "inline"]


@pytest.fixture
def nothing_left_running() -> Iterator[None]:
    before = tasks.running()
    yield
    assert tasks.running() <= before


def started(make: Callable[[], Engine]) -> Iterator[Engine]:
    engine = make()
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, nothing_left_running: None) -> Iterator[Engine]:
    yield from started(ENGINES[request.param])


@pytest.fixture(params=IN_PROCESSES)
def process_engine(request: pytest.FixtureRequest, nothing_left_running: None) -> Iterator[Engine]:
    yield from started(ENGINES[request.param])


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return draft_plan(FolderStorage(str(tmp_path / "out")), memory_source({"a": b"1"}))


def test_every_shard_runs_once_and_returns_its_result(engine: Engine, plan: Plan, tmp_path: Path) -> None:
    shards = [0, 1, 2, 3, 5, 8, 100_000_000]
    results = list(engine.run(tasks.Recorded(tmp_path), plan, shards))
    assert sorted(results) == [shard * shard for shard in shards]
    assert all(len(tasks.attempts(tmp_path, shard)) == 1 for shard in shards)


def test_without_shards_there_are_no_results(engine: Engine, plan: Plan) -> None:
    assert list(engine.run(tasks.square, plan, [])) == []


def test_nothing_runs_before_the_first_result_is_requested(engine: Engine, plan: Plan) -> None:
    taken: list[int] = []

    def shards() -> Iterator[int]:
        taken.append(1)
        yield 1

    results = engine.run(tasks.square, plan, shards())
    time.sleep(0.05)
    assert taken == []
    assert list(results) == [1]


def test_shards_may_be_added_while_the_first_ones_run(engine: Engine, plan: Plan) -> None:
    arrived = [threading.Event() for _ in range(3)]

    def shards() -> Iterator[int]:
        for shard, event in enumerate(arrived):
            yield shard
            assert event.wait(TIMEOUT_SECONDS), "a result waits until the shards have come to their end"

    for result in engine.run(tasks.square, plan, shards()):
        arrived[{0: 0, 1: 1, 4: 2}[result]].set()
    assert all(event.is_set() for event in arrived)


def test_the_error_of_a_task_reaches_the_caller(engine: Engine, plan: Plan) -> None:
    with pytest.raises(ArithmeticError, match="2 has no square today"):
        list(engine.run(tasks.square_but_never, plan, range(10)))


def test_an_engine_can_be_used_after_an_error(engine: Engine, plan: Plan) -> None:
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            list(engine.run(tasks.square_but_never, plan, range(5)))
        assert sorted(engine.run(tasks.square, plan, range(4))) == [0, 1, 4, 9]


def test_the_error_of_the_shards_reaches_the_caller(engine: Engine, plan: Plan) -> None:
    def shards() -> Iterator[int]:
        yield 1
        raise OSError("the listing broke off")

    with pytest.raises(OSError, match="the listing broke off"):
        list(engine.run(tasks.square, plan, shards()))


def test_closing_the_generator_stops_all_shards(engine: Engine, plan: Plan, tmp_path: Path) -> None:
    taken: list[int] = []

    def shards() -> Iterator[int]:
        for shard in range(1000):
            taken.append(shard)
            yield shard

    results = engine.run(tasks.square, plan, shards())
    next(results)
    results.close()
    n_taken = len(taken)
    time.sleep(0.1)
    assert len(taken) == n_taken < 1000
    assert sorted(engine.run(tasks.square, plan, [2, 3])) == [4, 9]


def test_an_engine_can_be_closed_twice(engine: Engine, plan: Plan) -> None:
    assert list(engine.run(tasks.square, plan, [1])) == [1]
    engine.close()
    engine.close()


# -- where tasks run in processes of their own ---------------------------------------------------------------


def first_shard_then_hang(plan: Plan, shard: int) -> int:
    if shard:
        time.sleep(600)
    return shard


def test_shards_in_progress_are_dropped_when_the_generator_is_closed(process_engine: Engine, plan: Plan) -> None:
    results = process_engine.run(first_shard_then_hang, plan, range(10))
    assert next(results) == 0
    begun = time.monotonic()
    results.close()
    assert time.monotonic() - begun < 10


def test_shards_in_progress_are_dropped_when_a_task_fails(process_engine: Engine, plan: Plan) -> None:
    begun = time.monotonic()
    with pytest.raises(ArithmeticError):
        list(process_engine.run(square_or_hang, plan, [2, 3, 3, 3]))
    assert time.monotonic() - begun < 30


def square_or_hang(plan: Plan, shard: int) -> int:
    if shard != 2:
        time.sleep(600)
    return tasks.square_but_never(plan, shard)


def test_a_shard_that_comes_after_the_end_is_not_run(process_engine: Engine, plan: Plan, tmp_path: Path) -> None:
    waiting, go_on = threading.Event(), threading.Event()

    def shards() -> Iterator[int]:
        yield 0
        waiting.set()
        go_on.wait(TIMEOUT_SECONDS)
        yield 1

    results = process_engine.run(tasks.Recorded(tmp_path), plan, shards())
    assert next(results) == 0
    assert waiting.wait(TIMEOUT_SECONDS)
    closer = threading.Thread(target=results.close)
    closer.start()
    time.sleep(0.05)
    go_on.set()
    closer.join(TIMEOUT_SECONDS)
    assert not closer.is_alive()
    assert tasks.attempts(tmp_path, 1) == []


@pytest.mark.parametrize("how", ["exit", "abort", "kill"])
def test_a_shard_whose_process_dies_is_run_again(
    process_engine: Engine, plan: Plan, tmp_path: Path, how: str
) -> None:
    task = tasks.Dying(tmp_path, how, times=2)
    assert sorted(process_engine.run(task, plan, range(4))) == [0, 1, 4, 9]
    assert len(tasks.attempts(tmp_path, 1)) == 3


@pytest.mark.parametrize(
    ("how", "words"),
    [("exit", "exited with code 3"), ("abort", "killed by SIGABRT"), ("kill", "killed by SIGKILL")],
)
def test_a_shard_whose_process_always_dies_is_an_error(
    process_engine: Engine, plan: Plan, tmp_path: Path, how: str, words: str
) -> None:
    task = tasks.Dying(tmp_path, how, times=1000)
    with pytest.raises(WorkerDeathError, match=rf"^Stopped at shard 1: its worker process .*{words}, 5 times\."):
        list(process_engine.run(task, plan, range(4)))
    assert len(tasks.attempts(tmp_path, 1)) == MAX_DEATHS


def test_a_task_can_allow_fewer_deaths(process_engine: Engine, plan: Plan, tmp_path: Path) -> None:
    task = tasks.Dying(tmp_path, "exit", times=1000, max_deaths=1)
    with pytest.raises(WorkerDeathError, match="exited with code 3, 1 time"):
        list(process_engine.run(task, plan, [1]))
    assert len(tasks.attempts(tmp_path, 1)) == 1


def test_an_out_of_memory_error_names_the_setting(process_engine: Engine, plan: Plan) -> None:
    setting = "--memory-bytes|spark.executor.memoryOverhead|ray start --num-cpus"
    with pytest.raises(EngineError, match=rf"A worker on .* ran out of memory \(bad_alloc\): .*({setting})"):
        list(process_engine.run(tasks.starve, plan, [1]))


def test_the_last_message_of_a_dead_worker_is_delivered(process_engine: Engine, plan: Plan, tmp_path: Path) -> None:
    """The driver can then exclude the image that killed it."""
    heard: list[Any] = []
    task = tasks.Dying(tmp_path, "SIGKILL", times=1000, max_deaths=1, says=("at", 1, "evil.jpg"))
    with pytest.raises(WorkerDeathError):
        list(process_engine.run(task, plan, [1], heard.append))
    assert heard == [("at", 1, "evil.jpg")]


def test_messages_arrive_before_the_result(process_engine: Engine, plan: Plan) -> None:
    heard: list[Any] = []
    results = set()
    for result in process_engine.run(tasks.sending, plan, range(8), heard.append):
        results.add(result)
        assert ("images", result, 0) in heard
    assert results == set(range(8))
    assert sorted(heard) == [("images", shard, 0) for shard in range(8)]


def test_an_error_in_on_message_reaches_the_caller(process_engine: Engine, plan: Plan) -> None:
    def on_message(message: Any) -> None:
        raise LookupError("no progress line here")

    with pytest.raises(LookupError, match="no progress line here"):
        list(process_engine.run(tasks.sending, plan, [7, 7, 7], on_message))
    assert sorted(process_engine.run(tasks.square, plan, [2, 3, 4])) == [4, 9, 16]


def test_a_task_that_cannot_be_pickled_is_an_error(process_engine: Engine, plan: Plan) -> None:
    with pytest.raises(Exception, match=r"(?i)pickle"):
        list(process_engine.run(lambda plan, shard: shard, plan, [1]))
    assert list(process_engine.run(tasks.square, plan, [3])) == [9]


def test_a_worker_that_died_between_two_runs_is_replaced(
    process_engine: Engine, plan: Plan, tmp_path: Path
) -> None:
    (pid,) = process_engine.run(tasks.worker_id, plan, [0])
    os.kill(pid, signal.SIGKILL)
    # Not by waiting for it, which is its parent's business. A process whose first thread is a zombie cannot be
    # reaped while other threads of it are still ending.
    while pid in tasks.running() or len(list(Path(f"/proc/{pid}/task").glob("*"))) > 1:
        time.sleep(0.01)
    task = tasks.Dying(tmp_path, "exit", times=0, max_deaths=1)
    assert sorted(process_engine.run(task, plan, [1, 2])) == [1, 4]
