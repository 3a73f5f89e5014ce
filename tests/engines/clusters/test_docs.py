"""The examples of docs/how-to/spark.md and docs/how-to/ray.md run, in order, on an orchard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurepress.demo.orchard import draw_orchard
from tests.documentation import ROOT, python_of

DOCS = ROOT / "docs" / "how-to"


@pytest.fixture
def orchard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draw_orchard(tmp_path / "orchard")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_for_spark_run(spark: Any, orchard: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Spark itself reads relative paths from where it was started.
    exec(python_of(DOCS / "spark.md").replace('load("orchard', f'load("{orchard}/orchard'), {"spark": spark})
    assert "vector_error" in capfd.readouterr().out
    assert (orchard / "spark-features" / "manifest.json").is_file()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray, from its own settings
def test_the_examples_for_ray_run(ray_here: None, orchard: Path) -> None:
    exec(python_of(DOCS / "ray.md"), {})
    assert (orchard / "ray-features" / "manifest.json").is_file()
