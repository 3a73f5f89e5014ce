"""Convert a model graph to one input of pixels (N, H, W, 3) and one output of features, for any batch size.

Runs in a child process: a damaged file may crash the reader. The converted model expects pixels before mean and
scale, in the channel order of its card. Its output is (N, h, w, C) or (N, D) for any layout of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import frontend
from openvino import opset13 as ops

from featurepress.errors import ModelError

BATCH = 8
# What OpenVINO's readers raise; ValueError if the message itself contains damaged names.
_FAILURES = (
    *(RuntimeError, ValueError),
    *(frontend.GeneralFailure, frontend.InitializationFailure, frontend.NotImplementedFailure),
    *(frontend.OpConversionFailure, frontend.OpValidationFailure),
)


def read(path: Path) -> Any:
    """Read a model file of any format that OpenVINO supports.

    Raises
    ------
    ModelError
        The file is not a model, or is damaged.
    """
    try:
        return ov.Core().read_model(path)
    except _FAILURES as error:
        if "Unable to read the model" in str(error):
            kind = path.suffix or "SavedModel"
            raise ModelError(f"The file '{path}' is not a {kind} model, or is damaged.") from error
        raise ModelError(f"The model '{path}' cannot be read: {first_sentence(error)}") from error


def first_sentence(error: Exception) -> str:
    """Return the most useful line of a long message of OpenVINO."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("Exception from", "Check '", "src/", "While"))]
    return (useful or lines or [type(error).__name__])[-1][:200]


