"""Features as a column of a DataFrame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurepress.errors import SettingError
from featurepress.spark import featurize
from tests.running import draw, embed, read_rows


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("pictures"), 60, broken=True)


@pytest.fixture(scope="module")
def embedded(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the features of the images from a run, by path."""
    out = tmp_path_factory.mktemp("features") / "out"
    embed(str(pictures), out, precision="float32", max_failures=1.0)
    return read_rows(out)


@pytest.fixture
def frame(spark: Any, pictures: Path) -> Any:
    reader = spark.read.format("binaryFile").option("recursiveFileLookup", "true")
    return reader.option("pathGlobFilter", "*.jpg").load(str(pictures))


def by_path(df: Any, column: str = "path") -> dict[str, Any]:
    return {row[column].removeprefix("file:"): row for row in df.collect()}


def test_bytes_give_the_features_of_a_run_and_bad_rows_a_reason(frame: Any, embedded: dict[str, Any]) -> None:
    before = frame.columns
    df = featurize(frame, input_column="content", model="embedded")
    assert frame.columns == before
    assert df.columns == [*before, "features", "features_error"]
    assert df.schema["features"].dataType.simpleString() == "array<float>"
    rows = by_path(df)
    assert len(rows) == 62  # Spark leaves out the empty file
    good = {path: row for path, row in rows.items() if row["features_error"] is None}
    assert good.keys() == embedded.keys()
    for path, row in good.items():
        assert np.float32(row["features"]).tobytes() == embedded[path].features
        assert row["length"] == Path(path).stat().st_size
    bad = {Path(path).name: row for path, row in rows.items() if row["features_error"] is not None}
    assert {name: row["features_error"] for name, row in bad.items()} == {
        "list.jpg": "decode: not an image",
        "truncated.jpg": bad["truncated.jpg"]["features_error"],
    }
    assert all(row["features"] is None for row in bad.values())


def test_paths_are_read(frame: Any, embedded: dict[str, Any]) -> None:
    df = featurize(frame.select("path"), input_column="path", output_column="v", model="embedded")
    rows = by_path(df)
    assert {path for path, row in rows.items() if row["v"] is not None} == embedded.keys()
    for path, row in rows.items():
        if row["v"] is not None:
            assert np.float32(row["v"]).tobytes() == embedded[path].features


def test_images_of_spark_are_read_as_bgr(spark: Any, pictures: Path) -> None:
    """Both decode the same PNG to the same levels, so the features are equal."""
    from PIL import Image

    folder = pictures.parent / "png"
    folder.mkdir(exist_ok=True)
    for i, path in enumerate(sorted(pictures.rglob("*.jpg"))[:5]):
        if path.stat().st_size > 400:
            Image.open(path).save(folder / f"{i}.png")
    images = spark.read.format("image").load(str(folder))
    one = {
        row["image"]["origin"].removeprefix("file://"): row["features"]
        for row in featurize(images, input_column="image", model="embedded").collect()
    }
    files = spark.read.format("binaryFile").load(str(folder))
    rows = by_path(featurize(files, input_column="content", model="embedded"))
    other = {path: row["features"] for path, row in rows.items()}
    assert len(one) >= 3
    assert one == other


def test_vectors_can_be_used_by_estimators_of_spark(frame: Any, spark: Any) -> None:
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import PCA, StringIndexer
    from pyspark.sql import functions

    df = featurize(frame, input_column="content", model="embedded", as_vector=True)
    df = df.withColumn("fruit", functions.element_at(functions.split("path", "/"), -2))
    assert df.where("features is null").count() == 2
    good = df.where("features is not null").cache()
    good = StringIndexer(inputCol="fruit", outputCol="label").fit(good).transform(good)
    reduced = PCA(k=8, inputCol="features", outputCol="few").fit(good).transform(good)
    model = LogisticRegression(featuresCol="few", labelCol="label", maxIter=20).fit(reduced)
    found = model.transform(reduced).select("label", "prediction").collect()
    assert len(found) == 60
    assert sum(row["label"] == row["prediction"] for row in found) > 40
    good.unpersist()


def test_invalid_arguments_are_refused_at_once(frame: Any) -> None:
    with pytest.raises(SettingError, match=r"'contents'.*'content'"):
        featurize(frame, input_column="contents", model="embedded")
    with pytest.raises(SettingError, match=r"'length'.*bigint"):
        featurize(frame, input_column="length", model="embedded")
    with pytest.raises(SettingError, match="'path'"):
        featurize(frame, input_column="content", output_column="path", model="embedded")
    with pytest.raises(SettingError, match=r"'precision'.*'bfloat16'"):
        featurize(frame, input_column="content", model="embedded", precision="auto")  # type: ignore[arg-type]
