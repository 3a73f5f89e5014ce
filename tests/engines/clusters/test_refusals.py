"""Problems of a cluster are reported soon, in one line that names the host."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featurepress import engines
from featurepress.engines import worker
from featurepress.engines.preflight import hosts_in, require_answer, require_java
from featurepress.errors import EngineError, SettingError
from featurepress.ledger import Plan
from featurepress.storage import FolderStorage
from tests.contracts import tasks

HOST = os.uname().nodename


def fake_java(folder: Path, text: str) -> Path:
    path = folder / "bin" / "java"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho '{text}' >&2\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def test_missing_java_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(EngineError, match=r"Java 17.*apt install.*brew install"):
        require_java()


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ('openjdk version "17.0.15" 2025-04-15', None),
        ('openjdk version "21" 2023-09-19', None),
        ('java version "1.8.0_392"', "is Java 8"),
        ('openjdk version "11.0.2"', "is Java 11"),
        ("Error: no such thing", "prints no version"),
    ],
)
def test_the_version_of_java_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, refused: str | None
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "jdk", said)))
    if refused is None:
        require_java()
        return
    with pytest.raises(EngineError, match=refused):
        require_java()


@pytest.mark.parametrize(
    "address", ["spark://127.0.0.1:1", "sc://127.0.0.1:1/;token=x", "127.0.0.1:1", "ray://127.0.0.1:1"]
)
def test_a_cluster_that_does_not_answer_is_reported_at_once(address: str) -> None:
    with pytest.raises(EngineError, match=r"does not answer \(127.0.0.1:1: "):
        require_answer(address)


@pytest.mark.parametrize(
    "address", ["", "local", "local[2]", "local-cluster[2,1,1024]", "yarn", "auto", "k8s://https://h:443"]
)
def test_addresses_without_a_host_are_not_checked(address: str) -> None:
    assert hosts_in(address) == []
    require_answer(address)


def test_options_of_another_engine_are_refused() -> None:
    with pytest.raises(SettingError, match=r"must be one of local, spark, ray. Got 'dask'"):
        engines.open_engine("dask")
    with pytest.raises(SettingError, match=r"--master is for --engine spark only. Got --engine local"):
        engines.open_engine("local", master="local[2]")
    with pytest.raises(SettingError, match=r"--address is for --engine ray only. Got --engine spark"):
        engines.open_engine("spark", address="auto")
    with pytest.raises(SettingError, match=r"spark-conf.*name=value.*Got 'spark.task.cpus'"):
        engines.open_engine("spark", spark_conf=["spark.task.cpus"])
    assert engines.open_engine("local") is None


# -- on workers ----------------------------------------------------------------------------------------------


def test_a_worker_that_cannot_see_the_destination_is_named(engine: Any, plan: Plan) -> None:
    elsewhere = replace(plan, storage=FolderStorage(f"{plan.storage.location}-elsewhere"))
    with pytest.raises(EngineError, match=rf"The worker {HOST} cannot see '.*-elsewhere': it finds nothing"):
        list(engine.run(tasks.square, elsewhere, [1]))
    other = replace(plan, run_id="another")
    with pytest.raises(EngineError, match=r"cannot see '.*': it finds another plan"):
        list(engine.run(tasks.square, other, [1]))
    assert list(engine.run(tasks.square, plan, [3])) == [9]


def test_a_worker_with_another_version_is_named(plan: Plan) -> None:
    work = worker.packed("9.9", tasks.square, plan)
    with pytest.raises(EngineError, match=rf"The worker {HOST} has featurepress 0.*, and the driver 9.9"):
        list(worker.run_shards(work, [1]))


def test_a_worker_without_featurepress_is_named(spark: Any) -> None:
    from featurepress.engines.spark import raise_unless_lost

    text = "Job aborted: RuntimeError: <no featurepress: node7: /usr/bin/python3: No module named 'featurepress'>"
    with pytest.raises(EngineError, match=r"The worker node7 cannot import featurepress .*'/usr/bin/python3'"):
        raise_unless_lost(RuntimeError(text), 1)


def test_errors_are_restored_from_their_text() -> None:
    error = worker.unmarked(f"quoted {worker.marked(EngineError('one line'))} and more")
    assert isinstance(error, EngineError)
    assert str(error) == "one line"
    assert worker.unmarked("nothing of ours") is None
