"""Remove the transpositions from a model that Keras has exported: four times the speed, the same features.

Keras computes in (N, H, W, C) and OpenVINO's convolutions in (N, C, H, W). The export transposes before and after
every layer, and nothing can be fused across. Here every operation that works in both layouts is moved to
(N, C, H, W). Adjacent transpositions cancel; the other operations keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from openvino import opset13 as ops

_TO_LAST, _TO_FIRST, _SWAP = [0, 2, 3, 1], [0, 3, 1, 2], [0, 3, 2, 1]
_UNARY = {
    *("Abs", "Clamp", "Convert", "Elu", "Erf", "Exp", "Gelu", "HSigmoid", "HSwish", "Log", "Mish", "Negative"),
    *("Relu", "Selu", "Sigmoid", "SoftPlus", "SoftSign", "Sqrt", "Swish", "Tanh"),
}
_BINARY = {"Add", "Divide", "Maximum", "Minimum", "Multiply", "Power", "SquaredDifference", "Subtract"}
_REDUCTIONS = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"}


class _Transposed:
    """Maps tensors (N, H, W, C) to the tensors (N, C, H, W) that they are transposed from."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, int], Any] = {}

    def of(self, port: Any) -> Any | None:
        """Return the tensor that `port` is transposed from, or None."""
        return self._first.get((port.get_node().get_name(), port.get_index()))

    def note(self, port: Any, first: Any) -> None:
        """Record that `port` is transposed from `first`."""
        self._first[port.get_node().get_name(), port.get_index()] = first

    def transpose_back(self, node: Any) -> None:
        """Transpose the output of a node, now (N, C, H, W), back for its readers."""
        node.validate_and_infer_types()  # its shape has changed with its inputs
        output = node.output(0)
        readers = list(output.get_target_inputs())
        turned = ops.transpose(output, np.array(_TO_LAST)).output(0)
        for reader in readers:
            reader.replace_source_output(turned)
        self.note(turned, output)


def channels_first(model: Any) -> None:
    """Move a model's operations to (N, C, H, W) where that removes a transposition; in place.

    Parameters
    ----------
    model : openvino.Model
        As exported by Keras; its inputs and outputs keep their layout.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convert":
            _drop_if_idle(node)
    turned = _Transposed()
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Transpose":
            _transpose(node, turned)
        elif (move := _MOVES.get(kind)) is not None and turned.of(node.input_value(0)) is not None:
            move(node, turned)
        elif kind == "BatchNormInference":
            _batch_norm(node, turned)
        elif kind in _BINARY and turned.of(node.input_value(1)) is not None:
            _binary(node, turned)
    model.validate_nodes_and_infer_types()


def _transpose(node: Any, turned: _Transposed) -> None:
    order = _constant(node.input_value(1))
    source = node.input_value(0)
    if order == _TO_LAST:
        turned.note(node.output(0), source)
    elif order == _TO_FIRST and (first := turned.of(source)) is not None:
        for reader in list(node.output(0).get_target_inputs()):
            reader.replace_source_output(first)


def _drop_if_idle(node: Any) -> None:
    """Remove a conversion from a type to itself."""
    source = node.input_value(0)
    if source.get_element_type() != node.get_output_element_type(0):
        return
    for reader in list(node.output(0).get_target_inputs()):
        reader.replace_source_output(source)


def _constant(port: Any) -> Any:
    """Return the values of a constant as a list, or None."""
    node = port.get_node()
    return np.array(node.get_data()).tolist() if node.get_type_name() == "Constant" else None


def _unary(node: Any, turned: _Transposed) -> None:
    node.input(0).replace_source_output(turned.of(node.input_value(0)))
    turned.transpose_back(node)


def _binary(node: Any, turned: _Transposed) -> None:
    sides = [_first_side(node.input_value(index), turned) for index in (0, 1)]
    if None in sides:
        return
    for index, side in enumerate(sides):
        node.input(index).replace_source_output(side)
    turned.transpose_back(node)


def _first_side(port: Any, turned: _Transposed) -> Any | None:
    """Return one operand of a binary operation as (N, C, H, W), or None if that is not possible."""
    if (first := turned.of(port)) is not None:
        return first
    shape, node = port.get_partial_shape(), port.get_node()
    if node.get_type_name() != "Constant":
        is_grid = not shape.rank.is_dynamic and len(shape) == 4
        return ops.transpose(port, np.array(_TO_FIRST)).output(0) if is_grid else None
    values = np.array(node.get_data())
    full = values.reshape((1,) * (4 - values.ndim) + values.shape)
    return ops.constant(np.ascontiguousarray(full.transpose(_TO_FIRST))).output(0)


def _batch_norm(node: Any, turned: _Transposed) -> None:
    """Move a normalisation that Keras computes in (N, C, W, H); it treats each channel separately."""
    before = node.input_value(0).get_node()
    readers = [reader.get_node() for reader in node.output(0).get_target_inputs()]
    if not all(_is_swap(neighbour) for neighbour in (before, *readers)):
        return
    first = turned.of(before.input_value(0))
    if first is None:
        return
    node.input(0).replace_source_output(first)
    turned.transpose_back(node)
    back = next(iter(node.output(0).get_target_inputs())).get_node().output(0)
    for reader in readers:
        for target in list(reader.output(0).get_target_inputs()):
            target.replace_source_output(back)


def _is_swap(node: Any) -> bool:
    return bool(node.get_type_name() == "Transpose" and _constant(node.input_value(1)) == _SWAP)


def _pad(node: Any, turned: _Transposed) -> None:
    pads = [_constant(node.input_value(index)) for index in (1, 2)]
    if None in pads:
        return
    for index, pad in zip((1, 2), pads, strict=True):
        node.input(index).replace_source_output(ops.constant(np.array([pad[i] for i in _TO_FIRST])).output(0))
    _unary(node, turned)


def _reduce(node: Any, turned: _Transposed) -> None:
    axes = _constant(node.input_value(1))
    if axes is None:
        return
    moved = [{0: 0, 1: 2, 2: 3, 3: 1}[axis % 4] for axis in np.atleast_1d(axes)]
    keeps = len(node.get_output_partial_shape(0)) == 4
    if not keeps and set(moved) != {2, 3}:
        return
    node.input(1).replace_source_output(ops.constant(np.array(moved)).output(0))
    node.input(0).replace_source_output(turned.of(node.input_value(0)))
    if keeps:
        turned.transpose_back(node)


def _concat(node: Any, turned: _Transposed) -> None:
    sides = [_first_side(port, turned) for port in node.input_values()]
    axis = node.get_attributes()["axis"] % 4
    if None in sides:
        return
    joined = ops.concat(sides, {0: 0, 1: 2, 2: 3, 3: 1}[axis])
    for reader in list(node.output(0).get_target_inputs()):
        reader.replace_source_output(joined.output(0))
    turned.transpose_back(joined)


_MOVES: dict[str, Callable[[Any, _Transposed], None]] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "Pad": _pad,
    "Concat": _concat,
}
