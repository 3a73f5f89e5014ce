"""Workers without Python, packages or memory: an error of one line that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.engines.clusters.conftest import require_spark
from tests.engines.clusters.runs import TIMEOUT_SECONDS
from tests.running import draw


def refusal(folder: Path, python: str, *settings: str) -> tuple[int, str]:
    """Run the command on a cluster whose workers have another Python; return the exit code and the line."""
    draw(folder / "in", 20)
    command = [sys.executable, "-m", "featurepress", "embed", "in", "--out", "out", "--model", "embedded"]
    command += ["--engine", "spark", "--master", "local-cluster[1,1,1024]"]
    for setting in (f"spark.local.dir={folder}", *settings):
        command += ["--spark-conf", setting]
    environment = {**os.environ, "PYSPARK_PYTHON": python, "SPARK_WORKER_DIR": str(folder / "work")}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if "incubator" not in line]  # which the JVM says
    assert len(lines) == 1, done.stderr[-3000:]
    assert not (folder / "out").exists()
    return done.returncode, lines[0]


@pytest.mark.usefixtures("loopback")
def test_a_python_without_the_packages(tmp_path: Path) -> None:
    require_spark()
    venv.create(tmp_path / "bare", with_pip=False)
    code, line = refusal(tmp_path, str(tmp_path / "bare" / "bin" / "python"))
    assert (code, "No module named 'pyarrow'" in line, "spark.archives" in line) == (2, True, True), line


@pytest.mark.usefixtures("loopback")
def test_no_python_at_all(tmp_path: Path) -> None:
    require_spark()
    code, line = refusal(tmp_path, "/nowhere/python")
    assert (code, "has no Python at '/nowhere/python'" in line, "PYSPARK_PYTHON" in line) == (2, True, True), line


@pytest.mark.usefixtures("loopback")
def test_too_little_memory(tmp_path: Path) -> None:
    """Spark can limit the address space of its Python workers."""
    require_spark()
    code, line = refusal(tmp_path, sys.executable, "spark.executor.pyspark.memory=300m")
    assert code in (1, 2), line  # 1 where a process ends without saying that it was memory
    assert "memory" in line.partition("raise spark.executor.memoryOverhead")[0]
    assert "raise spark.executor.memoryOverhead" in line
