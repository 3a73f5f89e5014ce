"""A feature set is reduced on a cluster as on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurepress as fp
from featurepress.analysis import passes
from featurepress.ledger.names import MOMENTS
from tests.running import draw, embed


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("set")
    draw(folder / "in", 120)
    return embed(str(folder / "in"), folder / "out", labels="parent", images_per_part=8, precision="float32")


@pytest.mark.parametrize("solver", ["exact", "randomized"])
def test_a_cluster_and_one_machine_fit_the_same_projection(
    engine: Any, features: Any, solver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"n_components": 6, "solver": solver}
    here = fp.reduce(features, tmp_path / "here", **options)
    (Path(features.location) / MOMENTS).unlink(missing_ok=True)
    monkeypatch.setattr(passes, "PARTS_A_TASK", 4)  # several groups to merge
    there = fp.reduce(features, tmp_path / "there", engine=engine, **options)
    np.testing.assert_allclose(there.pca.explained_variance_, here.pca.explained_variance_, rtol=1e-5)
    assert here.to_table(["uri", "label", "sha256"]).equals(there.to_table(["uri", "label", "sha256"]))
    np.testing.assert_allclose(here.to_numpy(), there.to_numpy(), atol=1e-3)
