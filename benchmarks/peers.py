"""Speed of `embed` beside other tools that do the same job, side by side in one run.

    python -m benchmarks.peers [--keep FOLDER] [--only NAME...] [--rounds N]

MobileNetV2 1.0 at 96 with drawn weights, 12,000 pictures of 100x100, pooled features into Parquet (the notebook's
job keeps all 11,520 numbers and writes CSV, on as many pictures as its folder layout has). Each peer runs its own
script in an environment of its own, which is installed first; `--keep` keeps environments and pictures for
the next time. Every figure but that of the threads, which leave out their start, is a whole process's; the median
of the rounds. `auto` takes bfloat16 only where it is faithful to the run's own pictures; drawn weights are not.
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
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed import SHARED, headline, lay_out_pictures
from featurepress.backbones import supports_bfloat16
from featurepress.models.catalog import find_card

BASELINES = SHARED / "baselines"
N_IMAGES = 12_000
PRECISIONS = ("float32", "bfloat16", "auto")
ENGINES = {"Spark": ("--engine", "spark", "--master", "local[*]"), "Ray": ("--engine", "ray")}


@dataclass(frozen=True)
class Peer:
    """A tool beside which we stand: its script, what it needs, and on what it runs."""

    name: str
    script: str
    needs: tuple[str, ...]
    arguments: tuple[str, ...] = ("PICTURES",)
    rounds: int | None = None  # None: as asked


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
        ("PICTURES", str(N_IMAGES)),
    ),
    Peer("Daft", "daft_frame.py", ("daft", "onnxruntime", "numpy"), ("PICTURES", str(N_IMAGES))),
    Peer(
        "threads, float32",
        "threads_openvino.py",
        ("openvino", "opencv-python-headless", "pyarrow"),
        ("f32", "avg", "PICTURES", "8"),
    ),
    Peer(
        "threads, bfloat16",
        "threads_openvino.py",
        ("openvino", "opencv-python-headless", "pyarrow"),
        ("bf16", "avg", "PICTURES", "16"),
    ),
)

_OURS = """
import json, sys, time
import featurepress as fp
from featurepress.models.catalog import add_model
from featurepress.settings import Choices
add_model(sys.argv[1], "peers", Choices(mode="tf"))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder for environments and pictures, used again if it is there")
    parser.add_argument("--only", nargs="*", help="names of the peers to run")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="featurepress-peers-") as scratch:
        place = (asked.keep or Path(scratch)).absolute()
        place.mkdir(parents=True, exist_ok=True)
        pictures = place / "pictures"
        if not pictures.is_dir():
            lay_out_pictures(SHARED / "data", pictures, N_IMAGES)
        _make_model(place)
        chosen = [peer for peer in PEERS if not asked.only or peer.name in asked.only]
        for peer in chosen:
            environment(place, peer.needs)
        print(f"{headline()}; medians of {asked.rounds} rounds, Spark once\n", flush=True)
        speeds = measure(place, chosen, asked.rounds)
        print_table(speeds)


def environment(place: Path, needs: tuple[str, ...]) -> Path:
    """Give the Python of an environment with some packages, made if need be."""
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
    """Make model.keras and model.onnx, which all sides run."""
    if not (place / "model.onnx").exists():
        _run([str(environment(place, MODEL)), str(BASELINES / "make_model.py")], place)


def _run(command: list[str], folder: Path, **more: str) -> str:
    """Run a command in a folder; give what it prints."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "SPARK_LOCAL_IP": "127.0.0.1", **more}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=3600, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def measure(place: Path, peers: list[Peer], rounds: int) -> dict[str, float]:
    """Give images a second by name; in each round everybody runs once, ourselves as well."""
    seen: dict[str, list[float]] = {}
    home = {"FEATUREPRESS_HOME": str(place / "home")}
    _run([sys.executable, "-c", _OURS, str(place / "model.keras")], Path.cwd(), **home)
    for number in range(rounds):
        for peer in peers:
            if number < (rounds if peer.rounds is None else peer.rounds):
                seen.setdefault(peer.name, []).append(_peer(place, peer))
        for precision in PRECISIONS if supports_bfloat16(find_card("embedded").backbone("avg")) else ("float32",):
            seen.setdefault(f"featurepress, {precision}", []).append(_ourselves(place, precision, home))
        for name, engine in ENGINES.items():
            speed = _ourselves(place, "float32", home, *engine)
            seen.setdefault(f"featurepress on {name}, float32", []).append(speed)
    return {name: statistics.median(values) for name, values in seen.items()}


def _peer(place: Path, peer: Peer) -> float:
    known = {"PICTURES": str(place / "pictures"), "FRUITS": str(SHARED / "data" / "fruits")}
    words = [known.get(word, word) for word in peer.arguments]
    work = place / "work"
    work.mkdir(exist_ok=True)
    for name in ("model.keras", "model.onnx"):
        if not (work / name).exists():
            shutil.copy(place / name, work / name)
    python = environment(place, peer.needs)
    output = _run([str(python), str(BASELINES / peer.script), *words], work, TMPDIR=str(work))
    shutil.rmtree(work)
    match = re.search(r"([\d.]+) im(?:g|ages)/s", output)
    if match is None:
        sys.exit(f"{peer.name} says: {output}")
    return float(match[1])


def _ourselves(place: Path, precision: str, home: dict[str, str], *engine: str) -> float:
    """Give images a second of a whole command, from its start to its end."""
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "featurepress", "embed", str(place / "pictures"), "--out", str(out)]
    started = time.perf_counter()
    how = ["--model", "peers", "--precision", precision, "--json", *engine]
    printed = _run([*command, *how], Path.cwd(), PYSPARK_PYTHON=sys.executable, **home)
    seconds = time.perf_counter() - started
    result = json.loads(printed)
    assert result["failed"] == 0, result
    return float(result["pressed"] / seconds)


def print_table(speeds: dict[str, float]) -> None:
    """Print the speeds, slowest first, and how many times as fast we are."""
    ours = {name: speed for name, speed in speeds.items() if name.startswith("featurepress")}
    print("| tool | images/s | " + " | ".join(f"{name}: times as fast" for name in ours) + " |")
    print("|---|---|" + "---|" * len(ours))
    for name, speed in sorted(speeds.items(), key=lambda item: item[1]):
        ratios = " | ".join(f"{one / speed:.1f}" for one in ours.values())
        print(f"| {name} | {speed:,.0f} | {ratios} |" if speed >= 100 else f"| {name} | {speed:.1f} | {ratios} |")


if __name__ == "__main__":
    main()
