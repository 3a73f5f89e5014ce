"""Labels are predicted on a cluster as on one machine, from images and from features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurepress as fp
from featurepress.analysis import Classifier
from featurepress.learning.model import TrainedModel
from tests.running import draw, embed


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    draw(folder / "in", 60)
    features = embed(
        str(folder / "in"), folder / "features", labels="parent", images_per_part=16, precision="float32"
    )
    assert features.labels is not None
    classifier = Classifier(regularization=1e-3).fit(features.to_numpy(), features.labels)
    TrainedModel(
        classifier,
        features.plan.backbone,
        embed_settings={"model": "embedded", "precision": "float32", "pooling": "avg"},
    ).save(folder / "model")
    return folder


@pytest.mark.parametrize("kind", ["in", "features"])
def test_a_cluster_predicts_like_one_machine(engine: Any, work: Path, kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"top_k": 2, **({"images_per_part": 16} if kind == "in" else {})}
    sources = str(work / kind)
    here = fp.predict(work / "model", sources, tmp_path / "here", **options)
    there = fp.predict(work / "model", sources, tmp_path / "there", engine=engine, **options)
    one, other = here.to_table(), there.to_table()
    assert len(one) == 60
    assert one.select(["uri", "label", "label_2"]).equals(other.select(["uri", "label", "label_2"]))
    for name in ("probability", "probability_2"):
        np.testing.assert_allclose(one[name].to_numpy(), other[name].to_numpy(), atol=1e-6)
    assert here.counts == there.counts


def test_a_cluster_predicts_tiles_like_one_machine(engine: Any, work: Path, tmp_path: Path) -> None:
    sources = str(work / "in" / "Kiwi")
    options: dict[str, Any] = {"tiles": True, "images_per_part": 2, "annotate": True}
    here = fp.predict(work / "model", sources, tmp_path / "here", **options)
    there = fp.predict(work / "model", sources, tmp_path / "there", engine=engine, **options)
    one, other = here.to_table(), there.to_table()
    columns = ["uri", "label", "left", "top", "right", "bottom", "kind"]
    assert one.select(columns).equals(other.select(columns))
    names = [sorted(path.name for path in (tmp_path / out / "annotated").iterdir()) for out in ("here", "there")]
    assert names[0] == names[1]
    assert len(names[0]) == here.summary["images"]
