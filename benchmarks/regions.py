"""Precision and recall of the labels of regions, on images with several fruits.

    python -m benchmarks.regions [--scenes 120] [--background]
    python -m benchmarks.regions --train FOLDER --images FOLDER --annotate FOLDER   # your own images

A model trained on single fruits on white predicts scenes of the demo, whose fruits are known. For each threshold,
the table has the share of predicted labels that are correct (precision), and of correct labels that were predicted
(recall).
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
EMBED_OPTIONS: dict[str, Any] = {"model": "embedded", "precision": "float32", "pooling": "avg"}


def draw_scenes(folder: Path, n: int) -> dict[str, set[str]]:
    """Draw scenes of 2 to 5 kinds; return the kinds in each."""
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
    """Train on images of one fruit each, labelled by their folders."""
    features = fp.embed(str(folder), work / "features", labels="parent", max_failures=1.0, **EMBED_OPTIONS)
    assert features.labels is not None
    classifier = Classifier().fit(features.to_numpy(), features.labels)
    print(f"{len(features):,} images of {len(classifier.classes_)} kinds, C = {classifier.regularization_:g}")
    return TrainedModel(classifier, features.plan.backbone, embed_settings=EMBED_OPTIONS).save(work / "model")


def print_scores(what: str, result: Predictions, truth: dict[str, set[str]]) -> None:
    """Print precision and recall of the label set for each threshold."""
    rows = result.to_table().select(["uri", "label", "probability"]).to_pylist()
    for threshold in THRESHOLDS:
        predicted: dict[str, set[str]] = {uri: set() for uri in truth}
        for row in rows:
            if row["probability"] >= threshold and row["label"] != UNKNOWN:
                predicted[row["uri"]].add(row["label"])
        correct = sum(len(predicted[uri] & truth[uri]) for uri in truth)
        precision = correct / max(1, sum(map(len, predicted.values())))
        recall = correct / sum(map(len, truth.values()))
        mean = 2 * precision * recall / max(1e-9, precision + recall)
        print(f"| {what} | {threshold:g} | {precision:.2f} | {recall:.2f} | {mean:.2f} |")


def main() -> None:
    """Measure, or predict your own images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=120)
    parser.add_argument("--background", action="store_true", help="a class of crops of empty tables")
    parser.add_argument("--train", type=Path, help="images of one object each, in a folder per label")
    parser.add_argument("--images", type=Path, help="images of several objects")
    parser.add_argument("--annotate", type=Path, help="new folder for the annotated copies")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if arguments.train is None:
            draw_orchard(work / "orchard", scenes=0, broken=False, backgrounds=120 if arguments.background else 0)
        source = arguments.train or work / "orchard" / "Training"
        model = trained(source, work)
        truth = {} if arguments.images else draw_scenes(work / "scenes", arguments.scenes)
        options: dict[str, Any] = {"annotate": True} if arguments.images else {"threshold": 0.01}
        for what in ("regions", "tiles"):
            out, started = work / what, time.perf_counter()
            out = arguments.annotate / what if arguments.annotate else out
            result = fp.predict(
                model,
                str(arguments.images or work / "scenes"),
                out,
                **{"images_per_part": 16, what: True, **options},
            )
            n = result.summary["images"]
            print(f"{what}: {n / (time.perf_counter() - started):.1f} images per second, {os.cpu_count()} cores")
            if truth:
                print_scores("cells" if what == "regions" else "tiles", result, truth)
            else:
                print(result.counts)


if __name__ == "__main__":
    main()
