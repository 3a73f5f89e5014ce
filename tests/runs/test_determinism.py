"""The features of an image depend on nothing but the image: not in a single bit."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import featurepress as fp
from featurepress.engines import LocalEngine
from featurepress.runs.verbs import run_plan
from featurepress.testing import InlineEngine
from tests.running import assert_same_result, draft, draw, embed, read_json, read_rows

PRECISIONS = ("float32", "auto")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("in"), 70, image_size_px=40, broken=True)


def features_of(out: Path) -> dict[str, bytes]:
    return {Path(uri).name: row.features for uri, row in read_rows(out).items()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_batch_mates_position_and_part_size_change_no_bit(tmp_path: Path, source: Path, precision: str) -> None:
    shuffled, rng = tmp_path / "shuffled", random.Random(0)
    shuffled.mkdir()
    paths = rng.sample(sorted(source.rglob("0*.jpg")), 23)
    for i, path in enumerate(paths):
        shutil.copy(path, shuffled / f"{i:02d}.jpg")
    with LocalEngine(2) as engine:
        embed(source, tmp_path / "whole", precision=precision, engine=engine)
        expected = features_of(tmp_path / "whole")
        assert len(set(expected.values())) == 70
        precision = read_json(tmp_path / "whole" / "plan" / "plan.json")["precision"]
        for size in (1, 5, 33):
            out = tmp_path / str(size)
            embed(source, out, precision=precision, engine=engine, images_per_part=size, limit=40)
            found = features_of(out)
            assert len(found) >= 37
            assert found == {name: expected[name] for name in found}
        embed(shuffled, tmp_path / "mixed", precision=precision, engine=engine)
    found = features_of(tmp_path / "mixed")
    assert found == {f"{i:02d}.jpg": expected[path.name] for i, path in enumerate(paths)}


@pytest.fixture(scope="module")
def one_worker(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "out"
    embed(source, out, precision="float32", workers=1, images_per_part=6, labels="parent")
    return out


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_files(
    tmp_path: Path, source: Path, one_worker: Path, workers: int
) -> None:
    out = tmp_path / "out"
    embed(source, out, precision="float32", workers=workers, images_per_part=6, labels="parent")
    assert_same_result(out, one_worker)


def test_image_by_image_gives_the_same_files(tmp_path: Path, source: Path, one_worker: Path) -> None:
    """As if two processes had died at shards 0 and 4."""
    out = tmp_path / "out"
    embed(source, out, precision="float32", workers=1, images_per_part=6, labels="parent")
    for shard in (0, 4):
        (out / "features" / f"part-{shard:08d}.parquet").unlink()
        (out / "receipts" / f"part-{shard:08d}.json").unlink()
        for i in range(2):
            (out / "attempts" / f"part-{shard:08d}-{i}").write_text("{}")
    (out / "manifest.json").unlink()
    fp.resume(out, workers=2)
    assert_same_result(out, one_worker)


def test_the_engine_changes_no_file(tmp_path: Path, source: Path) -> None:
    """With the fake backbone in this process and in others: names, rows and failures are the same."""
    outs = [tmp_path / "here", tmp_path / "there"]
    run_plan(draft(outs[0], source, images_per_part=8, labels="parent"), engine=InlineEngine())
    with LocalEngine(2) as engine:
        run_plan(draft(outs[1], source, images_per_part=8, labels="parent"), engine=engine)
    assert_same_result(outs[1], outs[0])
