"""Where a command runs: what cannot be is one line and exit code 2, and nothing is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import draw


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "dask"], "must be 'local', 'spark' or 'ray'. Got 'dask'"),
        (["--master", "local[2]"], "--master is for --engine spark only. Got --engine local."),
        (["--engine", "ray", "--spark-conf", "a=b"], "--spark-conf is for --engine spark only. Got --engine ray."),
        (["--engine", "spark", "--spark-conf", "a"], "A setting of Spark (--spark-conf) must be name=value"),
        (["--engine", "spark", "--master", "spark://127.0.0.1:1"], ""),  # silent, or there is no pyspark
        (["--engine", "ray", "--address", "127.0.0.1:1"], ""),
    ],
)
def test_an_engine_that_cannot_be_is_one_line(tmp_path: Path, options: list[str], words: str) -> None:
    draw(tmp_path / "in", 5)
    command = [sys.executable, "-m", "featurepress", "embed", "in", "--out", "out", "--model", "embedded", *options]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 2, run.stderr
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1, run.stderr
    assert words in lines[0]
    if not words:
        assert "does not answer (127.0.0.1:1" in lines[0] or "pip install 'featurepress[" in lines[0]
    assert not (tmp_path / "out").exists()
