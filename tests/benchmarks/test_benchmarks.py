"""The benchmarks start, and their limits and programs work on real files."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

import benchmarks
from benchmarks.limits import decode_limit, decode_some, infer_speed, write_limit
from benchmarks.speed import embed
from featurepress.demo.orchard import draw_images
from featurepress.models.catalog import find_card
from featurepress.models.store import model_file


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(path) for path in draw_images(tmp_path_factory.mktemp("images"), 60)]


def test_decoding_alone_is_measured_in_threads_and_processes(images: list[str]) -> None:
    assert 10 < decode_limit(images, 2, area=True) < 1e6


def test_the_limit_of_decoding_decodes(tmp_path: Path) -> None:
    (tmp_path / "no.jpg").write_bytes(b"no image")
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


def test_a_run_in_a_fresh_process_is_measured(images: list[str], tmp_path: Path) -> None:
    run = embed(
        tmp_path, Path(images[0]).parents[1], pooling="avg", precision="float32", workers=1, images_per_part=20
    )
    assert (run["images"], run["failed"]) == (60, 0)
    assert 0 < run["whole"] < run["embedding"] < 1e6


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(benchmarks.__path__)])
def test_every_benchmark_starts(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    if name == "limits":  # has no command
        return
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 0
    assert f"python -m benchmarks.{name}" in " ".join(capsys.readouterr().out.split())
