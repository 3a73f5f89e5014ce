"""Limits of the machine: decoding alone, inference alone, writing alone.

None of this uses featurepress's own reading, decoding or embedding, so that slow code of ours cannot lower the
limits.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import openvino as ov
from openvino import opset13 as ops

SIZE = 96


def decode_some(paths: Sequence[str], *, area: bool) -> None:
    """Read, decode and resize, with fixed code."""
    cv2.setNumThreads(1)
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    for path in paths:
        with open(path, "rb") as file:  # noqa: PTH123 - the fastest way
            data = file.read()
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        shrinks = pixels.shape[0] > SIZE and pixels.shape[1] > SIZE
        how = cv2.INTER_AREA if area and shrinks else cv2.INTER_LINEAR
        cv2.resize(pixels, (SIZE, SIZE), dst=out, interpolation=how)


def decode_limit(paths: Sequence[str], n_cores: int, *, area: bool) -> float:
    """Return the images per second of decoding alone, the best of threads and processes."""
    started = time.perf_counter()
    with ThreadPoolExecutor(n_cores) as pool:
        list(pool.map(lambda part: decode_some(part, area=area), [paths[i::n_cores] for i in range(n_cores)]))
    by_threads = len(paths) / (time.perf_counter() - started)
    return max(by_threads, _decode_in_processes(paths, n_cores, area=area))


_PROCESS = """
import sys, time
from benchmarks.limits import decode_some
paths = sys.stdin.readline().rstrip("\\n").split("\\0")
decode_some(paths[:50], area={area})
print("ready", flush=True)
sys.stdin.readline()
started = time.perf_counter()
decode_some(paths, area={area})
print(time.perf_counter() - started)
"""


def _decode_in_processes(paths: Sequence[str], n_cores: int, *, area: bool) -> float:
    """Measure from the time when all processes are ready to the end of the slowest."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS.format(area=area)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(n_cores)
    ]
    for number, process in enumerate(processes):
        assert process.stdin and process.stdout
        process.stdin.write("\0".join(paths[number::n_cores]) + "\n")
        process.stdin.flush()
        process.stdout.readline()
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    slowest = max(float(process.communicate()[0]) for process in processes)
    return len(paths) / slowest


def inference_limit(model_file: Path, pooling: str, precision: str, n_cores: int) -> tuple[float, str]:
    """Return the images per second of inference alone by OpenVINO's asynchronous queue, and its best setting."""
    best, how = 0.0, ""
    for streams, batch in itertools.product(sorted({1, n_cores, 2 * n_cores}), (4, 8, 16, 32)):
        speed = infer_speed(model_file, pooling, precision, streams=streams, batch=batch, n_cores=n_cores)
        if speed > best:
            best, how = speed, f"{streams} streams, batch {batch}"
    return best, how


def infer_speed(
    model_file: Path, pooling: str, precision: str, *, streams: int, batch: int, n_cores: int, seconds: float = 0.7
) -> float:
    """Return the images per second of one setting of streams and batch."""
    core = ov.Core()
    model = core.read_model(model_file)
    model.reshape({model.input(0): [batch, SIZE, SIZE, 3]})
    steps = ov.preprocess.PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NHWC"))
    steps.input().preprocess().convert_element_type(ov.Type.f32).mean(127.5).scale(127.5)
    model = steps.build()
    if pooling == "avg":
        grid = model.output(0).get_node().input_value(0)
        model = ov.Model([ops.reduce_mean(grid, [1, 2], keep_dims=False).output(0)], model.get_parameters())
    hints = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(n_cores),
    }
    compiled = core.compile_model(model, "CPU", hints)
    jobs = ov.AsyncInferQueue(compiled, 2 * streams)
    pixels = np.random.default_rng(0).integers(0, 255, (batch, SIZE, SIZE, 3), dtype=np.uint8)
    for _ in range(4 * streams):
        jobs.start_async({0: pixels}, share_inputs=True)
    jobs.wait_all()
    n_calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(2 * streams):
            jobs.start_async({0: pixels}, share_inputs=True)
        n_calls += 2 * streams
    jobs.wait_all()
    return n_calls * batch / (time.perf_counter() - started)


def write_limit(n_bytes: int, n_images: int, folder: Path) -> float:
    """Return the images per second of writing the same number of bytes to one file, with fsync at the end."""
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        for start in range(0, n_bytes, len(block)):
            file.write(block[: min(len(block), n_bytes - start)])
        file.flush()
        os.fsync(file.fileno())
        return n_images / (time.perf_counter() - started)
