"""Spark and Ray read the features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurepress as fp
from tests.running import draw, embed, read_rows


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    embed(str(draw(folder / "in", 80)), folder / "out", labels="parent", images_per_part=20, precision="float32")
    return folder / "out"


def test_spark_reads_the_rows(spark: Any, out: Path) -> None:
    df = fp.open_features(out).to_spark(spark)
    assert df.columns == ["uri", "label", "width", "height", "sha256", "features"]
    assert df.schema["features"].dataType.simpleString() == "array<float>"
    rows, ours = df.collect(), read_rows(out)
    assert {row["uri"] for row in rows} == ours.keys()
    for row in rows:
        assert np.float32(row["features"]).tobytes() == ours[row["uri"]].features
        assert (row["label"], row["width"]) == (ours[row["uri"]].label, ours[row["uri"]].width)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray, from its own settings
def test_ray_reads_the_rows(ray_here: None, out: Path) -> None:
    rows, ours = fp.open_features(out).to_ray().take_all(), read_rows(out)
    assert {row["uri"] for row in rows} == ours.keys()
    for row in rows:
        assert np.float32(row["features"]).tobytes() == ours[row["uri"]].features
