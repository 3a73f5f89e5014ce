"""Microseconds of each stage per image on one core, in one table.

    python -m benchmarks.stages [--data DIR]

Each stage runs alone over the same images, with featurepress's own code, in a process like that of a worker.
"together" is a run of `embed` with one worker. Its difference to the sum is the interference of the stages (caches,
the interpreter, the thread that reads ahead) and the cost of a part (attempt, fsync, receipt).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.speed import SHARED, cells, embed, headline, image_sets
from featurepress.images import decode, preprocess
from featurepress.ledger.parts import PartWriter, Row
from featurepress.models.backbone import load_backbone
from featurepress.models.catalog import find_card
from featurepress.process import Child
from featurepress.settings import ImageSettings
from featurepress.specs import ImageRef, Receipt
from featurepress.testing import MemoryStorage

STAGES = ("read", "decode", "resize", "hash", "infer", "encode")
COLUMNS = (*STAGES, "sum", "together")
N_MEASURED = 480


def main() -> None:
    """Measure and print."""
    from benchmarks.stages import measure  # under the name that a child imports

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder with fruits/ and photos/")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="featurepress-bench-") as scratch:
        sets = image_sets(arguments.data, Path(scratch), share=4)
        print(f"{headline()}; microseconds per image on one core, best of 3\n")
        print("| images | features | precision | " + " | ".join(COLUMNS) + " |")
        print("|" + "---|" * (3 + len(COLUMNS)), flush=True)
        for name, pooling, precision in cells():
            if (folder := sets[name]) is None:
                continue
            paths = sorted(str(path) for path in folder.rglob("*.*"))[:N_MEASURED]
            with contextlib.closing(Child()) as child:
                costs = child.call(measure, paths, pooling, precision)
            runs = [embed(Path(scratch), folder, pooling=pooling, precision=precision, workers=1) for _ in range(3)]
            values = [*costs, sum(costs), min(1e6 / run["embedding"] for run in runs)]
            print(
                f"| {name} | {pooling} | {precision} | " + " | ".join(f"{v:,.0f}" for v in values) + " |",
                flush=True,
            )


def measure(paths: Sequence[str], pooling: str, precision: str) -> list[float]:
    """Return the microseconds per image of each of `STAGES`."""
    spec = find_card("embedded").backbone(pooling)
    backbone = load_backbone(spec, precision)
    max_pixels = ImageSettings().max_pixels
    contents = [Path(path).read_bytes() for path in paths]
    images = [decode(content, max_pixels=max_pixels) for content in contents]
    batch = np.zeros((backbone.batch_size, spec.preprocess.height, spec.preprocess.width, 3), np.uint8)
    for row, pixels in zip(batch, images, strict=False):
        preprocess(pixels, spec.preprocess, row)
    features = backbone(batch).copy()
    starts = range(0, len(paths), len(batch))
    receipt = Receipt(0, 1, len(paths), len(paths), 0, {}, 0, 0.0, precision, "", "", {})
    rows = [Row(ImageRef(path, 0, 0, ""), 1, 1, "0" * 64) for path in paths]

    def resize() -> None:
        for pixels in images:
            preprocess(pixels, spec.preprocess, batch[0])

    def encode() -> None:
        with contextlib.closing(PartWriter((), spec.n_features)) as part:
            for start in starts:
                part.add(rows[start : start + len(batch)], features[: len(paths) - start])
            part.commit(MemoryStorage(), receipt, ())

    stages: tuple[Callable[[], object], ...] = (
        lambda: [Path(path).read_bytes() for path in paths],
        lambda: [decode(content, max_pixels=max_pixels) for content in contents],
        resize,
        lambda: [hashlib.sha256(content).hexdigest() for content in contents],
        lambda: [backbone(batch) for _ in starts],
        encode,
    )
    return [_cost(stage) / len(paths) for stage in stages]


def _cost(stage: Callable[[], object]) -> float:
    """Return the microseconds of the best of three calls."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        stage()
        times.append(1e6 * (time.perf_counter() - started))
    return min(times)


if __name__ == "__main__":
    main()
