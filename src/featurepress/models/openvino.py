"""Run models on CPUs with OpenVINO."""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openvino as ov
from openvino import opset13 as ops

from featurepress.models.store import model_file
from featurepress.specs import BackboneSpec, PreprocessSpec

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.specs import Features

# Measured with MobileNetV2 0.5 at 96 on one core, with decoding in between: 6 to 12 are equal, 16 is 6 % slower
# in float32 (the activations outgrow the core's cache), 2 is 9 % slower in bfloat16.
BATCH_SIZE = 8

_TYPES = {"uint8": ov.Type.u8, "float32": ov.Type.f32}
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoBackbone:
    """Normalisation, model and pooling as one graph, on one thread of the calling process.

    Parallelism is over processes: threads of one process would share an interpreter. Results do not depend on the
    number of workers, because each process always computes alone.

    Parameters
    ----------
    spec : BackboneSpec
        Model, output tensor, preprocessing and pooling.
    precision : str
        ``float32`` or ``bfloat16``. Always passed on: OpenVINO's own default is bfloat16 if the CPU has it.
    """

    def __init__(self, spec: BackboneSpec, precision: str) -> None:
        self.precision = precision
        self.batch_size = spec.options.get("batch", BATCH_SIZE)
        compiled = _core().compile_model(
            _graph(spec, self.batch_size),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "NUM_STREAMS": "1",
                "INFERENCE_NUM_THREADS": "1",
                # Every process would pin its only thread to the first core.
                "ENABLE_CPU_PINNING": False,
                **_integers(),
            },
        )
        self._request = compiled.create_infer_request()
        self._shape = (self.batch_size, spec.n_features)

    @staticmethod
    def supports_bfloat16(spec: BackboneSpec) -> bool:
        """Whether this CPU has bfloat16 instructions that OpenVINO uses."""
        return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def __call__(self, pixels: npt.NDArray[Any]) -> Features:
        """Run a batch; see `Backbone`."""
        outputs = self._request.infer({0: pixels}, share_inputs=True, share_outputs=True)
        features: Features = outputs[0].reshape(self._shape)
        return features


@functools.cache
def _core() -> Any:
    return ov.Core()


@functools.cache
def _integers() -> dict[str, str]:
    """Return the options that compute quantised models in float32 on x86 without VNNI.

    There OpenVINO adds 8-bit products in 16 bits, which overflow silently: the accuracy of a quantised MobileNetV2
    on 120 photographs fell from 84 % to 77 %.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return {"LP_TRANSFORMS_MODE": "NO"} if is_x86 and "vnni" not in flags else {}


def _graph(spec: BackboneSpec, batch_size: int) -> Any:
    """Build pixels -> normalisation -> model -> pooling as one OpenVINO model of fixed batch size."""
    steps = spec.preprocess
    model = _core().read_model(model_file(spec.file, spec.weights_sha256))
    model.reshape({model.input(0): [batch_size, steps.height, steps.width, 3]})
    model = _normalised(model, steps)
    grid = model.output(0).get_node().input_value(0)  # (N, height, width, channels), or (N, channels)
    if len(grid.get_partial_shape()) == 2:
        return model
    pooled = {
        "avg": lambda: ops.reduce_mean(grid, [1, 2], keep_dims=False),
        "max": lambda: ops.reduce_max(grid, [1, 2], keep_dims=False),
        "flatten": lambda: ops.reshape(grid, [batch_size, -1], special_zero=False),
    }[spec.pooling]()
    return ov.Model([pooled.output(0)], model.get_parameters())


def _normalised(model: Any, steps: PreprocessSpec) -> Any:
    """Return the model with type conversion, channel order, mean and scale in front of it."""
    processor = ov.preprocess.PrePostProcessor(model)
    processor.input().tensor().set_element_type(_TYPES[steps.dtype]).set_layout(ov.Layout("NHWC"))
    processor.input().model().set_layout(ov.Layout("NHWC"))
    steps_before = processor.input().preprocess()
    is_raw = set(steps.mean) == {0.0} and set(steps.scale) == {1.0}
    if not is_raw or model.input(0).get_element_type() != _TYPES[steps.dtype]:
        steps_before = steps_before.convert_element_type(ov.Type.f32)
    if steps.channel_order == "BGR":
        steps_before = steps_before.reverse_channels()
    if not is_raw:
        mean, scale = (values[0] if len(values) == 1 else list(values) for values in (steps.mean, steps.scale))
        steps_before.mean(mean).scale(scale)
    if model.input(0).get_element_type() == ov.Type.u8:
        steps_before.convert_element_type(ov.Type.u8)
    return processor.build()
