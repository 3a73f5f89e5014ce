"""The example notebook runs, cell by cell, on an orchard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featurepress.demo.orchard import draw_orchard

NOTEBOOK = Path(__file__).parents[3] / "examples" / "fruits_on_spark.ipynb"


def test_fruits_on_spark(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    draw_orchard(tmp_path / "orchard")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRUITS_MODEL", "embedded")
    monkeypatch.setenv("FRUITS_OUT", "fruits")
    names: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert cell.get("outputs", []) == []
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert "accuracy: " in capfd.readouterr().out
    assert names["features"].n_features == 11_520
    assert names["features"].summary.embedded > 100
    assert len(list((tmp_path / "fruits" / "csv").glob("*.csv"))) == 5
    assert names["accuracy"] > 0.5


def test_every_heading_is_in_both_languages() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    headings = [cell["source"][0] for cell in cells if cell["cell_type"] == "markdown"]
    assert len(headings) == 7
    assert all(" · " in heading for heading in headings)
