"""Models of a hub that the tests serve, used in separate processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from featurepress.models.card import ModelCard
from tests.models import made
from tests.models.made import CHANNELS, KERNEL, features, grid_of
from tests.models.origins.hub_server import Files, Hub, serving
from tests.running import TIMEOUT_SECONDS, clean_environment, draw, read_rows, run_cli

pytest.importorskip("huggingface_hub")

SIDE = 8
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CONFIG = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "size": {"height": SIDE, "width": SIDE},
}
pytestmark = pytest.mark.usefixtures("own_home")

FIND = """
import json, sys
from featurepress.errors import ModelError
from featurepress.models.catalog import find_card
try:
    print(json.dumps(find_card(sys.argv[1], size=json.loads(sys.argv[2])).to_json()))
except ModelError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving(Hub({"org/net": {"main": {**repo(tmp_path)}}})) as hub:
        yield hub


def repo(folder: Path, *, kernel: Any = KERNEL, name: str = "model.onnx", **config: Any) -> Files:
    """Return the files of a repository with the convolution, and some that must not be read."""
    path = made.channels_first(folder / "hub.onnx", sides=(SIDE, SIDE), kernel=kernel)
    return {
        name: path.read_bytes(),
        "preprocessor_config.json": json.dumps({**CONFIG, **config}).encode(),
        "README.md": b"# net",
        "modeling.py": b"raise SystemExit('executed')",
        f"{name}.py": b"raise SystemExit('executed')",
        "pytorch_model.bin": b"pickled",
        "config.json": b'{"auto_map": {"AutoModel": "modeling.Net"}}',
    }


def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
    }


