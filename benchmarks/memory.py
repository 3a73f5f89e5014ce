"""Peak memory of a whole run at 10,000 and at 100,000 pictures, and start-up times.

    python -m benchmarks.memory [--small N] [--large N]

Memory is the largest sum, over all processes of the run, of their proportional set size (pages that several
processes share are counted once), sampled ten times a second from /proc. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from featurepress.demo import draw_pictures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="featurepress-bench-") as scratch:
        work = Path(scratch)
        print("| pictures of 100x100 | pooling | peak memory of all processes, MB | seconds |")
        print("|---|---|---|---|")
        peaks: dict[tuple[str, int], float] = {}
        for n in (arguments.small, arguments.large):
            pictures = work / f"pictures-{n}"
            draw_pictures(pictures, n)
            for pooling in ("avg", "flatten"):
                if pooling == "flatten" and n == arguments.large:
                    continue  # 4.6 GB of features; the parts are of the same size as in the small run
                peak, seconds = _run(pictures, work / f"features-{n}-{pooling}", pooling)
                peaks[pooling, n] = peak
                print(f"| {n:,} | {pooling} | {peak / 1e6:.0f} | {seconds:.1f} |", flush=True)
        ratio = peaks["avg", arguments.large] / peaks["avg", arguments.small]
        print(f"\nlarge to small: {ratio:.2f}")
        _starts(work)


def _run(pictures: Path, out: Path, pooling: str) -> tuple[float, float]:
    command = ["embed", str(pictures), "--model", "embedded", "--out", str(out), "--pooling", pooling]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "featurepress", *command], stderr=subprocess.DEVNULL)
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak))
    watcher.start()
    code = process.wait()
    watcher.join()
    assert code == 0, f"exit code {code}"
    return peak[0], time.perf_counter() - started


def _watch(pid: int, peak: list[float]) -> None:
    """Follow a process and its children until it ends."""
    try:
        parent = psutil.Process(pid)
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for process in (parent, *parent.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
            peak[0] = max(peak[0], total)
            time.sleep(0.1)
    except psutil.NoSuchProcess:
        return


def _starts(work: Path) -> None:
    """Print the median time of --help and of one picture, each in a fresh process."""
    one = draw_pictures(work / "one", 1)[0]
    module = [sys.executable, "-m", "featurepress"]
    for name, command in (
        ("featurepress --help", [*module, "--help"]),
        ("one picture", [*module, "embed", str(one), "--model", "embedded", "--out", str(work / "one-{time}-N")]),
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
