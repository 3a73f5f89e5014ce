"""Speed of `embed` compared with its limits and a plain script, in one table measured in one run.

    python -m benchmarks.speed [--quick] [--data DIR] [--rounds N]

Each cell is the median of some rounds. In a round the limits, the baseline and `embed` follow one another, under
the same conditions. Timings on a shared machine drift: compare by ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.limits import decode_limit, inference_limit, write_limit
from featurepress.demo.orchard import draw_images
from featurepress.ledger.provenance import cpu_name
from featurepress.models.backbone import supports_bfloat16
from featurepress.models.catalog import find_card
from featurepress.models.store import model_file
from featurepress.settings import available_cores

SHARED = Path(__file__).parents[2] / "shared"
COLUMNS = (
    "decode",
    "infer",
    "write",
    "limit",
    "threads",
    "threads area",
    "embedding",
    "of limit",
    "of threads",
    "of threads area",
    "whole call",
    "start s",
)

# Runs in a fresh process; prints the measurements of the run.
_EMBED = """
import json, sys, time
import featurepress as fp
first = []
def on_progress(progress):
    if progress.embedded and not first:
        first[:] = [time.perf_counter(), progress.embedded]
called = time.perf_counter()
options = {"model": "embedded", **json.loads(sys.argv[3])}
features = fp.embed(sys.argv[1], out=sys.argv[2], progress=on_progress, **options)
ended = time.perf_counter()
summary = features.summary
print(json.dumps({
    "images": summary.embedded, "failed": summary.failed, "bytes": summary.bytes_written,
    "whole": summary.embedded / (ended - called),
    "embedding": (summary.embedded - first[1]) / (ended - first[0]),
    "start": first[0] - called,
}))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder with fruits/ and photos/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a quarter of the images, one round")
    arguments = parser.parse_args()
    rounds, share = (1, 4) if arguments.quick else (arguments.rounds, 1)
    with tempfile.TemporaryDirectory(prefix="featurepress-bench-") as scratch:
        work = Path(scratch)
        sets = image_sets(arguments.data, work, share)
        print(f"{headline()}; median of {rounds} rounds\n")
        print("| images | features | precision | " + " | ".join(COLUMNS) + " |")
        print("|" + "---|" * (3 + len(COLUMNS)), flush=True)
        for name, pooling, precision in cells():
            if sets[name] is not None:
                _measure(work, name, sets[name], pooling, precision, rounds)


def headline() -> str:
    """Return a description of the machine."""
    return f"{cpu_name()}, {available_cores()} cores, Python {platform.python_version()}"


def image_sets(data: Path, folder: Path, share: int = 1) -> dict[str, Path | None]:
    """Copy the images, or one in `share` of them; None for a set without images."""
    return {
        "100x100": copy_images(data, folder / "images", 12_000 // share),
        "photographs": _photographs(data, folder / "photographs", 1_200 // share),
    }


def cells() -> Iterator[tuple[str, str, str]]:
    """Yield the combinations of images, pooling and precision."""
    precisions = ["float32"]
    if supports_bfloat16(find_card("embedded").backbone("avg")):
        precisions.append("bfloat16")
    for name in ("100x100", "photographs"):
        for pooling in ("avg", "flatten"):
            for precision in precisions:
                yield name, pooling, precision


def _measure(work: Path, name: str, folder: Path | None, pooling: str, precision: str, rounds: int) -> None:
    assert folder is not None
    model = model_file("embedded-v1.onnx", find_card("embedded").weights_sha256)
    shutil.copy(model, work / "model.onnx")
    paths = sorted(str(path) for path in folder.rglob("*.*"))
    n_cores = available_cores()
    infer, _ = inference_limit(model, pooling, precision, n_cores)
    seen: dict[str, list[float]] = {}
    for _ in range(rounds):
        run = embed(work, folder, pooling=pooling, precision=precision)
        assert run["images"] == len(paths), f"{run} of {len(paths)}"
        values = {
            "decode": decode_limit(paths, n_cores, area=True),
            "infer": infer,
            "write": write_limit(run["bytes"], len(paths), work),
            "threads": _threads(work, folder, pooling, precision, resize="LINEAR"),
            "threads area": _threads(work, folder, pooling, precision, resize="AREA"),
            "embedding": run["embedding"],
            "whole call": run["whole"],
            "start s": run["start"],
        }
        values["limit"] = 1 / sum(1 / values[part] for part in ("decode", "infer", "write"))
        values["of limit"] = values["embedding"] / values["limit"]
        values["of threads"] = values["embedding"] / values["threads"]
        values["of threads area"] = values["embedding"] / values["threads area"]
        for column, value in values.items():
            seen.setdefault(column, []).append(value)
    medians = {column: statistics.median(values) for column, values in seen.items()}
    cells = [f"{medians[c]:.2f}" if c.startswith("of") or c == "start s" else f"{medians[c]:,.0f}" for c in COLUMNS]
    print(f"| {name} | {pooling} | {precision} | " + " | ".join(cells) + " |", flush=True)


def embed(work: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """Embed a folder in a fresh process; return the measurements of the run."""
    out = work / "features"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", _EMBED, str(folder), str(out), json.dumps(options)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def _threads(work: Path, folder: Path, pooling: str, precision: str, *, resize: str) -> float:
    """Return the images per second that the plain script of threads reports, without its start.

    It resizes by INTER_LINEAR; with "AREA" it does the same work as `embed`.
    """
    script = SHARED / "baselines" / "threads_openvino.py"
    if not script.exists():
        return float("nan")
    copy = work / "threads.py"
    copy.write_text(script.read_text().replace("cv2.INTER_LINEAR", f"cv2.INTER_{resize}"))
    words = [{"float32": "f32", "bfloat16": "bf16"}[precision], {"avg": "avg", "flatten": "flat"}[pooling]]
    temporary = work / "threads"
    temporary.mkdir(exist_ok=True)
    output = _run_twice([sys.executable, str(copy), *words, str(folder)], work, temporary)
    shutil.rmtree(temporary)
    match = re.search(r"(\d+) img/s", output)
    assert match, output
    return float(match[1])


def _run_twice(command: list[str], work: Path, temporary: Path) -> str:
    """Return the output of the script; its threads sometimes wait for each other inside OpenVINO forever."""
    for is_last in (False, True):
        try:
            return subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                cwd=work,
                env={**os.environ, "TMPDIR": str(temporary)},
                timeout=120,
            ).stdout
        except subprocess.TimeoutExpired:
            if is_last:
                raise
            print("the script of threads hung; it runs again", file=sys.stderr)
    raise AssertionError("unreachable")


def copy_images(data: Path, folder: Path, n: int) -> Path:
    """Write `n` images of 100x100 into a folder: those of Fruits-360, repeated, or else drawn ones."""
    real = sorted((data / "fruits").rglob("*.jpg"))
    if not real:
        draw_images(folder, n)
        return folder
    for number in range(n):
        target = folder / f"{number // 500:04d}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(real[number % len(real)], target)
    return folder


def link_images(source: Path, target: Path) -> None:
    """Link images into another folder."""
    for path in source.rglob("*.jpg"):
        link = target / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)


def _photographs(data: Path, folder: Path, n: int) -> Path | None:
    real = sorted((data / "photos").glob("*.JPEG"))
    if not real:
        return None
    folder.mkdir()
    for number in range(n):
        shutil.copy(real[number % len(real)], folder / f"{number:05d}.jpg")
    return folder


if __name__ == "__main__":
    main()
