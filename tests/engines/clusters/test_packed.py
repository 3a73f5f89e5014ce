"""A packed environment, unpacked by Spark on workers without featurepress."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.engines.clusters.conftest import ROOT, require_spark
from tests.engines.clusters.runs import descendants, end_all
from tests.running import draw, read_rows

SCRIPT = """
import sys, featurepress as fp
conf = {
    "spark.archives": sys.argv[3] + "#environment",
    "spark.local.dir": sys.argv[4],
    "spark.executorEnv.FEATUREPRESS_HOME": sys.argv[4] + "/home",
}
with fp.engines.Spark(master="local-cluster[1,1,1024]", conf=conf) as engine:
    print(list(engine.session.range(1).mapInArrow(where, "python string").collect())[0].python)
    fp.embed(sys.argv[1], sys.argv[2], engine=engine, model="embedded", precision="float32")
"""
WHERE = """
def where(batches):
    import sys, pyarrow, featurepress
    for batch in batches:
        text = sys.executable + " " + featurepress.__file__
        yield pyarrow.RecordBatch.from_arrays([pyarrow.array([text])], ["python"])
"""


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Build an environment as in docs/how-to/spark.md, with this featurepress, and pack it."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, str(ROOT), "venv-pack", "setuptools<81", "pandas>=2.2,<3"], check=True, timeout=600)
    archive = tmp_path / "environment.tar.gz"
    pack = [
        python,
        "-W",
        "ignore",
        "-m",
        "venv_pack",
        "-p",
        str(folder),
        "-o",
        str(archive),
        "--compress-level",
        "1",
        "-q",
    ]
    subprocess.run(pack, check=True, timeout=600, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shutil.rmtree(folder)
    return archive


@pytest.mark.long
def test_workers_without_packages_use_a_packed_environment(packed: Path, tmp_path: Path, loopback: None) -> None:
    require_spark()
    pictures = draw(tmp_path / "in", 40)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYSPARK_PYTHON": "./environment/bin/python", "PYSPARK_DRIVER_PYTHON": sys.executable}
    environment |= {"SPARK_WORKER_DIR": str(scratch / "work")}
    words = [str(place) for place in (pictures, tmp_path / "out", packed, scratch)]
    with (scratch / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WHERE + SCRIPT, *words],
            env=environment, cwd=scratch, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=300)
        finally:
            end_all(descendants(process.pid))
            process.kill()
            process.wait()
    assert process.returncode == 0, (scratch / "stderr").read_text()[-2000:]
    python, module = said.splitlines()[-1].split()
    assert "environment" in python
    assert "environment/lib" in module
    assert not module.startswith(str(ROOT / "src"))
    unpacked = Path(module.partition("/environment/")[0])
    assert unpacked.parent.name.startswith("app-")
    shutil.rmtree(unpacked.parent)  # below pyspark itself, where Spark leaves it
    assert len(read_rows(tmp_path / "out")) == 40
