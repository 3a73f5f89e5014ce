"""Transpositions are removed from a model, and its features stay the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from featurepress.models.conversion.transpositions import channels_first

TO_LAST, TO_FIRST, SWAP = [0, 2, 3, 1], [0, 3, 1, 2], [0, 3, 2, 1]
CHANNELS = 4


def turn(node: Any, order: list[int]) -> Any:
    return ops.transpose(node, np.array(order))


def convolution(pixels: Any, seed: int = 0) -> Any:
    """Convolve as Keras exports it: transpose, compute, convert a float to a float, transpose back."""
    kernel = np.random.default_rng(seed).normal(0, 0.3, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    done = ops.convolution(turn(pixels, TO_FIRST), kernel, [1, 1], [1, 1], [1, 1], [1, 1])
    return turn(ops.convert(done, "f32"), TO_LAST)


def batch_norm(grid: Any) -> Any:
    """Normalise as Keras does, with height and width swapped."""
    rng = np.random.default_rng(1)
    gamma, beta, mean = (rng.normal(1, 0.1, CHANNELS).astype(np.float32) for _ in range(3))
    done = ops.batch_norm_inference(turn(grid, SWAP), gamma, beta, mean, np.ones(CHANNELS, np.float32), 1e-3)
    return turn(done, SWAP)


def squeeze_and_excitation(grid: Any) -> Any:
    share = ops.reduce_mean(grid, np.array([1, 2]), keep_dims=True)
    return ops.multiply(grid, ops.sigmoid(share))


def joined(grid: Any) -> Any:
    return ops.relu(ops.concat([convolution(grid, 2), grid, ops.add(grid, convolution(grid, 3))], 3))


def last_axis(grid: Any) -> Any:
    """Normalise over the channels, as ConvNeXt does: an operation that keeps its layout."""
    return ops.subtract(grid, ops.reduce_mean(grid, np.array([3]), keep_dims=True))


BLOCKS: dict[str, Callable[[Any], Any]] = {
    "clamp": lambda grid: ops.clamp(grid, 0.0, 6.0),
    "add a number": lambda grid: ops.add(grid, np.float32(0.5)),
    "add a vector": lambda grid: ops.add(grid, np.arange(CHANNELS, dtype=np.float32)),
    "add a vector from the left": lambda grid: ops.subtract(np.arange(CHANNELS, dtype=np.float32), grid),
    "add a grid": lambda grid: ops.add(grid, np.linspace(0, 1, 6 * 8 * 4, dtype=np.float32).reshape(1, 6, 8, 4)),
    "batch norm": batch_norm,
    "pad": lambda grid: ops.pad(grid, np.array([0, 0, 1, 0]), np.array([0, 1, 2, 0]), "constant", np.float32(0)),
    "squeeze and excitation": squeeze_and_excitation,
    "concat": joined,
    "last axis": last_axis,
}


def model(block: Callable[[Any], Any], *, pooled: bool = False) -> Any:
    pixels = ops.parameter([-1, 6, 8, CHANNELS], np.float32)
    grid = block(convolution(pixels))
    if grid.get_output_partial_shape(0)[3].get_length() == CHANNELS:
        grid = convolution(grid, 5)
    return ov.Model([ops.reduce_mean(grid, np.array([1, 2]), keep_dims=False) if pooled else grid], [pixels])


def turns(graph: Any) -> int:
    return sum(node.get_type_name() == "Transpose" for node in graph.get_ordered_ops())


def features(graph: Any) -> Any:
    pixels = np.random.default_rng(9).normal(0, 1, (3, 6, 8, CHANNELS)).astype(np.float32)
    return ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({0: pixels})[0].copy()


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_features_stay_and_the_turns_go(name: str, pooled: bool) -> None:
    plain, moved = model(BLOCKS[name], pooled=pooled), model(BLOCKS[name], pooled=pooled)
    channels_first(moved)
    np.testing.assert_allclose(features(moved), features(plain), atol=1e-5)
    assert moved.output(0).get_partial_shape() == plain.output(0).get_partial_shape()
    # One turn at the beginning and, for a grid, one at the end; what is best in its own layout keeps its own.
    assert turns(moved) <= (2 if name != "last axis" else 4)
    assert turns(moved) < turns(plain)


def test_a_graph_without_transpositions_is_not_changed() -> None:
    pixels = ops.parameter([-1, 6, 8, CHANNELS], np.float32)
    graph = ov.Model([ops.relu(ops.add(pixels, np.float32(1)))], [pixels])
    before = features(graph)
    channels_first(graph)
    assert turns(graph) == 0
    np.testing.assert_array_equal(features(graph), before)


def test_the_input_of_a_reshape_is_not_changed() -> None:
    """Without the transposition before it, the numbers would have another order."""

    def block(grid: Any) -> Any:
        flat = ops.reshape(ops.relu(grid), np.array([-1, 6 * 8 * CHANNELS]), special_zero=False)
        return ops.reshape(flat, np.array([-1, 6, 8, CHANNELS]), special_zero=False)

    plain, moved = model(block), model(block)
    channels_first(moved)
    np.testing.assert_allclose(features(moved), features(plain), atol=1e-5)