def finish(
    model: Any,
    folder: Path,
    *,
    size: int | None = None,
    layout: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Cut a model at its output, make its batch size dynamic, transpose it to (N, H, W, C), test it, and write it.

    Parameters
    ----------
    model : openvino.Model
        Result of `read`.
    folder : Path
        Folder to write model.xml and model.bin to.
    size, layout, output
        As in `Choices`; None for the size of the file, the layout that the shape implies, the first output.

    Returns
    -------
    dict
        Facts for the model's card.

    Raises
    ------
    ModelError
        The model cannot be converted; the message says why.
    """
    n_outputs = len(model.outputs)
    model, name = _cut(model, output)
    layout = _layout(model, layout)
    dtype = "uint8" if model.input(0).get_element_type() == ov.Type.u8 else "float32"
    height, width = _sides(model, layout, size)
    batch = _free_batch(model, layout, height, width)
    model = _channels_last(model, layout, batch)
    grid = _grid(model, name, batch)
    _try(model, height, width, dtype, batch)
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return {
        "height": height,
        "width": width,
        "dtype": dtype,
        "grid": grid,
        "output": name,
        "batch": batch,
        "pooled": "" if len(model.output(0).get_partial_shape()) == 4 else "vector",
        "n_parameters": _n_parameters(model),
        "layout": layout,
        "n_outputs": n_outputs,
        "n_bytes": (folder / "model.bin").stat().st_size,
    }


# -- tensors -------------------------------------------------------------------------------------------------


def candidates(model: Any) -> list[dict[str, Any]]:
    """List the tensors that can be features, from input to output: ``name``, ``shape``, ``made_by``."""
    found = {}
    for name, port in _tensors(model):
        shape, kind = port.get_partial_shape(), port.get_node().get_type_name()
        is_float = port.get_element_type() in (ov.Type.f32, ov.Type.f16) and kind not in ("Convert", "FakeQuantize")
        if is_float and not shape.rank.is_dynamic and 2 <= len(shape) <= 4:
            sides = [-1 if side.is_dynamic else side.get_length() for side in shape]
            found[name] = {"name": name, "shape": sides, "made_by": kind}
    return list(found.values())


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and ports of the tensors that depend on the pixels."""
    reached = {port.get_node().get_name() for port in model.inputs}
    counts: dict[str, int] = {}
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        # A shape does not depend on the values of the pixels.
        if kind == "ShapeOf" or not any(value.get_node().get_name() in reached for value in node.input_values()):
            continue
        reached.add(node.get_name())
        counts[kind] = counts.get(kind, 0) + 1
        if kind != "Result":
            for port in node.outputs():
                yield tensor_name(port, counts), port


def tensor_name(port: Any, counts: dict[str, int] | None = None) -> str:
    """Return a name for a tensor: the shortest one of the file, else the operation's.

    If the reader made that name up, the kind of the operation and its number among that kind.
    """
    names = sorted(port.get_names(), key=lambda name: (len(name), name))
    node = port.get_node()
    if names:
        return str(names[0])
    if counts is None or not re.fullmatch(r"[A-Za-z]+_\d+", node.get_friendly_name()):
        return str(node.get_friendly_name())
    return f"{node.get_type_name()}:{counts[node.get_type_name()]}"


def _cut(model: Any, output: str | None) -> tuple[Any, str]:
    """Return the model up to one tensor, and the tensor's name."""
    if len(model.inputs) != 1:
        listed = ", ".join(f"{tensor_name(port)} {port.get_partial_shape()}" for port in model.inputs)
        raise ModelError(
            f"The model must have one input, the pixels. It has {len(model.inputs)}: {listed or 'none'}."
        )
    if output is not None:
        port, name = _find(model, output), output
    elif model.outputs:
        port, name = model.output(0).get_node().input_value(0), tensor_name(model.output(0))
    else:
        raise ModelError("The model has no output.")
    return ov.Model([ops.result(port)], model.get_parameters()), name


def _find(model: Any, output: str) -> Any:
    for name, port in _tensors(model):
        if output in (name, port.get_node().get_friendly_name(), *port.get_names()):
            return port
    from featurepress.settings import nearest

    names = [tensor["name"] for tensor in candidates(model)]
    raise ModelError(
        f"The model has no tensor '{output}'{nearest(output, names)} "
        "featurepress models show FILE --outputs lists them."
    )


def _layout(model: Any, requested: str | None) -> str:
    """Return the layout of the input: as requested, else inferred from its shape."""
    shape = model.input(0).get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 4:
        raise ModelError(
            f"The model's input must have four axes, images of three channels. It has the shape {shape}."
        )
    possible = [
        name for name, axis in (("NHWC", 3), ("NCHW", 1)) if shape[axis].is_dynamic or _is_three(shape[axis])
    ]
    if not possible or (requested is not None and requested not in possible):
        raise ModelError(
            f"The model's input must be images of three channels, {requested or 'NHWC or NCHW'}. It has the shape "
            f"{shape}."
        )
    if requested is not None:
        return requested
    if _is_three(shape[3]) and not _is_three(shape[1]):
        return "NHWC"
    if _is_three(shape[1]) and not _is_three(shape[3]):
        return "NCHW"
    raise ModelError(
        f"The layout is ambiguous: the input has the shape {shape}. Use --layout NHWC or --layout NCHW."
    )


def _is_three(dimension: Any) -> bool:
    return bool(dimension.is_static and dimension.get_length() == 3)


def _sides(model: Any, layout: str, size: int | None) -> tuple[int, int]:
    """Return height and width of the input."""
    if size is not None:
        return size, size
    shape = model.input(0).get_partial_shape()
    height, width = (shape[axis] for axis in ((1, 2) if layout == "NHWC" else (2, 3)))
    if height.is_dynamic or width.is_dynamic:
        raise ModelError(f"The model accepts images of any size (its input is {shape}). Choose one with --size.")
    return height.get_length(), width.get_length()


# -- conversion ----------------------------------------------------------------------------------------


def _free_batch(model: Any, layout: str, height: int, width: int) -> int | None:
    """Make the batch size dynamic and return None, or return the only batch size that works."""
    shape = model.input(0).get_partial_shape()
    own = shape[0].get_length() if shape[0].is_static else None
    sides = [height, width, 3] if layout == "NHWC" else [3, height, width]
    _free_reshapes(model, own or 1)
    if _takes(model, [BATCH, *sides]) and _same_in_batches(model, [BATCH, *sides]):
        _reshape(model, [-1, *sides])
        return None
    batch = own or 1
    if not _takes(model, [batch, *sides]):
        output_shape = model.output(0).get_partial_shape()
        if list(model.input(0).get_partial_shape()) == [batch, *sides]:
            raise ModelError(
                f"The output has the shape {output_shape}, without a row per image. Choose another --output."
            )
        raise ModelError(
            f"The model does not accept images of {width}x{height}; its input has the shape {shape}. "
            "Leave out --size."
        )
    return int(batch)


def _free_reshapes(model: Any, batch: int) -> None:
    """Replace a fixed batch size in the targets of reshapes by -1, in place.

    Keras traces with a batch of one and writes it into the shapes of squeeze-and-excitation blocks.
    """
    for _, port in _tensors(model):
        node = port.get_node()
        if node.get_type_name() != "Reshape":
            continue
        pattern = node.input_value(1).get_node()
        if pattern.get_type_name() != "Constant":
            continue
        target = np.array(pattern.get_data(), np.int64)
        if target.ndim == 1 and target.size > 1 and target[0] == batch and not (target[1:] <= 0).any():
            target[0] = -1
            node.input(1).replace_source_output(ops.constant(target).output(0))


def _reshape(model: Any, shape: list[int]) -> None:
    model.reshape({model.input(0): ov.PartialShape(shape)})


def _takes(model: Any, shape: list[int]) -> bool:
    """Whether a model can be reshaped to `shape`, with a row of output per image."""
    try:
        _reshape(model, shape)
    except RuntimeError:
        return False
    rows = model.output(0).get_partial_shape()
    return not rows.rank.is_dynamic and len(rows) > 0 and rows[0].is_static and rows[0].get_length() == shape[0]


def _same_in_batches(model: Any, shape: list[int]) -> bool:
    """Whether an image has the same features alone and in a batch, except for rounding."""
    pixels = _noise(model, shape)
    together = _run(model, pixels)
    _reshape(model, [1, *shape[1:]])
    alone = np.concatenate([_run(model, image[None]) for image in pixels[:2]])
    _reshape(model, shape)
    return _near(together[:2], alone)


def same_features(first: Any, second: Any) -> bool:
    """Whether two forms of a model have the same features, except for rounding."""
    shape = [1, *(side.get_length() for side in list(first.input(0).get_partial_shape())[1:])]
    for model in (first, second):
        _reshape(model, shape)
    pixels = _noise(first, shape)
    return _near(_run(second, pixels), _run(first, pixels))


def _near(found: Any, expected: Any) -> bool:
    """Whether features are the same except for rounding; NaN is never the same."""
    scale = max(1e-6, float(np.abs(expected).max()))
    with np.errstate(invalid="ignore"):
        return found.shape == expected.shape and bool(np.abs(found - expected).max() <= 1e-4 * scale)


def _noise(model: Any, shape: list[int]) -> Any:
    rng = np.random.default_rng(0)
    if model.input(0).get_element_type() == ov.Type.u8:
        return rng.integers(0, 256, shape, np.uint8)
    return rng.uniform(-1, 1, shape).astype(np.float32)


def _run(model: Any, pixels: Any) -> Any:
    hints = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1"}
    return np.array(ov.Core().compile_model(model, "CPU", hints)({0: pixels})[0], np.float32)


def _channels_last(model: Any, layout: str, batch: int | None) -> Any:
    """Return the model with input (N, H, W, 3) and a float32 output (N, h, w, C) or (N, D)."""
    processor = ov.preprocess.PrePostProcessor(model)
    own = model.input(0).get_element_type()
    processor.input().tensor().set_layout(ov.Layout("NHWC"))
    if own != ov.Type.u8:
        processor.input().tensor().set_element_type(ov.Type.f32)
    processor.input().model().set_layout(ov.Layout(layout))
    if model.output(0).get_element_type() != ov.Type.f32:
        processor.output().tensor().set_element_type(ov.Type.f32)
    model = processor.build()
    port = model.output(0).get_node().input_value(0)
    rank = len(port.get_partial_shape())
    if rank == 4 and _is_channels_first(model, port.get_partial_shape(), layout):
        port = ops.transpose(port, np.array([0, 2, 3, 1])).output(0)
    elif rank == 3:  # (N, tokens, C)
        port = ops.unsqueeze(port, np.array([2])).output(0)
    return ov.Model([ops.result(port)], model.get_parameters())


def _is_channels_first(model: Any, shape: Any, layout: str) -> bool:
    """Whether a grid is (N, C, h, w): the sides whose proportion is closest to the input's are h and w."""
    pixels = model.input(0).get_partial_shape()
    aspect = pixels[1].get_length() / pixels[2].get_length()
    sides = [side.get_length() if side.is_static else 0 for side in list(shape)[1:]]
    if 0 in sides:
        return layout == "NCHW"
    last, first = abs(sides[0] / sides[1] - aspect), abs(sides[1] / sides[2] - aspect)
    return first < last or (first == last and layout == "NCHW")


def _grid(model: Any, name: str, batch: int | None) -> tuple[int, int, int]:
    """Return height, width and channels of the output."""
    shape = model.output(0).get_partial_shape()
    rows = shape[0] if len(shape) else None
    has_rows = rows is not None and (rows.is_dynamic if batch is None else rows.get_length() == batch)
    if len(shape) not in (2, 4) or not has_rows or any(side.is_dynamic for side in list(shape)[1:]):
        raise ModelError(
            f"The output '{name}' has the shape {shape}: it must have a row per image and a fixed number of "
            "features. Choose another one with --output."
        )
    sides = [side.get_length() for side in list(shape)[1:]]
    return (1, 1, sides[0]) if len(sides) == 1 else (sides[0], sides[1], sides[2])


def _try(model: Any, height: int, width: int, dtype: str, batch: int | None) -> None:
    """Refuse a model with NaN weights, or with features on noise, grey or black that are not finite.

    Activations such as ReLU6 turn NaN into numbers, so that a check of the features alone is not enough.
    """
    for node in model.get_ordered_ops():
        is_weights = node.get_type_name() == "Constant" and node.get_element_type() in (ov.Type.f32, ov.Type.f16)
        if is_weights and np.isnan(node.get_data()).any():
            raise ModelError("The model has NaN weights. Its file is damaged.")
    shape = (height, width, 3)
    pixels = np.stack([np.random.default_rng(1).uniform(-1, 1, shape), np.zeros(shape), -np.ones(shape)])
    pixels = np.resize(pixels, (batch or 3, *shape))
    inputs = (pixels * 127.5 + 127.5).astype(np.uint8) if dtype == "uint8" else pixels.astype(np.float32)
    if not np.isfinite(_run(model, inputs)).all():
        raise ModelError("The model's features are NaN or infinite. Its weights are damaged.")


def _n_parameters(model: Any) -> int:
    """Count the weights: all floating-point and 8-bit constants of more than one element."""
    kinds = (ov.Type.f32, ov.Type.f16, ov.Type.i8, ov.Type.u8, ov.Type.bf16)
    constants = (node for node in model.get_ordered_ops() if node.get_type_name() == "Constant")
    sizes = (int(np.prod(list(node.get_output_shape(0)))) for node in constants if node.get_element_type() in kinds)
    return sum(size for size in sizes if size > 1)
