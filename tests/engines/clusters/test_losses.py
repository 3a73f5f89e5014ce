"""Machines are lost: the run completes, with every image exactly once."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.engines.clusters.conftest import require_spark
from tests.engines.clusters.runs import (
    embed,
    end_all,
    finish,
    is_executor,
    is_python_worker,
    kill_one,
    standalone,
    started,
    stop_one,
    wait_for_receipts,
)
from tests.running import draw, read_failures, read_json, read_rows

CLUSTER = "local-cluster[2,1,1024]"
PART = 32


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("pictures"), 3_000, broken=True)


def assert_whole(out: Path) -> None:
    assert read_json(out / "manifest.json")["status"] == "complete"
    assert len(read_rows(out)) == 3_000  # fails on a uri that is there twice
    assert len(read_failures(out)) == 3
    assert list(out.glob("attempts/*")) == []


@pytest.mark.long
def test_lost_workers_and_executors_of_spark_lose_nothing(pictures: Path, tmp_path: Path) -> None:
    require_spark()
    out = tmp_path / "out"
    with started(CLUSTER, pictures, out, part=PART) as process:
        for n_done, wanted in [(4, is_python_worker), (16, is_executor), (30, is_python_worker), (45, is_executor)]:
            wait_for_receipts(out, n_done, process)
            assert kill_one(process.pid, wanted)
        finish(process, out)
    assert_whole(out)


def test_a_lost_worker_of_a_single_machine_is_replaced(pictures: Path, tmp_path: Path) -> None:
    """Spark's local mode runs a task once; the engine runs the job again."""
    require_spark()
    out = tmp_path / "out"
    with started("local[2]", pictures, out, part=PART) as process:
        for n_done in (4, 30):
            wait_for_receipts(out, n_done, process)
            assert kill_one(process.pid, is_python_worker)
        finish(process, out)
    assert_whole(out)


@pytest.mark.long
def test_a_slow_worker_is_speculated(pictures: Path, tmp_path: Path) -> None:
    """Speculation runs its shards on another host; without it the run would never end."""
    require_spark()
    out = tmp_path / "out"
    settings = ("spark.speculation=true", "spark.speculation.quantile=0.1")
    with (
        standalone(tmp_path / "cluster", ["127.0.0.2", "127.0.0.3"]) as (master, pid),
        started(master, pictures, out, *settings, part=PART) as process,
    ):
        wait_for_receipts(out, 4, process)
        stopped = stop_one(pid, is_python_worker)
        try:
            finish(process, out)
            assert all(is_still(one) for one in stopped)  # or Spark has killed them
        finally:
            end_all(stopped)
    assert_whole(out)


def is_still(process: psutil.Process) -> bool:
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.mark.long
def test_a_killed_driver_is_resumed_by_the_same_command(pictures: Path, tmp_path: Path) -> None:
    require_spark()
    out = tmp_path / "out"
    with started("local[2]", pictures, out, part=PART) as process:
        wait_for_receipts(out, 8, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    before = {path.name: path.read_bytes() for path in out.glob("features/*.parquet")}
    assert len(before) >= 8
    embed("local[2]", pictures, out, part=PART)
    assert_whole(out)
    assert all((out / "features" / name).read_bytes() == data for name, data in before.items())


REMOVE_A_NODE = """
import sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
import featurepress as fp
from tests.engines.clusters.embed import OPTIONS
source, out = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

def remove():
    while len(list(Path(out).glob("receipts/*.json"))) < 12:
        time.sleep(0.02)
    cluster.remove_node(node, allow_graceful=False)
    print("removed at", len(list(Path(out).glob("receipts/*.json"))), flush=True)

thread = threading.Thread(target=remove)
thread.start()
fp.embed(source, out, engine=fp.engines.Ray(), **OPTIONS)
thread.join()
ray.shutdown()
cluster.shutdown()
"""


def test_a_lost_node_of_ray_loses_nothing(
    pictures: Path, tmp_path: Path, loopback: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: make test-engines")
    import sys

    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("IMAGES_PER_PART", str(PART))
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", REMOVE_A_NODE, str(pictures), str(out)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "removed at" in done.stdout
    assert int(done.stdout.split("removed at")[1].split()[0]) < 94
    assert_whole(out)
