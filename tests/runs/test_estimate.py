"""Estimates: what a run would do, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurepress.engines import LocalEngine
from featurepress.errors import DestinationError, PlanMismatchError, SettingError
from tests.running import draw, embed, estimate, snapshot
from tests.runs.test_verbs import embed_into


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw(tmp_path / "in", 20)


def test_an_estimate_agrees_with_the_run_and_writes_nothing(tmp_path: Path) -> None:
    source = draw(tmp_path / "in", 20, broken=True)
    (source / "notes.txt").write_text("no image")
    (source / ".hidden.jpg").write_text("no image")
    options: dict[str, Any] = {"images_per_part": 4, "pooling": "max"}
    before = snapshot(tmp_path)
    found = estimate(source, tmp_path / "out", **options)
    assert snapshot(tmp_path) == before
    features = embed(source, tmp_path / "out", workers=1, precision="float32", max_failures=1.0, **options)
    summary = features.summary
    assert found.images == summary.listed == 23
    assert found.parts == summary.parts == 6
    assert found.skipped == summary.skipped == {"no image suffix": 1, "dot file": 1}
    assert found.n_features == features.n_features
    assert found.bytes == sum(path.stat().st_size for path in source.rglob("*.jpg") if path.name[0] != ".")
    assert summary.bytes_written <= found.expected_bytes + 6 * 20_000


@pytest.mark.parametrize("options", [{"images_per_part": 1}, {"format": "csv", "parts": 3, "pooling": "flatten"}])
def test_an_estimate_is_never_too_small(tmp_path: Path, options: dict[str, Any]) -> None:
    source, out = draw(tmp_path / "in", 30), tmp_path / "out"
    expected = estimate(source, out, **options).expected_bytes
    with LocalEngine(1) as engine:
        embed(source, out, engine=engine, precision="float32", **options)
    written = sum(path.stat().st_size for kind in ("features", "csv") for path in (out / kind).glob("*"))
    assert written <= expected < 5 * written


def test_an_estimate_refuses_what_the_run_would_refuse(tmp_path: Path, pictures: Path) -> None:
    embed_into(tmp_path / "out", pictures)
    with pytest.raises(PlanMismatchError):
        estimate(pictures, tmp_path / "out", pooling="max")
    with pytest.raises(DestinationError):
        estimate(pictures, tmp_path / ("x" * 300))
    with pytest.raises(SettingError, match="memory_bytes"):
        estimate(pictures, tmp_path / "other", memory_bytes=1)


def test_an_estimate_honours_the_limit(tmp_path: Path, pictures: Path) -> None:
    found = estimate(pictures, limit=7, images_per_part=3)
    assert (found.images, found.parts) == (7, 3)
