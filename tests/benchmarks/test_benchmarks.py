"""The limits that the benchmarks compare with are measured, not made up: each does its work on real files."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.limits import decode_limit, decode_some, infer_speed, write_limit
from featurepress.demo.orchard import draw_images
from featurepress.models.catalog import find_card
from featurepress.models.store import model_file


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(path) for path in draw_images(tmp_path_factory.mktemp("pictures"), 60)]


def test_decoding_alone_is_measured_in_threads_and_processes(pictures: list[str]) -> None:
    assert 10 < decode_limit(pictures, 2, area=True) < 1e6


def test_decoding_alone_really_decodes(tmp_path: Path) -> None:
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    with pytest.raises(AssertionError):
        decode_some([str(tmp_path / "no.jpg")], area=False)


@pytest.mark.parametrize("pooling", ["avg", "flatten"])
def test_inference_alone_is_measured(pooling: str) -> None:
    card = find_card("embedded")
    model = model_file(card.file, card.weights_sha256)
    assert 10 < infer_speed(model, pooling, "float32", streams=1, batch=4, n_cores=1, seconds=0.05) < 1e6


def test_writing_alone_leaves_nothing_behind(tmp_path: Path) -> None:
    assert write_limit(3_000_001, 100, tmp_path) > 0
    assert list(tmp_path.iterdir()) == []
