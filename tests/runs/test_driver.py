"""The driver: progress, the number of workers, repairs, and what it refuses to call complete."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Generator
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from featurepress import ledger
from featurepress.engines import LocalEngine
from featurepress.errors import SettingError, StoppedError
from featurepress.ledger import Plan
from featurepress.progress import Progress, ignore_progress
from featurepress.runs.tasks import EmbedShard
from featurepress.runs.verbs import run_plan
from featurepress.settings import DRIVER_BYTES, MODEL_COPIES, WORKER_BYTES, available_cores
from featurepress.specs import Receipt
from featurepress.storage import FolderStorage
from featurepress.testing import InlineEngine, MemoryStorage, fake_backbone, memory_source
from tests.running import draft, draw, read_failures, read_json, read_rows


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("in"), 30, broken=True)


# -- progress ------------------------------------------------------------------------------------------------


def test_progress_grows_to_the_whole(tmp_path: Path, source: Path) -> None:
    seen: list[Progress] = []
    plan = draft(tmp_path / "out", source, images_per_part=4, max_failures=1.0)
    with LocalEngine(2) as engine:
        run_plan(plan, engine=engine, on_progress=lambda progress: seen.append(copy(progress)))
    done = [progress.embedded + progress.failed for progress in seen]
    assert done == sorted(done)
    assert all(progress.embedded + progress.failed <= 33 for progress in seen)
    last = seen[-1]
    assert (last.stage, last.listed, last.embedded, last.failed) == ("done", 33, 30, 3)
    assert not last.listing
    assert last.done_before == 0
    assert last.images_per_second > 0
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages in (["embedding", "done"], ["probing", "embedding", "done"])


def test_progress_of_a_resumed_run_counts_what_was_done_before(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"images_per_part": 4, "max_failures": 1.0, "format": "csv"}
    run_plan(draft(out, source, **options), engine=InlineEngine())
    for name in ("manifest.json", "features/part-00000001.parquet", "csv/part-00000.csv"):
        (out / name).unlink()
    seen: list[Progress] = []
    with LocalEngine(1) as engine:
        features = run_plan(
            draft(out, source, **options), engine=engine, on_progress=lambda p: seen.append(copy(p))
        )
    last = seen[-1]
    assert (last.listed, last.embedded + last.failed, last.done_before) == (33, 33, 29)
    assert "exporting" in [progress.stage for progress in seen]
    assert features.summary.listed == 33
    assert features.summary.images_per_second * features.summary.seconds == pytest.approx(4)


class StutteringEngine(InlineEngine):
    """Reports an attempt at each shard that is lost, and the beginning of the next one."""

    def run(self, task: Any, plan: Plan, shards: Any, on_message: Any = ignore_progress) -> Generator[Any]:
        for shard in shards:
            if isinstance(task, EmbedShard):
                on_message(("images", shard, 0, 1))
                on_message(("images", shard, 0, 0))
            yield from super().run(task, plan, [shard], on_message)


def test_progress_takes_back_what_a_lost_attempt_reported(tmp_path: Path, source: Path) -> None:
    seen: list[Progress] = []
    plan = draft(tmp_path / "out", source, images_per_part=4, max_failures=1.0)
    run_plan(plan, engine=StutteringEngine(), on_progress=lambda progress: seen.append(copy(progress)))
    assert (seen[-1].embedded, seen[-1].failed) == (30, 3)
    assert max(progress.embedded + progress.failed for progress in seen) == 33


class Recording(MemoryStorage):
    """Records what is deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: list[str] = []

    def delete(self, name: str) -> None:
        self.deleted.append(name)
        super().delete(name)


def test_a_resumed_run_deletes_nothing_of_what_another_may_have_written(source: Path) -> None:
    storage = Recording()
    options: dict[str, Any] = {"images_per_part": 4, "max_failures": 1.0}
    run_plan(draft(storage, source, **options), engine=InlineEngine())
    for name in ("manifest.json", "receipts/part-00000001.json", "features/part-00000002.parquet"):
        del storage.objects[name]
    storage.deleted.clear()
    assert run_plan(draft(storage, source, **options), engine=InlineEngine()).summary.listed == 33
    assert {name.partition("/")[0] for name in storage.deleted} <= {"attempts", "failures"}


# -- workers -------------------------------------------------------------------------------------------------


def test_there_are_as_many_workers_as_cores_by_default() -> None:
    assert asking().n_workers == available_cores()
    assert asking(workers=7).n_workers == 7


def asking(**options: Any) -> Plan:
    """Plan to embed nothing, with some settings."""
    return draft(MemoryStorage(), memory_source({}), **options)


def test_memory_limits_the_workers() -> None:
    def workers(memory_bytes: int) -> int:
        return asking(workers=100, memory_bytes=memory_bytes).n_workers

    assert workers(2**40) == 100
    assert [workers(DRIVER_BYTES + n * WORKER_BYTES) for n in (1, 2, 7)] == [1, 2, 7]
    assert workers(DRIVER_BYTES + 2 * WORKER_BYTES - 1) == 1


def test_a_large_model_leaves_memory_for_fewer_workers() -> None:
    memory = DRIVER_BYTES + 7 * WORKER_BYTES
    plan = asking(workers=100, memory_bytes=memory)
    assert plan.n_workers == 7
    large = replace(plan, backbone=fake_backbone(model_bytes=200 * 1024**2))
    assert large.n_workers == 7 * WORKER_BYTES // (WORKER_BYTES + MODEL_COPIES * 200 * 1024**2) == 1


