"""The examples of docs/spark.md and docs/ray.md run, in order, on an orchard."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from featurepress.demo.orchard import draw_orchard

DOCS = Path(__file__).parents[3] / "docs"


def python_of(name: str) -> str:
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (DOCS / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert blocks
    return "\n".join(blocks)


@pytest.fixture
def orchard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draw_orchard(tmp_path / "orchard")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_for_spark_run(spark: Any, orchard: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Spark itself reads relative paths from where it was started.
    exec(python_of("spark.md").replace('load("orchard', f'load("{orchard}/orchard'), {"spark": spark})
    assert "vector_error" in capfd.readouterr().out
    assert (orchard / "spark-features" / "manifest.json").is_file()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray, from its own settings
def test_the_examples_for_ray_run(ray_here: None, orchard: Path) -> None:
    exec(python_of("ray.md"), {})
    assert (orchard / "ray-features" / "manifest.json").is_file()
