"""Speed of `embed` and of other tools that do the same job, in one run.

    python -m benchmarks.peers [--keep FOLDER] [--only NAME...] [--rounds N]

MobileNetV2 1.0 at 96 with random weights, 12,000 images of 100x100, pooled features into Parquet (the notebook's
job keeps all 11,520 numbers and writes CSV, for the images in its folder layout). Each peer runs its own script in
its own environment, which is installed first; `--keep` keeps environments and images for the next time. Each tool
runs twice per round, on a few images and on all: the second gives the speed of the whole process (the threads and
Ray Data exclude their start), the difference gives the speed without the start. Our engines for clusters embed
every image under five names. Medians of the rounds. `auto` uses bfloat16 only if it is accurate for the images of
the run; with random weights it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed import SHARED, copy_images, headline, link_images
from featurepress.models.backbone import supports_bfloat16
from featurepress.models.catalog import find_card

BASELINES = SHARED / "baselines"
N_IMAGES, N_FEW = 12_000, 256
N_NAMES = 5  # of every image for our engines, which are made for more than 12 seconds of work
N_FEW_FRUITS = 64  # for the notebook's job, which is slower
PRECISIONS = ("float32", "bfloat16", "auto")
ENGINES = {"Spark": ("--engine", "spark", "--master", "local[*]"), "Ray": ("--engine", "ray")}


@dataclass(frozen=True)
class Peer:
    """A tool to compare with: its script, the packages it needs, and its arguments."""

    name: str
    script: str
    needs: tuple[str, ...]
    arguments: tuple[str, ...] = ("IMAGES",)
    rounds: int | None = None  # None: as requested


MODEL = ("tensorflow-cpu", "tf2onnx", "onnx", "opencv-python-headless")
PEERS = (
    Peer(
        "notebook's job, Spark",
        "notebook_spark.py",
        ("pyspark", "tensorflow-cpu", "pandas", "pyarrow"),
        ("FRUITS",),
        1,
    ),
    Peer(
        "tuned Spark",
        "tuned_spark.py",
        ("pyspark", "tensorflow-cpu", "pandas", "pyarrow", "opencv-python-headless"),
        rounds=1,
    ),
    Peer(
        "Ray Data",
        "ray_data.py",
        ("ray[data]", "pandas", "onnxruntime", "opencv-python-headless", "pillow"),
        ("IMAGES", "NUMBER"),
    ),
    Peer("Daft", "daft_frame.py", ("daft", "onnxruntime", "numpy"), ("IMAGES", "NUMBER")),
    Peer(
        "threads, float32",
        "threads_openvino.py",
        ("openvino", "opencv-python-headless", "pyarrow"),
        ("f32", "avg", "IMAGES", "8"),
    ),
    Peer(
        "threads, bfloat16",
        "threads_openvino.py",
        ("openvino", "opencv-python-headless", "pyarrow"),
        ("bf16", "avg", "IMAGES", "16"),
    ),
)

_OURS = """
import json, sys, time
import featurepress as fp
from featurepress.models.verbs import add
add(sys.argv[1], "peers", mode="tf")
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder for environments and images, reused if it exists")
    parser.add_argument("--only", nargs="*", help="names of the peers to run")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="featurepress-peers-") as scratch:
        place = (arguments.keep or Path(scratch)).absolute()
        place.mkdir(parents=True, exist_ok=True)
        prepare(place)
        _make_model(place)
        chosen = [peer for peer in PEERS if not arguments.only or peer.name in arguments.only]
        for peer in chosen:
            environment(place, peer.needs)
        print(f"{headline()}; medians of {arguments.rounds} rounds, Spark once\n", flush=True)
        found = measure(place, chosen, arguments.rounds)
        print_table({name: timing.whole for name, timing in found.items()})
        print(f"\nWithout the start, from {N_FEW} and all images:\n")
        print_table({name: timing.without_start for name, timing in found.items()})
        starts = ", ".join(f"{name} {timing.start:.1f}" for name, timing in found.items())
        print(f"\nThe start, s: {starts}")


@dataclass(frozen=True)
class Timing:
    """Numbers of images and seconds of one tool, for a few images and for all."""

    few: tuple[int, float]
    all: tuple[int, float]

    @property
    def whole(self) -> float:
        """Images per second, including the start."""
        return self.all[0] / self.all[1]

    @property
    def without_start(self) -> float:
        """Images per second of those that only the long run has."""
        return (self.all[0] - self.few[0]) / (self.all[1] - self.few[1])

    @property
    def start(self) -> float:
        """Seconds that do not depend on the number of images."""
        return self.few[1] - self.few[0] / self.without_start