def test_too_little_memory_is_refused_with_what_would_be_enough() -> None:
    with pytest.raises(SettingError, match=r"at least \d+, for the driver and one worker") as caught:
        _ = asking(memory_bytes=DRIVER_BYTES).n_workers
    enough = int(re.findall(r"\d+", str(caught.value))[0])
    assert asking(memory_bytes=enough).n_workers == 1


# -- what is not complete is not called so -------------------------------------------------------------------


class ForgetfulEngine(InlineEngine):
    """Skips one shard, once."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, task: Any, plan: Plan, shards: Any, on_message: Any = ignore_progress) -> Generator[Any]:
        self.runs += isinstance(task, EmbedShard)
        left_out = 2 if self.runs == 1 and isinstance(task, EmbedShard) else -1
        return super().run(task, plan, (shard for shard in shards if shard != left_out), on_message)


def test_a_shard_that_the_engine_forgot_is_embedded(tmp_path: Path, source: Path) -> None:
    engine, out = ForgetfulEngine(), tmp_path / "out"
    run_plan(draft(out, source, images_per_part=4, max_failures=1.0), engine=engine)
    assert engine.runs == 2
    assert len(read_rows(out)) + len(read_failures(out)) == 33
    assert read_json(out / "manifest.json")["listed"] == 33


def test_a_source_that_goes_away_under_a_plan_is_a_stop_that_can_be_resumed(tmp_path: Path, source: Path) -> None:
    out, away = tmp_path / "out", tmp_path / "away"
    here = Path(shutil.copytree(source, tmp_path / "here"))
    plan = draft(out, here, images_per_part=4, max_failures=1.0)
    plan.storage.prepare()
    assert ledger.create_plan(plan)
    here.rename(away)
    with pytest.raises(StoppedError, match=r"The listing stopped: .*here") as caught:
        run_plan(plan, engine=InlineEngine())
    assert caught.value.exit_code == 1
    away.rename(here)
    assert run_plan(plan, engine=InlineEngine()).summary.listed == 33


@dataclass(frozen=True)
class LossyTask(EmbedShard):
    """Loses images of shard 1, the first time or always."""

    always: bool = False

    def __call__(self, plan: Plan, shard: int) -> Receipt:
        lost = Path(plan.storage.location) / "lost"
        if shard != 1 or (lost.exists() and not self.always):
            return EmbedShard.__call__(self, plan, shard)
        lost.write_text("x")
        receipt = EmbedShard.__call__(self, plan, shard)
        path = Path(plan.storage.location) / "receipts" / "part-00000001.json"
        values = {**receipt.to_json(), "listed": receipt.listed + 1}
        path.write_text(json.dumps(values))
        return Receipt(**values)


def test_a_shard_that_does_not_balance_is_embedded_again(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    run_plan(draft(out, source, images_per_part=4, max_failures=1.0), engine=InlineEngine(), task=LossyTask())
    assert len(read_rows(out)) + len(read_failures(out)) == 33
    receipts = [read_json(path) for path in out.glob("receipts/*")]
    assert all(receipt["listed"] == receipt["embedded"] + receipt["failed"] for receipt in receipts)
    assert sum(receipt["listed"] for receipt in receipts) == 33


def test_a_run_whose_images_go_missing_is_never_called_complete(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    plan = draft(out, source, images_per_part=4, max_failures=1.0)
    with pytest.raises(StoppedError, match="does not balance"):
        run_plan(plan, engine=InlineEngine(), task=LossyTask(always=True))
    assert not (out / "manifest.json").exists()


def test_a_receipt_of_another_run_does_not_balance(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    run_plan(draft(out, source, images_per_part=4, max_failures=1.0), engine=InlineEngine())
    (out / "manifest.json").unlink()
    path = out / "receipts" / "part-00000003.json"
    values = read_json(path)
    path.write_text(json.dumps({**values, "listed": 3, "embedded": 3, "failed": 0, "failed_by_kind": {}}))
    with pytest.raises(StoppedError, match=r"33 images.* 32"):
        run_plan(draft(out, source, images_per_part=4, max_failures=1.0), engine=InlineEngine())
    assert not (out / "manifest.json").exists()


# -- stopping ------------------------------------------------------------------------------------------------


def test_a_run_that_is_stopped_drops_its_shards_in_flight(tmp_path: Path, source: Path) -> None:
    """They are not waited for, leave no part and no mark, and their workers are gone."""
    images = {path.name: path.read_bytes() for path in source.rglob("0*.jpg")}
    slow = memory_source(images, delay_seconds=0.06)

    def stop(progress: Progress) -> None:
        if progress.embedded:  # of the one shard, 16 images are read and 14 are not
            raise KeyboardInterrupt

    with LocalEngine(1) as engine, pytest.raises(KeyboardInterrupt):
        run_plan(draft(tmp_path / "out", slow), engine=engine, on_progress=stop)
    assert list((tmp_path / "out" / "attempts").iterdir()) == []
    assert not (tmp_path / "out" / "features").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert run_plan(draft(tmp_path / "out", slow), engine=InlineEngine()).summary.embedded == 30


def test_the_plan_of_another_driver_that_came_first_is_taken_over(tmp_path: Path, source: Path) -> None:
    """It was created after we had looked at the destination."""

    class Overtaken(FolderStorage):
        def prepare(self) -> None:
            super().prepare()
            rival = draft(tmp_path / "out", source, images_per_part=4, max_failures=1.0, workers=3)
            run_plan(rival, engine=InlineEngine())

    plan = draft(Overtaken(str(tmp_path / "out")), source, images_per_part=4, max_failures=1.0)
    features = run_plan(plan, engine=InlineEngine())
    assert features.plan.run_id != plan.run_id
    assert features.plan.run_id == read_json(tmp_path / "out" / "plan" / "plan.json")["run_id"]
    assert features.summary.listed == 33
