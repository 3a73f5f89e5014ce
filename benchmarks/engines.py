"""The engines side by side on the same cores: local, Spark's local[N], Ray.

    python -m benchmarks.engines [--images N] [--names N] [--rounds N] [--only NAME...]

MobileNetV2 1.0 at 96, drawn weights, float32, pooled; N pictures of 100x100, each under several names. Every
engine runs in a process of its own: it is started, embeds a few pictures so that every worker has loaded the
model, and then the whole. The start is told apart.
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
from benchmarks.speed import SHARED, headline, lay_out_pictures, link_pictures
from benchmarks.update import draw_model
from featurepress.engines import Engine
from featurepress.settings import available_cores

NAMES = ("local", "spark", "ray")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--names", type=int, default=5, help="under how many names each picture lies")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--pictures", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        print(json.dumps(measure(asked.run, asked.pictures)))
        return
    with tempfile.TemporaryDirectory(prefix="featurepress-engines-") as work:
        os.environ["FEATUREPRESS_HOME"] = str(Path(work, "home"))
        draw_model(Path(work), "drawn")
        pictures = lay_out_pictures(SHARED / "data", Path(work, "pictures", "0"), asked.images).parent
        for number in range(1, asked.names):
            link_pictures(pictures / "0", pictures / str(number))
        found: dict[str, list[dict[str, float]]] = {name: [] for name in asked.only}
        for _ in range(asked.rounds):
            for name, results in found.items():
                results.append(_in_a_process(name, pictures))
                print(f"{name}: {results[-1]}", flush=True)
        _print(found, asked.images * asked.names)


def _in_a_process(name: str, pictures: Path) -> dict[str, float]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.engines",
        "--run",
        name,
        "--pictures",
        str(pictures),
    ]
    environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(name: str, pictures: Path) -> dict[str, float]:
    """Give the seconds of the start and of the run."""
    options: dict[str, Any] = {"model": "drawn", "precision": "float32"}
    with tempfile.TemporaryDirectory() as work, _started(name) as engine:
        begun = time.perf_counter()
        fp.embed(str(pictures / "0"), Path(work, "few"), engine=engine, limit=256, **options)
        start = time.perf_counter() - begun
        features = fp.embed(str(pictures), Path(work, "all"), engine=engine, **options)
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
