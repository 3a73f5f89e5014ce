"""The models commands as people meet them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.models import made
from tests.running import draw, run_here


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("in"), 6)


def parsed(*arguments: str | Path) -> Any:
    """Run a models command with --json; return what it prints, which must be one document."""
    done = run_here("models", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_list_is_whole_lines(pictures: Path) -> None:
    lines = run_here("models", "list").stdout.splitlines()
    assert lines[0].split() == ["name", "parameters", "input", "features", "weights", "licence", "here", "images/s"]
    (line,) = [line for line in lines if line.startswith("mobilenet_v2 ")]
    assert line.split()[:7] == ["mobilenet_v2", "2.3", "M", "96", "(32…)", "1,280", "ImageNet"]
    assert not [line for line in lines if "…" in line.replace("…)", "")]
    found = {one["name"]: one for one in parsed("list")["models"]}
    assert len(found) >= 41
    assert found["inception_resnet_v2"]["n_features"] == 1536


def test_show_tells_what_a_model_is() -> None:
    text = run_here("models", "show", "embedded").stdout
    for word in ("embedded-v1", "706,224", "96x96", "11,520 with flatten", "Apache-2.0", "grocery", "fingerprint"):
        assert word in text
    assert parsed("show", "vgg16")["mode"] == "caffe"


def test_pull_makes_ready_and_show_and_list_say_so(embedded_weights: Path) -> None:
    options = ("--alpha", "0.5", "--weights", embedded_weights)
    done = run_here("models", "pull", "mobilenet_v2", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("ready")
    known = parsed("show", "mobilenet_v2", *options)
    assert known["status"] == "ready"
    assert known["output"] == "out_relu, 3x3x1280"


@pytest.mark.usefixtures("own_home")
def test_verify_prints_the_certificate(pictures: Path) -> None:
    done = run_here("models", "verify", "embedded", pictures)
    assert done.returncode == 0, done.stderr
    assert "float32: cosine at least 0.9999" in done.stderr
    certificate = parsed("verify", "embedded", pictures, "--limit", "2")
    assert certificate["n_images"] == 2
    assert "parity" in run_here("models", "show", "embedded").stdout


@pytest.mark.usefixtures("own_home")
def test_bench_measures_and_the_list_remembers(pictures: Path) -> None:
    done = run_here("models", "bench", "embedded", "--images", pictures)
    assert done.returncode == 0, done.stderr
    header, line, *_ = done.stdout.splitlines()
    assert "float32 images/s" in header
    assert line.startswith("embedded-v1")
    (speeds,) = parsed("bench", "embedded", "--images", pictures)["speeds"]
    assert speeds["images_per_second"]["float32"] > 0
    assert speeds["n_images"] == 6
    (listed,) = [one for one in parsed("list")["models"] if one["name"] == "embedded"]
    assert listed["images_per_second"] == pytest.approx(max(speeds["images_per_second"].values()))


def test_bench_takes_random_weights_where_none_are_here(pictures: Path) -> None:
    (speeds,) = parsed("bench", "mobilenet_v3_small", "--size", "64", "--random", "--images", pictures)["speeds"]
    assert speeds["weights"] == "random"
    assert (speeds["size"], speeds["n_features"]) == (64, 576)
    # They are no ImageNet weights, and nothing takes them for such.
    (listed,) = [one for one in parsed("list")["models"] if one["name"] == "mobilenet_v3_small"]
    assert listed["here"] == ""


@pytest.mark.usefixtures("own_home")
def test_add_takes_what_the_file_does_not_say(pictures: Path, tmp_path: Path) -> None:
    """Every option of the command reaches the preprocessing that it is named after."""
    path = made.identity(tmp_path / "model.onnx", 24)
    line = ["--size", "24", "--resize", "crop", "--interpolation", "bicubic"]
    line += ["--mean", "0.485,0.456,0.406", "--scale", "0.229,0.224,0.225"]
    card = parsed("add", path, "--name", "mine", *line)
    steps = card["preprocess"]
    assert (steps["height"], steps["resize"], steps["shortest_edge"]) == (24, "crop", 24)
    assert (steps["interpolation"], steps["dtype"], steps["channel_order"]) == ("bicubic", "uint8", "RGB")
    assert steps["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert steps["scale"] == pytest.approx([58.395, 57.12, 57.375])
    line = ["--like", "tensorflow", "--antialias", "--mode", "caffe", "--channel-order", "RGB", "--layout", "NHWC"]
    line += ["--resize", "crop", "--shortest-edge", "32", "--output", "same"]
    card = parsed("add", path, "--name", "other", *line)
    steps = card["preprocess"]
    assert (steps["shortest_edge"], steps["dtype"], steps["antialias"]) == (32, "float32", True)
    assert (steps["mean"], steps["channel_order"]) == ([103.939, 116.779, 123.68], "RGB")
    assert (card["output"], card["origin"]["layout"]) == ("same", "NHWC")
    done = run_here("embed", pictures, "--model", "mine", "--pooling", "flatten", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "mine at 24x24, flatten, 1,728 features" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "mobilnet"], ["There is no model", "did you mean", "mobilenet"]),
        (["show", "nothing.onnx"], ["There is no model file 'nothing.onnx'"]),
        (["add", "nothing.onnx", "--name", "x"], ["There is no model file"]),
        (["add", "nothing.onnx"], ["--name"]),
        (["add", "x.onnx", "--name", "x", "--mean", "1,2"], ["mean", "one number, or three", "(1.0, 2.0)"]),
        (["add", "x.onnx", "--name", "x", "--mode", "tensorflow"], ["mode", "'caffe'", "'tensorflow'"]),
        (["add", "x.onnx", "--name", "x", "--layout", "NHCW"], ["layout", "did you mean", "'NHWC'"]),
        (["pull", "mobilenet_v2", "--size", "31"], ["32 pixels", "31"]),
        (["pull", "hf:nobody"], ["hf:org/repo"]),
        (["verify", "embedded", "nowhere"], ["no such file or folder"]),
        (["verify", "embedded", "--pooling", "sum", "nowhere"], ["pooling", "avg"]),
        (["lst"], ["lst"]),
    ],
)
def test_a_bad_request_is_one_line_and_two(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    done = run_here("models", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


def test_embed_takes_a_size_and_says_which_model(embedded_weights: Path, pictures: Path, tmp_path: Path) -> None:
    options = ("--model", "mobilenet_v2", "--alpha", "0.5", "--size", "128", "--weights", embedded_weights)
    done = run_here("embed", pictures, "--out", tmp_path / "out", "--pooling", "flatten", *options)
    assert done.returncode == 0, done.stderr
    assert "mobilenet_v2 at 128x128, flatten, 20,480 features" in done.stderr
    assert "better vectors" not in done.stderr


def test_embed_with_the_embedded_model_ends_with_the_way_to_better_vectors(pictures: Path, tmp_path: Path) -> None:
    done = run_here("embed", pictures, "--out", tmp_path / "out")
    assert done.stderr.splitlines()[-1] == "better vectors: --model mobilenet_v2 (9 MB once)"


def test_what_was_assumed_of_a_file_is_said(pictures: Path, tmp_path: Path) -> None:
    path = made.identity(tmp_path / "same.onnx")
    done = run_here("embed", pictures, "--model", path, "--pooling", "flatten", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("note")]
    assert "levels from 0 to 255 are passed on unchanged" in line


@pytest.mark.usefixtures("own_home")
def test_the_certificate_is_shown_with_what_was_embedded(pictures: Path, tmp_path: Path) -> None:
    assert run_here("models", "verify", "embedded", pictures).returncode == 0
    done = run_here("embed", pictures, "--out", tmp_path / "out")
    for text in (done.stderr, run_here("info", tmp_path / "out").stdout):
        (line,) = [line for line in text.splitlines() if line.startswith("parity")]
        assert "cosine at least 0.9999" in line
