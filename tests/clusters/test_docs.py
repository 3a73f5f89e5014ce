"""The examples of docs/spark.md and docs/ray.md run, in order, on an orchard."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from featurepress.demo import draw_orchard

DOCS = Path(__file__).parents[2] / "docs"


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
    exec(python_of("spark.md"), {"spark": spark})
    assert "vector_error" in capfd.readouterr().out
    assert (orchard / "spark-features" / "manifest.json").is_file()


@pytest.mark.filterwarnings("ignore:.use_push_based_shuffle. is deprecated:DeprecationWarning")  # by Ray itself
def test_the_examples_for_ray_run(ray_here: None, orchard: Path) -> None:
    exec(python_of("ray.md"), {})
    assert (orchard / "ray-features" / "manifest.json").is_file()
