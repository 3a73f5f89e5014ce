"""On a cluster too, images that kill their process become failures, and a lack of memory is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurepress import engines
from featurepress.errors import WorkerDeathError
from featurepress.runs.tasks import EmbedShard
from featurepress.runs.verbs import run_plan
from featurepress.testing import ABORT, crashing_decode, memory_source
from tests.running import draft, draw
from tests.runs.test_crash import assert_only_these_fail


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = draw(tmp_path_factory.mktemp("in"), 12)
    return {f"{i:02d}.jpg": path.read_bytes() for i, path in enumerate(sorted(folder.rglob("*.jpg")))}


def test_killers_are_found_in_the_probe_and_after(engine: Any, tmp_path: Path, images: dict[str, bytes]) -> None:
    deadly = {**images, "00.jpg": ABORT, "01.jpg": ABORT, "09.jpg": ABORT}
    plan = draft(tmp_path / "out", memory_source(deadly), images_per_part=4, max_failures=1.0)
    run_plan(plan, engine=engine, task=EmbedShard(decode=crashing_decode))
    assert_only_these_fail(tmp_path / "out", tmp_path, deadly, {"00.jpg", "01.jpg", "09.jpg"})


def test_dying_workers_name_the_memory_setting_of_the_cluster(engine: Any, tmp_path: Path) -> None:
    plan = draft(tmp_path / "out", memory_source({"0.jpg": ABORT}))
    setting = "spark.executor.memoryOverhead" if isinstance(engine, engines.Spark) else "ray start --num-cpus"
    with pytest.raises(WorkerDeathError, match=rf"SIGABRT.*{setting}"):
        run_plan(plan, engine=engine, task=EmbedShard(decode=crashing_decode))
    assert not (tmp_path / "out").exists()
