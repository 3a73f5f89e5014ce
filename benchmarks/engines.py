"""The engines side by side on the same cores: local, Spark's local[N], Ray.

    python -m benchmarks.engines [--images N] [--names N] [--rounds N] [--only NAME...]

MobileNetV2 1.0 at 96, random weights, float32, pooled; N images of 100x100, each under several names. Each engine
runs in its own process: it starts, embeds a few images so that every worker has loaded the model, and then all. The
start is reported separately.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import featurepress as fp
from benchmarks.speed import SHARED, copy_images, headline, link_images
from benchmarks.update import create_model
from featurepress.engines import Engine
from featurepress.settings import available_cores

NAMES = ("local", "spark", "ray")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--names", type=int, default=5, help="number of names of each image")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(measure(arguments.run, arguments.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="featurepress-engines-") as work:
        os.environ["FEATUREPRESS_HOME"] = str(Path(work, "home"))
        create_model(Path(work), "drawn")
        folder = copy_images(SHARED / "data", Path(work, "images", "0"), arguments.images).parent
        for number in range(1, arguments.names):
            link_images(folder / "0", folder / str(number))
        found: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.only}
        for _ in range(arguments.rounds):
            for name, results in found.items():
                results.append(_in_own_process(name, folder))
                print(f"{name}: {results[-1]}", flush=True)
        _print(found, arguments.images * arguments.names)


def _in_own_process(name: str, folder: Path) -> dict[str, float]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.engines",
        "--run",
        name,
        "--folder",
        str(folder),
    ]
    environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(name: str, folder: Path) -> dict[str, float]:
    """Return the seconds of the start and of the run."""
    options: dict[str, Any] = {"model": "drawn", "precision": "float32"}
    with tempfile.TemporaryDirectory() as work, _started(name) as engine:
        started = time.perf_counter()
        fp.embed(str(folder / "0"), Path(work, "few"), engine=engine, limit=256, **options)
        start = time.perf_counter() - started
        features = fp.embed(str(folder), Path(work, "all"), engine=engine, **options)
        assert features.summary.failed == 0
        return {"start": round(start, 2), "seconds": round(features.summary.seconds, 2)}


@contextlib.contextmanager
def _started(name: str) -> Iterator[Engine]:
    cores = available_cores()
    if name == "local":
        with fp.LocalEngine(cores, preload=("featurepress.embedding.shard",)) as local:
            yield local
    elif name == "spark":
        with fp.engines.Spark(master=f"local[{cores}]") as spark:
            yield spark
    else:
        import ray

        ray.init("local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
        yield fp.engines.Ray()
        ray.shutdown()


def _print(found: dict[str, list[dict[str, float]]], n_images: int) -> None:
    print(f"{headline()}; {n_images:,} references\n")
    speeds = {name: n_images / statistics.median(r["seconds"] for r in results) for name, results in found.items()}
    print("| engine | start, s | images/s | of local |\n|---|---|---|---|")
    for name, results in found.items():
        start = statistics.median(r["start"] for r in results)
        ratio = speeds[name] / speeds.get("local", speeds[name])
        print(f"| {name} | {start:.1f} | {speeds[name]:,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
