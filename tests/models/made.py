"""Small models of the tests, and their expected features in NumPy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from featurepress.embedding.inference import embed_images
from featurepress.errors import ModelError
from featurepress.models.card import ModelCard
from featurepress.models.catalog import find_card
from featurepress.models.origins.files import load_card, outputs
from featurepress.models.store import home
from featurepress.settings import Choices

Array = npt.NDArray[Any]
CHANNELS = 5
HEIGHT, WIDTH = 8, 12  # of the grids half as much

_rng = np.random.default_rng(11)
KERNEL = _rng.normal(0, 0.02, (2, 2, 3, CHANNELS)).astype(np.float32)  # as keras has it: (h, w, colours, channels)
BIAS = _rng.normal(0, 0.5, CHANNELS).astype(np.float32)
HEAD = _rng.normal(0, 1, (CHANNELS, 7)).astype(np.float32)


def pictures(count: int = 11, height: int = HEIGHT, width: int = WIDTH) -> list[Array]:
    """Draw noise of the model's size, so that nothing is resized."""
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]


def grid_of(levels: Sequence[Array], kernel: Array = KERNEL, bias: Array = BIAS) -> Array:
    """Return relu(convolution), 2x2 with a stride of 2: (N, H/2, W/2, CHANNELS)."""
    x = np.stack(levels).astype(np.float64)
    count, height, width, _ = x.shape
    x = x.reshape(count, height // 2, 2, width // 2, 2, 3)
    return np.asarray(np.maximum(np.einsum("nhawbc,abcd->nhwd", x, kernel) + bias, 0))


# -- ONNX ----------------------------------------------------------------------------------------------------


def constant(name: str, values: Any, dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def save(
    path: Path,
    nodes: Sequence[Any],
    constants: Sequence[Any],
    shape: Sequence[int | str],
    output: tuple[str, Sequence[int | str]],
    kind: int = TensorProto.FLOAT,
) -> Path:
    """Write a model of one input, 'pixels', and one output."""
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info("pixels", kind, list(shape))],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, list(output[1]))],
        list(constants),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def conv_nodes(source: str = "pixels", kernel: Array = KERNEL, to: str = "grid") -> tuple[list[Any], list[Any]]:
    """Return the nodes and constants of relu(convolution) of a tensor (N, 3, H, W)."""
    nodes = [
        helper.make_node("Conv", [source, "kernel", "bias"], ["conv"], strides=[2, 2]),
        helper.make_node("Relu", ["conv"], [to]),
    ]
    return nodes, [constant("kernel", kernel.transpose(3, 2, 0, 1)), constant("bias", BIAS)]


def channels_first(
    path: Path,
    *,
    batch: int | str = "N",
    sides: Sequence[int | str] = (HEIGHT, WIDTH),
    tail: Sequence[Any] = (),
    constants: Sequence[Any] = (),
    output: tuple[str, Sequence[int | str]] | None = None,
    kernel: Array = KERNEL,
) -> Path:
    """Write relu(convolution) of (N, 3, H, W), with further nodes after it."""
    nodes, weights = conv_nodes(kernel=kernel)
    halves = [side // 2 if isinstance(side, int) else f"half{side}" for side in sides]
    return save(
        path,
        [*nodes, *tail],
        [*weights, *constants],
        [batch, 3, *sides],
        output or ("grid", [batch, CHANNELS, *halves]),
    )


def channels_last(path: Path, *, kind: int = TensorProto.FLOAT, batch: int | str = "N") -> Path:
    """Write the same of (N, H, W, 3), as converters from TensorFlow do."""
    nodes, weights = conv_nodes("turned", to="first")
    before = [
        helper.make_node("Cast", ["pixels"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["levels"], ["turned"], perm=[0, 3, 1, 2]),
    ]
    after = [helper.make_node("Transpose", ["first"], ["grid"], perm=[0, 2, 3, 1])]
    sides = [HEIGHT // 2, WIDTH // 2]
    return save(
        path,
        [*before, *nodes, *after],
        weights,
        [batch, HEIGHT, WIDTH, 3],
        ("grid", [batch, *sides, CHANNELS]),
        kind,
    )


def with_head(path: Path, batch: int | str = "N") -> Path:
    """Write a model that pools and returns a vector of 7."""
    tail = [
        helper.make_node("GlobalAveragePool", ["grid"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["vector"]),
    ]
    return channels_first(
        path, batch=batch, tail=tail, constants=[constant("head", HEAD)], output=("vector", [batch, 7])
    )


def identity(path: Path, side: int = 6) -> Path:
    """Write a model that returns its input, (N, H, W, 3)."""
    node = helper.make_node("Identity", ["pixels"], ["same"])
    return save(path, [node], [], ["N", side, side, 3], ("same", ["N", side, side, 3]))


# -- embedding ------------------------------------------------------------------------------------------------


def ready(path: Path, **choices: Any) -> ModelCard:
    """Convert a file with the options of the user."""
    return load_card(str(path), Choices(**choices), on_progress=lambda progress: None)


def features(card: ModelCard, levels: Sequence[Array], pooling: str = "avg") -> Array:
    """Embed images as a run does."""
    return embed_images(card.backbone(pooling), "float32", list(levels))


# -- being refused -------------------------------------------------------------------------------------------


def kept() -> list[Path]:
    """Return the names of all stored models, including temporary folders."""
    return [one for folder in ("models", "requests", "names") for one in (home() / folder).glob("*")]


def refused(path: Path) -> str:
    """Return the error of a file that is refused by `find_card` and by `outputs`."""
    with pytest.raises(ModelError) as caught:
        find_card(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError):
        outputs(str(path))
    assert kept() == []
    return str(caught.value)


# -- made by programs of their own ---------------------------------------------------------------------------


def run_program(name: str, folder: Path, *arguments: str) -> None:
    """Run a program of tests/references that creates models with the weights above."""
    np.savez(folder / "weights.npz", kernel=KERNEL, bias=BIAS, head=HEAD)
    program = Path(__file__).parents[1] / "references" / name
    done = subprocess.run(
        [sys.executable, str(program), str(folder), str(folder / "weights.npz"), *arguments],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_HOME": str(folder / "keras")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
