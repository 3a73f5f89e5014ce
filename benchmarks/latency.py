"""Speed with and without 20 ms added to every request of a bucket, alternately on the same images.

    python -m benchmarks.latency [--images N] [--rounds N] [--precision P]

A folder replaces the bucket, for images and for features: reading an image, and every request for the feature set,
takes 20 ms more. Compare by the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.speed import SHARED, copy_images
from featurepress.models.catalog import find_card
from featurepress.runs.verbs import run_plan
from featurepress.testing import delayed_source, draft_plan
from tests.storages import DelayedStorage

DELAY_SECONDS = 0.02


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="float32")
    arguments = parser.parse_args()
    speeds: dict[float, list[float]] = {0.0: [], DELAY_SECONDS: []}
    with tempfile.TemporaryDirectory() as work:
        images = copy_images(SHARED / "data", Path(work, "images"), arguments.images)
        for number in range(arguments.rounds):
            for delay_seconds, results in speeds.items():
                out = Path(work, f"out-{number}-{delay_seconds}")
                results.append(images_per_second(images, out, delay_seconds, arguments.precision))
                print(f"{delay_seconds * 1000:3.0f} ms: {results[-1]:,.0f} images/s", flush=True)
    without, with_delay = map(statistics.median, speeds.values())
    print(f"ratio {with_delay / without:.2f}")


def images_per_second(images: Path, out: Path, delay_seconds: float, precision: str) -> float:
    """Embed with the embedded model: MobileNetV2 0.5 at 96."""
    storage = DelayedStorage(str(out), delay_seconds)
    source = delayed_source(str(images), delay_seconds=delay_seconds)
    plan = draft_plan(storage, source, backbone=find_card("embedded").backbone("avg"), precision=precision)
    return float(run_plan(plan).summary.images_per_second)


if __name__ == "__main__":
    main()