def prepare(place: Path) -> None:
    """Copy the images, and a few of them, into folders."""
    if (place / "few-fruits").is_dir():
        return
    for name, number in (("images", N_IMAGES), ("few", N_FEW)):
        copy_images(SHARED / "data", place / name, number)
    for number in range(N_NAMES):
        link_images(place / "images", place / "many" / str(number))
    for path in sorted((SHARED / "data" / "fruits" / "Test").rglob("*.jpg"))[:N_FEW_FRUITS]:
        target = place / "few-fruits" / "Test" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def environment(place: Path, needs: tuple[str, ...]) -> Path:
    """Return the Python of an environment with some packages; create it if it is missing."""
    name = re.sub(r"[^a-z0-9]+", "-", "-".join(sorted(needs)))
    folder = place / "environments" / name
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *needs], place)
        (folder / ".ready").touch()
    return python


def _make_model(place: Path) -> None:
    """Create model.keras and model.onnx, which all tools run."""
    if not (place / "model.onnx").exists():
        _run([str(environment(place, MODEL)), str(BASELINES / "make_model.py")], place)


def _run(command: list[str], folder: Path, **more: str) -> str:
    """Run a command in a folder; return its output."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "SPARK_LOCAL_IP": "127.0.0.1", **more}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=3600, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def measure(place: Path, peers: list[Peer], rounds: int) -> dict[str, Timing]:
    """Return the timing of each tool; in each round all of them run."""
    seen: dict[str, list[tuple[Run, Run]]] = {}
    home = {"FEATUREPRESS_HOME": str(place / "home")}
    _run([sys.executable, "-c", _OURS, str(place / "model.keras")], Path.cwd(), **home)
    for number in range(rounds):
        for peer in peers:
            if number < (rounds if peer.rounds is None else peer.rounds):
                runs = _peer(place, peer, few=True), _peer(place, peer, few=False)
                seen.setdefault(peer.name, []).append(runs)
                print(f"# {peer.name}: {runs}", file=sys.stderr, flush=True)
        for name, precision, engine in _our_ways():
            few = _ourselves(place, "few", precision, home, *engine)
            runs = few, _ourselves(place, "many" if engine else "images", precision, home, *engine)
            seen.setdefault(name, []).append(runs)
            print(f"# {name}: {runs}", file=sys.stderr, flush=True)
    return {name: Timing(*map(_median, zip(*runs, strict=True))) for name, runs in seen.items()}


Run = tuple[int, float]  # the number of images, and the seconds they took


def _median(runs: Iterable[Run]) -> Run:
    numbers, seconds = zip(*runs, strict=True)
    return numbers[0], statistics.median(seconds)


def _our_ways() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    has_bfloat16 = supports_bfloat16(find_card("embedded").backbone("avg"))
    for precision in PRECISIONS if has_bfloat16 else ("float32",):
        yield f"featurepress, {precision}", precision, ()
    for name, engine in ENGINES.items():
        yield f"featurepress on {name}, float32", "float32", engine


def _peer(place: Path, peer: Peer, *, few: bool) -> Run:
    fruits = place / "few-fruits" if few else SHARED / "data" / "fruits"
    known = {
        "IMAGES": str(place / ("few" if few else "images")),
        "NUMBER": str(N_FEW if few else N_IMAGES),
        "FRUITS": str(fruits),
    }
    words = [known.get(word, word) for word in peer.arguments]
    work = place / "work"
    work.mkdir(exist_ok=True)
    for name in ("model.keras", "model.onnx"):
        if not (work / name).exists():
            shutil.copy(place / name, work / name)
    python = environment(place, peer.needs)
    output = _run([str(python), str(BASELINES / peer.script), *words], work, TMPDIR=str(work))
    shutil.rmtree(work)
    match = re.search(r"(\d+) (?:imgs |images )?([\d.]+) s\b", output)
    if match is None:
        sys.exit(f"{peer.name} printed: {output}")
    return int(match[1]), float(match[2])


def _ourselves(place: Path, images: str, precision: str, home: dict[str, str], *engine: str) -> Run:
    """Time a whole command, from its start to its end."""
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "featurepress", "embed", str(place / images), "--out", str(out)]
    started = time.perf_counter()
    how = ["--model", "peers", "--precision", precision, "--json", *engine]
    printed = _run([*command, *how], Path.cwd(), PYSPARK_PYTHON=sys.executable, **home)
    seconds = time.perf_counter() - started
    result = json.loads(printed)
    assert result["failed"] == 0, result
    return int(result["embedded"]), seconds


def print_table(speeds: dict[str, float]) -> None:
    """Print the speeds, slowest first, and the ratio of ours to each."""
    ours = {name: speed for name, speed in speeds.items() if name.startswith("featurepress")}
    print("| tool | images/s | " + " | ".join(f"{name}: times as fast" for name in ours) + " |")
    print("|---|---|" + "---|" * len(ours))
    for name, speed in sorted(speeds.items(), key=lambda item: item[1]):
        ratios = " | ".join(f"{one / speed:.1f}" for one in ours.values())
        print(f"| {name} | {speed:,.0f} | {ratios} |" if speed >= 100 else f"| {name} | {speed:.1f} | {ratios} |")


if __name__ == "__main__":
    main()
