"""Peak memory of a whole run at 10,000 and at 100,000 images, and start-up times.

    python -m benchmarks.memory [--small N] [--large N] [--bucket | --spark]

With --bucket, images and features are in buckets of a server on this machine, which the tests use, too. With
--spark, the engine is Spark's local[2], parts have 64 images, so that there are many tasks, and the driver's
process and Spark's Java process are reported separately.

Memory is the largest sum of the proportional set size of all processes of the run (pages that several processes
share are counted once), sampled ten times per second from /proc. Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from featurepress.demo.orchard import draw_images
from tests.servers.s3 import start_fast_s3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--bucket", action="store_true")
    parser.add_argument("--spark", action="store_true")
    arguments = parser.parse_args()
    if arguments.spark:
        _on_spark(arguments.small, arguments.large)
        return
    if arguments.bucket:
        _in_a_bucket(arguments.small, arguments.large)
        return
    with tempfile.TemporaryDirectory(prefix="featurepress-bench-") as scratch:
        work = Path(scratch)
        print("| images of 100x100 | pooling | peak memory of all processes, MB | seconds |")
        print("|---|---|---|---|")
        peaks: dict[tuple[str, int], float] = {}
        for n in (arguments.small, arguments.large):
            images = work / f"images-{n}"
            draw_images(images, n)
            for pooling in ("avg", "flatten"):
                if pooling == "flatten" and n == arguments.large:
                    continue  # 4.6 GB of features; the parts are of the same size as in the small run
                peak, seconds = _run(str(images), str(work / f"features-{n}-{pooling}"), pooling)
                peaks[pooling, n] = peak
                print(f"| {n:,} | {pooling} | {peak / 1e6:.0f} | {seconds:.1f} |", flush=True)
        ratio = peaks["avg", arguments.large] / peaks["avg", arguments.small]
        print(f"\nlarge to small: {ratio:.2f}")
        _starts(work)


def _in_a_bucket(small: int, large: int) -> None:
    with tempfile.TemporaryDirectory(prefix="featurepress-bench-") as scratch, start_fast_s3() as server:
        os.environ.update(server.environment)
        peaks = []
        for n in (small, large):
            bucket = server.bucket()
            server.load(bucket, draw_images(Path(scratch, f"images-{n}"), n)[0].parents[1], "in/")
            peak, seconds = _run(f"s3://{bucket}/in/", f"s3://{bucket}/out", "avg")
            peaks.append(peak)
            print(f"{n:,} images in a bucket: {peak / 1e6:.0f} MB, {seconds:.1f} s", flush=True)
        print(f"large to small: {peaks[1] / peaks[0]:.2f}")


def _on_spark(small: int, large: int) -> None:
    more = ("--engine", "spark", "--master", "local[2]", "--images-per-part", "64")
    os.environ |= {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    with tempfile.TemporaryDirectory(prefix="featurepress-bench-") as scratch:
        print("| images of 100x100 | tasks | driver, MB | Java, MB | all processes, MB | seconds |")
        print("|---|---|---|---|---|---|")
        for n in (small, large):
            images = Path(scratch, f"images-{n}")
            draw_images(images, n)
            peaks, seconds = _watched(str(images), str(Path(scratch, f"features-{n}")), "avg", *more)
            sizes = " | ".join(f"{peaks[name] / 1e6:.0f}" for name in ("driver", "java", "all"))
            print(f"| {n:,} | {-(-n // 64):,} | {sizes} | {seconds:.1f} |", flush=True)


def _run(source: str, out: str, pooling: str) -> tuple[float, float]:
    peaks, seconds = _watched(source, out, pooling)
    return peaks["all"], seconds


def _watched(source: str, out: str, pooling: str, *more: str) -> tuple[dict[str, float], float]:
    """Run the command; return the peaks of memory in bytes, of the driver, of Java and of all, and the seconds."""
    command = ["embed", source, "--model", "embedded", "--out", out, "--pooling", pooling, *more]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "featurepress", *command], stderr=subprocess.DEVNULL)
    peaks = dict.fromkeys(("driver", "java", "all"), 0.0)
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks))
    watcher.start()
    code = process.wait()
    watcher.join()
    assert code == 0, f"exit code {code}"
    return peaks, time.perf_counter() - started


def _watch(pid: int, peaks: dict[str, float]) -> None:
    """Follow a process and its children until it ends."""
    try:
        parent = psutil.Process(pid)
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            sizes = dict.fromkeys(peaks, 0)
            for process in (parent, *parent.children(recursive=True)):
                try:
                    size = process.memory_full_info().pss
                    sizes["all"] += size
                    sizes["driver"] += size * (process == parent)
                    sizes["java"] += size * (process.name() == "java")
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
            peaks.update({name: max(peaks[name], sizes[name]) for name in peaks})
            time.sleep(0.1)
    except psutil.NoSuchProcess:
        return


def _starts(work: Path) -> None:
    """Print the median time of --help and of one image, each in a fresh process."""
    one = draw_images(work / "one", 1)[0]
    module = [sys.executable, "-m", "featurepress"]
    for name, command in (
        ("featurepress --help", [*module, "--help"]),
        ("one image", [*module, "embed", str(one), "--model", "embedded", "--out", str(work / "one-{time}-N")]),
    ):
        seconds = []
        for number in range(7):
            words = [word.replace("-N", f"-{number}") for word in command]
            started = time.perf_counter()
            subprocess.run(words, check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
        print(f"{name}: {sorted(seconds)[3]:.2f} s (median of 7)")


if __name__ == "__main__":
    main()
