"""How well regions find several fruits on one picture: precision and recall of the set of labels.

    python -m benchmarks.regions [--scenes 120] [--background]
    python -m benchmarks.regions --train FOLDER --pictures FOLDER --annotate FOLDER   # of your own: what is found

Scenes of the demo, whose fruits are known, are told by a model that has seen single fruits on white. A table row a
threshold: of the labels that were told, the share that is there (precision), and of those that are there, the share
that was told (recall).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import featurepress as fp
from featurepress.analysis import Classifier
from featurepress.demo.orchard import KINDS, draw_orchard, draw_scene
from featurepress.learning.model import TrainedModel
from featurepress.learning.predictions import UNKNOWN, Predictions

THRESHOLDS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
ASKED: dict[str, Any] = {"model": "embedded", "precision": "float32", "pooling": "avg"}


def draw_scenes(folder: Path, n: int) -> dict[str, set[str]]:
    """Draw scenes of 2 to 5 kinds; give the kinds on each."""
    folder.mkdir(parents=True)
    truth = {}
    for i in range(n):
        rng = np.random.default_rng([7, i])
        scene = draw_scene(rng.choice(KINDS, rng.integers(2, 6), replace=False).tolist(), random_state=rng)
        path = folder / f"scene-{i:03d}.jpg"
        cv2.imwrite(str(path), scene.pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        truth[str(path)] = {kind for kind, _ in scene.fruits}
    return truth


def trained(folder: Path, work: Path) -> TrainedModel:
    """Train on pictures of one fruit each, labelled by their folders."""
    features = fp.embed(str(folder), work / "features", labels="parent", max_failures=1.0, **ASKED)
    assert features.labels is not None
    classifier = Classifier().fit(features.to_numpy(), features.labels)
    print(f"{len(features):,} pictures of {len(classifier.classes_)} kinds, C = {classifier.regularization_:g}")
    return TrainedModel(classifier, features.plan.backbone, embed_settings=ASKED).save(work / "model")


def print_scores(what: str, found: Predictions, truth: dict[str, set[str]]) -> None:
    """Print precision and recall of the label set for each threshold."""
    rows = found.to_table().select(["uri", "label", "probability"]).to_pylist()
    for threshold in THRESHOLDS:
        told: dict[str, set[str]] = {uri: set() for uri in truth}
        for row in rows:
            if row["probability"] >= threshold and row["label"] != UNKNOWN:
                told[row["uri"]].add(row["label"])
        right = sum(len(told[uri] & truth[uri]) for uri in truth)
        precision = right / max(1, sum(map(len, told.values())))
        recall = right / sum(map(len, truth.values()))
        mean = 2 * precision * recall / max(1e-9, precision + recall)
        print(f"| {what} | {threshold:g} | {precision:.2f} | {recall:.2f} | {mean:.2f} |")


def main() -> None:
    """Measure, or tell pictures of one's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=120)
    parser.add_argument("--background", action="store_true", help="a class of crops of empty tables")
    parser.add_argument("--train", type=Path, help="pictures of one thing each, in folders named so")
    parser.add_argument("--pictures", type=Path, help="pictures of several")
    parser.add_argument("--annotate", type=Path, help="free folder for the annotated copies")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if given.train is None:
            draw_orchard(work / "orchard", scenes=0, broken=False, backgrounds=120 if given.background else 0)
        source = given.train or work / "orchard" / "Training"
        model = trained(source, work)
        truth = {} if given.pictures else draw_scenes(work / "scenes", given.scenes)
        options: dict[str, Any] = {"annotate": True} if given.pictures else {"threshold": 0.01}
        for what in ("regions", "tiles"):
            out, started = work / what, time.perf_counter()
            out = given.annotate / what if given.annotate else out
            found = fp.predict(
                model, str(given.pictures or work / "scenes"), out, **{"images_per_part": 16, what: True, **options}
            )
            n = found.summary["pictures"]
            print(f"{what}: {n / (time.perf_counter() - started):.1f} pictures a second, {os.cpu_count()} cores")
            if truth:
                print_scores("cells" if what == "regions" else "tiles", found, truth)
            else:
                print(found.counts)


if __name__ == "__main__":
    main()