def ask(hub: Hub, tmp_path: Path, name: str, size: int | None = None) -> subprocess.CompletedProcess[str]:
    """Find a card in a new process, since huggingface_hub reads its settings when it is imported."""
    return subprocess.run(
        [sys.executable, "-c", FIND, name, json.dumps(size)],
        env={**clean_environment(), **environment(hub, tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def get(hub: Hub, tmp_path: Path, name: str, size: int | None = None) -> ModelCard:
    """Return the card of a valid model."""
    done = ask(hub, tmp_path, name, size)
    assert done.returncode == 0, done.stderr
    return ModelCard.from_json(json.loads(done.stdout))


def refusal(hub: Hub, tmp_path: Path, name: str) -> str:
    """Return the error of a model that is refused."""
    done = ask(hub, tmp_path, name)
    assert (done.returncode, done.stdout) == (2, ""), done
    (line,) = done.stderr.strip().splitlines()
    assert list((tmp_path / "home").glob("models/*")) == []
    return line


def assert_embeds(card: ModelCard, kernel: Any = KERNEL) -> None:
    levels = made.pictures(3, SIDE, SIDE)
    grid = grid_of([(one / 255 - MEAN) / STD for one in levels], kernel)
    np.testing.assert_allclose(features(card, levels), grid.mean((1, 2)), rtol=1e-4, atol=1e-5)


# -- what is to be had ---------------------------------------------------------------------------------------


def test_the_model_of_a_hub_is_preprocessed_by_its_config(hub: Hub, tmp_path: Path) -> None:
    card = get(hub, tmp_path, "hf:org/net")
    assert (card.name, card.grid) == ("hf:org/net", (SIDE // 2, SIDE // 2, CHANNELS))
    steps = card.preprocess
    assert (steps.height, steps.width, steps.resize, steps.interpolation) == (SIDE, SIDE, "stretch", "bicubic")
    assert steps.dtype == "uint8"
    assert card.notes == ()
    assert_embeds(card)


def test_only_the_model_and_its_config_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    get(hub, tmp_path, "hf:org/net")
    assert hub.downloads() == {"model.onnx", "preprocessor_config.json"}
    assert not [one for one in hub.asked if ".py" in one or ".bin" in one]


def test_a_second_use_needs_no_network(tmp_path: Path) -> None:
    with serving(Hub({"org/net": {"main": repo(tmp_path)}})) as hub:
        first = get(hub, tmp_path, "hf:org/net")
    n_asked = len(hub.asked)
    second = get(hub, tmp_path, "hf:org/net")
    assert second == first
    assert len(hub.asked) == n_asked
    assert_embeds(second)


def test_a_revision_is_another_model(hub: Hub, tmp_path: Path) -> None:
    hub.repos["org/net"]["v2.0"] = repo(tmp_path, kernel=2 * KERNEL)
    cards = [get(hub, tmp_path, name) for name in ("hf:org/net", "hf:org/net@v2.0")]
    assert cards[0].backbone("avg").fingerprint != cards[1].backbone("avg").fingerprint
    assert_embeds(cards[0])
    assert_embeds(cards[1], 2 * KERNEL)


def test_a_file_is_chosen_by_its_name(hub: Hub, tmp_path: Path) -> None:
    quantised = repo(tmp_path, kernel=3 * KERNEL, name="onnx/model quantized.onnx")
    hub.repos["org/net"]["main"] |= quantised
    assert_embeds(get(hub, tmp_path, "hf:org/net"))
    assert_embeds(get(hub, tmp_path, "hf:org/net:onnx/model quantized.onnx"), 3 * KERNEL)
    assert_embeds(get(hub, tmp_path, "hf:org/net@main:model.onnx"))


def test_the_usual_file_is_used_among_several(tmp_path: Path) -> None:
    files = {
        **repo(tmp_path, name="onnx/model.onnx"),
        **repo(tmp_path, kernel=2 * KERNEL, name="onnx/model_fp16.onnx"),
    }
    with serving(Hub({"org/net": {"main": files}})) as hub:
        assert_embeds(get(hub, tmp_path, "hf:org/net"))
    assert hub.downloads() == {"onnx/model.onnx", "preprocessor_config.json"}


def test_the_size_can_be_set(hub: Hub, tmp_path: Path) -> None:
    card = get(hub, tmp_path, "hf:org/net", size=12)
    assert (card.preprocess.height, card.grid) == (12, (6, 6, CHANNELS))
    assert card.file != get(hub, tmp_path, "hf:org/net").file


@pytest.mark.parametrize("data", ["model.onnx_data", "kernel.bin"])
def test_weights_in_another_file_are_downloaded(tmp_path: Path, data: str) -> None:
    files = repo(tmp_path)
    model = onnx.load_model_from_string(files["model.onnx"])
    (kernel,) = (one for one in model.graph.initializer if one.name == "kernel")
    files[f"onnx/{data}"] = kernel.raw_data
    external_data_helper.set_external_data(kernel, data)
    kernel.ClearField("raw_data")
    files["onnx/model.onnx"] = model.SerializeToString()
    del files["model.onnx"]
    with serving(Hub({"org/net": {"main": files}})) as hub:
        assert_embeds(get(hub, tmp_path, "hf:org/net"))
    assert hub.downloads() == {"onnx/model.onnx", f"onnx/{data}", "preprocessor_config.json"}


def test_the_command_pulls_a_model_and_embeds_without_network(tmp_path: Path) -> None:
    draw(tmp_path / "in", 3)
    with serving(Hub({"org/net": {"main": repo(tmp_path)}})) as hub:
        pulled = run_cli("models", "pull", "hf:org/net", environment=environment(hub, tmp_path))
    assert pulled.returncode == 0, pulled.stderr
    done = run_cli(
        *("embed", tmp_path / "in", "-o", tmp_path / "out", "--model", "hf:org/net", "--pooling", "max"),
        environment=environment(hub, tmp_path),
    )
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 3
    assert {len(row.features) for row in rows.values()} == {4 * CHANNELS}
    (line,) = [line for line in run_cli("models", "list").stdout.splitlines() if line.startswith("hf:org/net ")]
    assert "hub" in line.split()


# -- what is not ---------------------------------------------------------------------------------------------


def test_several_files_are_listed_to_choose_from(hub: Hub, tmp_path: Path) -> None:
    files = hub.repos["org/net"]["main"]
    files["b.onnx"] = files["a.onnx"] = files.pop("model.onnx")
    said = refusal(hub, tmp_path, "hf:org/net")
    assert "has several ONNX files; choose one, as in hf:org/net:" in said
    assert "a.onnx" in said
    assert "b.onnx" in said
    assert hub.downloads() == set()


def test_a_missing_file_lists_the_existing_ones(hub: Hub, tmp_path: Path) -> None:
    said = refusal(hub, tmp_path, "hf:org/net:onnx/model.onnx")
    assert said == "The hub's org/net has no 'onnx/model.onnx'. Its ONNX files: model.onnx."
    assert "has no 'modeling.py'" in refusal(hub, tmp_path, "hf:org/net:modeling.py")
    assert hub.downloads() == set()


def test_a_repository_without_onnx_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.repos["org/net"]["main"]["model.onnx"]
    assert "has no ONNX file. Export it to ONNX" in refusal(hub, tmp_path, "hf:org/net")


def test_a_repository_without_a_config_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.repos["org/net"]["main"]["preprocessor_config.json"]
    said = refusal(hub, tmp_path, "hf:org/net")
    assert "has no preprocessor_config.json" in said
    assert "featurepress models add FILE" in said


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b'"size"', b"\xff\xfe"])
def test_an_invalid_config_is_refused(hub: Hub, tmp_path: Path, config: bytes) -> None:
    hub.repos["org/net"]["main"]["preprocessor_config.json"] = config
    assert "hf:org/net" in refusal(hub, tmp_path, "hf:org/net")


def test_an_unknown_repository_or_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    said = refusal(hub, tmp_path, "hf:org/none")
    assert said.startswith("The hub's model 'hf:org/none' cannot be downloaded: there is no such repository")
    assert "no such revision" in refusal(hub, tmp_path, "hf:org/net@v9")


def test_a_missing_connection_is_reported_in_one_line(tmp_path: Path) -> None:
    with serving(Hub({})) as hub:
        pass
    assert "no connection" in refusal(hub, tmp_path, "hf:org/net")


def test_weights_outside_the_repository_are_not_requested(hub: Hub, tmp_path: Path) -> None:
    files = hub.repos["org/net"]["main"]
    model = onnx.load_model_from_string(files["model.onnx"])
    (kernel,) = (one for one in model.graph.initializer if one.name == "kernel")
    external_data_helper.set_external_data(kernel, "../../../secret")
    kernel.ClearField("raw_data")
    files["model.onnx"] = model.SerializeToString()
    assert "'../../../secret', outside its folder: refused" in refusal(hub, tmp_path, "hf:org/net")
    assert not [one for one in hub.asked if "secret" in one]


def test_an_invalid_name_makes_no_request(hub: Hub, tmp_path: Path) -> None:
    for name in ("hf:", "hf:net", "hf:org/net:../up.onnx", "hf:org/net/more", "hf:org/net@"):
        assert "must be written hf:org/repo" in refusal(hub, tmp_path, name)
    assert hub.asked == []


def test_a_broken_download_is_repeated(hub: Hub, tmp_path: Path) -> None:
    whole = hub.repos["org/net"]["main"]["model.onnx"]
    hub.repos["org/net"]["main"]["model.onnx"] = whole[:100]
    with contextlib.suppress(AssertionError):
        refusal(hub, tmp_path, "hf:org/net")
    hub.repos["org/net"]["main"]["model.onnx"] = whole
    assert_embeds(get(hub, tmp_path, "hf:org/net"))
    assert os.environ["FEATUREPRESS_HOME"] == str(tmp_path / "home")
