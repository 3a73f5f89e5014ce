"""Workers get the model from the destination: they download nothing, and load it once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurepress as fp
from featurepress import engines
from featurepress.errors import FeaturepressError, ModelError
from featurepress.models import catalog, store
from featurepress.models.verbs import add
from featurepress.spark import featurize
from featurepress.storage import FolderStorage
from tests.contracts import tasks
from tests.engines.clusters.conftest import require_spark
from tests.running import draw, read_rows


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a model that only this process's home has."""
    monkeypatch.setenv("FEATUREPRESS_HOME", str(tmp_path / "home"))
    onnx = tmp_path / "own.onnx"
    shutil.copy(store.BUNDLED / "embedded-v1.onnx", onnx)
    add(str(onnx), "own")
    return "own"


def test_workers_without_the_model_copy_it_from_the_destination(
    model: str, tmp_path: Path, loopback: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_spark()
    pictures = draw(tmp_path / "in", 60)
    here = fp.embed(str(pictures), tmp_path / "here", model=model, precision="float32")
    script = (
        "import os, sys, featurepress as fp\n"
        "conf = {'spark.executorEnv.FEATUREPRESS_HOME': sys.argv[3], 'spark.local.dir': sys.argv[4]}\n"
        "with fp.engines.Spark(master='local-cluster[1,1,1024]', conf=conf) as engine:\n"
        "    fp.embed(sys.argv[1], sys.argv[2], engine=engine, model='own', precision='float32')\n"
    )
    import os
    import subprocess
    import sys

    words = [str(pictures), str(tmp_path / "out"), str(tmp_path / "empty"), str(tmp_path)]
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_WORKER_DIR": str(tmp_path / "work")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *words],
        env=environment, capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    key = here.plan.backbone.file
    assert (tmp_path / "empty" / "models" / key / "card.json").is_file()
    assert sorted(path.name for path in (tmp_path / "out" / "plan" / "models" / key).iterdir()) == [
        "card.json", "model.bin", "model.xml",
    ]  # fmt: skip
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "here")


def test_a_model_is_loaded_once_per_worker(spark: Any, tmp_path: Path) -> None:
    """In two runs with many jobs; the fake backbone counts the loads in its process."""
    from featurepress.runs.verbs import run_plan
    from tests.running import draft

    engine = engines.Spark(spark)
    pictures = draw(tmp_path / "in", 60)
    for number in range(2):
        run_plan(draft(tmp_path / f"out{number}", pictures, images_per_part=2), engine=engine)
    plan = draft(tmp_path / "out1", pictures)
    counted = list(engine.run(tasks.Unplanned(tasks.loads), plan, range(8)))
    assert len(counted) == 8
    loads = dict(counted)
    assert 1 <= len(loads) <= 2
    assert set(loads.values()) == {1}


def test_a_refused_run_leaves_no_model_behind(model: str, spark: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jpg").write_text("no picture")
    with pytest.raises(FeaturepressError, match="failed, so nothing was written"):
        fp.embed(str(tmp_path / "in"), tmp_path / "out", engine=engines.Spark(spark), model=model)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    draw(tmp_path / "in", 5)
    assert fp.embed(
        str(tmp_path / "in"), tmp_path / "out", engine=engines.Spark(spark), model=model, max_failures=1.0
    ).is_complete


def test_featurize_sends_a_model_that_the_workers_do_not_have(model: str, spark: Any, tmp_path: Path) -> None:
    """The workers' home was set at the start of the session; this model is not in it."""
    pictures = draw(tmp_path / "in", 20)
    here = fp.embed(str(pictures), tmp_path / "here", model=model, precision="float32")
    files = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(str(pictures))
    rows = featurize(files, input_column="content", model=model).collect()
    ours = read_rows(Path(here.location))
    assert len(rows) == len(ours) == 20
    for row in rows:
        assert np.float32(row["features"]).tobytes() == ours[row["path"].removeprefix("file:")].features


def test_a_model_that_was_changed_at_the_destination_is_refused(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = catalog.find_card("own").file
    storage = FolderStorage(str(tmp_path / "out"))
    storage.prepare()
    store.put_into(storage, key)
    store.put_into(storage, key)
    (tmp_path / "out" / "plan" / "models" / key / "model.bin").write_bytes(b"other")
    monkeypatch.setenv("FEATUREPRESS_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(ModelError, match=r"has the hash .* Remove '.*plan/models/.*' and resume"):
        store.take_from(storage, key)
    assert not (tmp_path / "elsewhere" / "models" / key).exists()
    store.remove_from(storage, key)
    store.take_from(storage, key)  # there is nothing to take
