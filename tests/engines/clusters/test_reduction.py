"""A set is reduced on a cluster as it is on one machine."""

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
def test_a_cluster_reduces_as_one_machine_does(
    engine: Any, features: Any, solver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"n_components": 6, "solver": solver}
    here = fp.reduce(features, tmp_path / "here", **options)
    (Path(features.location) / MOMENTS).unlink(missing_ok=True)
    monkeypatch.setattr(passes, "PARTS_A_TASK", 4)  # so that there is something to merge
    there = fp.reduce(features, tmp_path / "there", engine=engine, **options)
    np.testing.assert_allclose(there.explained_variance_, here.explained_variance_, rtol=1e-5)
    one, other = (fp.open_features(tmp_path / name) for name in ("here", "there"))
    assert one.to_table(["uri", "label", "sha256"]).equals(other.to_table(["uri", "label", "sha256"]))
    np.testing.assert_allclose(one.to_numpy(), other.to_numpy(), atol=1e-3)
