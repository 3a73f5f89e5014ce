"""Backbones on CPUs, by OpenVINO."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import openvino as ov
from openvino import opset13 as ops

from featurepress.models.store import model_file
from featurepress.records import BackboneSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from featurepress.records import Features

# Measured with MobileNetV2 0.5 at 96 on one core, decoding in between: 6 to 12 run alike, 16 is 6 % slower in
# float32 (the activations outgrow the core's cache), 2 is 9 % slower in bfloat16.
BATCH_SIZE = 8

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoBackbone:
    """A model file with its normalisation and pooling in one graph, on one thread of the calling process.

    Parallelism is over processes, each with a stream of its own: the streams of one process would share an
    interpreter, and a run with any number of workers gives the same bits, since each always computes alone.

    Parameters
    ----------
    spec : BackboneSpec
        Model, output tensor, preprocessing and pooling.
    precision : str
        ``float32`` or ``bfloat16``. Without this hint OpenVINO takes bfloat16 by itself where it can.
    """

    batch_size = BATCH_SIZE

    def __init__(self, spec: BackboneSpec, precision: str) -> None:
        self.precision = precision
        compiled = _core().compile_model(
            _graph(spec),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "NUM_STREAMS": "1",
                "INFERENCE_NUM_THREADS": "1",
                # Every process would pin its only thread to the first core.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._request = compiled.create_infer_request()
        self._shape = (BATCH_SIZE, spec.n_features)

    @staticmethod
    def supports_bfloat16(spec: BackboneSpec) -> bool:
        """Whether this CPU has bfloat16 instructions that OpenVINO uses."""
        return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Features:
        """Run a batch; see `Backbone`."""
        outputs = self._request.infer({0: pixels}, share_inputs=True, share_outputs=True)
        features: Features = outputs[0].reshape(self._shape)
        return features


@functools.cache
def _core() -> Any:
    return ov.Core()


def _graph(spec: BackboneSpec) -> Any:
    """Build pixels -> normalisation -> model -> pooling as one OpenVINO model of fixed batch size."""
    steps = spec.preprocess
    model = _core().read_model(model_file(spec.weights_sha256))
    model.reshape({model.input(0): [BATCH_SIZE, steps.height, steps.width, 3]})
    processor = ov.preprocess.PrePostProcessor(model)
    processor.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    processor.input().model().set_layout(ov.Layout("NHWC"))
    mean, scale = (values[0] if len(values) == 1 else list(values) for values in (steps.mean, steps.scale))
    processor.input().preprocess().convert_element_type(ov.Type.f32).mean(mean).scale(scale)
    model = processor.build()
    grid = model.output(spec.output).get_node().input_value(0)  # (N, height, width, channels)
    pooled = {
        "avg": lambda: ops.reduce_mean(grid, [1, 2], keep_dims=False),
        "max": lambda: ops.reduce_max(grid, [1, 2], keep_dims=False),
        "flatten": lambda: ops.reshape(grid, [BATCH_SIZE, -1], special_zero=False),
    }[spec.pooling]()
    return ov.Model([pooled.output(0)], model.get_parameters())
