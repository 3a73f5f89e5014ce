"""Accuracy of features that are reduced and stored in fewer bytes: the tables of docs/explanation/quality.md.

    python -m benchmarks.quality [--data DIR] [--weights DIR] [--sets NAME ...]

For two models and three sets of images: the accuracy of a linear probe (multinomial logistic regression) and of the
five nearest neighbours by cosine; for all features and after PCA to 128 and 64 numbers, each as float32, bfloat16
and float16. Everything is fitted only to the training images of its fold. The naive accuracy ignores
near-duplicates; the leak-aware one tests no image that has a near-duplicate in training.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import featurepress as fp
from benchmarks.speed import SHARED, headline
from featurepress.analysis import PCA, Classifier
from featurepress.analysis.near_duplicates import near_duplicate_groups, near_duplicate_threshold
from featurepress.analysis.scores import wilson_interval
from featurepress.analysis.splits import given_split
from featurepress.models.verbs import add

IMAGENET_FILE = "tf2_mobilenet_v2_1.0_224_ptq.tflite"
MODELS = ("embedded", "imagenet")
SETS = ("fruits", "grocery", "fruits-duplicates, kinds", "fruits-duplicates, folders")
COMPONENTS = (128, 64)
STORED = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes a number
KINDS = ("logistic", "knn")
FOLDS = 5

SET_COLUMNS = (
    "images, classes",
    "model",
    "near-duplicates from cosine",
    "groups of near-duplicates",
    "tested, naive",
    "tested, leak-aware",
    "left out, naive",
    "left out, leak-aware",
)
COLUMNS = (
    "model",
    "features",
    "stored as",
    "bytes of them",
    "bytes in Parquet",
    "linear, naive",
    "linear, leak-aware",
    "5-nn, naive",
    "5-nn, leak-aware",
)

Rows = npt.NDArray[np.int64]
Right = dict[
    tuple[str, str], npt.NDArray[np.bool_]
]  # (stored as, kind) -> whether the prediction of each row is correct


@dataclass(frozen=True)
class ImageSet:
    """The features of a set: float32 (n_samples, n_features), labels, hashes, and which rows are for testing.

    `parquet_bytes`: number of features -> bytes of an image in the parts.
    """

    X: npt.NDArray[np.float32]
    y: npt.NDArray[np.str_]
    hashes: npt.NDArray[np.str_]
    is_test: npt.NDArray[np.bool_] | None
    parquet_bytes: dict[int, float]


@dataclass(frozen=True)
class Fold:
    """Training rows, test rows, and the number of test rows left out because no training row has their class."""

    train: Rows
    test: Rows
    n_left_out: int = 0


@dataclass(frozen=True)
class Scheme:
    """Folds, the groups of near-duplicates that they keep whole, and the tested rows of each measurement."""

    folds: tuple[Fold, ...]
    groups: Rows | None
    counted: dict[str, Rows]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder with fruits/, grocery/, …")
    parser.add_argument("--weights", type=Path, default=SHARED / "weights", help=f"folder with {IMAGENET_FILE}")
    parser.add_argument("--sets", nargs="*", choices=SETS, default=SETS)
    arguments = parser.parse_args()
    for path in (arguments.weights / IMAGENET_FILE, *(arguments.data / folder_of(name) for name in arguments.sets)):
        if not path.exists():
            sys.exit(
                f"The benchmark of quality needs '{path}', which does not exist: name it with --data, --weights."
            )
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="featurepress-quality-") as work:
        os.environ["FEATUREPRESS_HOME"] = str(Path(work, "home"))
        add(str(arguments.weights / IMAGENET_FILE), "imagenet", output="ReduceMean:1")
        print(f"{headline()}, {time.strftime('%Y-%m-%d')}\n")
        for name in arguments.sets:
            print(f"## {name}\n")
            for line in measure(
                name, {model: embedded(arguments.data, name, model, Path(work)) for model in MODELS}
            ):
                print(line, flush=True)
            print()
    print(f"{(time.perf_counter() - started) / 60:.0f} minutes", file=sys.stderr)


def folder_of(name: str) -> str:
    return name.partition(",")[0]


def embedded(data: Path, name: str, model: str, work: Path) -> ImageSet:
    """Embed a set, and measure its size on disk."""
    folder = folder_of(name)
    has_split = folder == "fruits"
    out = work / f"{model}-{folder}"
    pattern = "{split}/{label}/{name}" if has_split else "parent"
    features = fp.embed(data / folder, out, model=model, precision="float32", labels=pattern)
    parquet_bytes = {features.n_features: features.bytes / len(features)}
    for n_numbers in COMPONENTS:
        reduced = Path(f"{out}-{n_numbers}")
        fp.reduce(features, reduced, n_components=n_numbers)
        parquet_bytes[n_numbers] = fp.open_features(reduced).bytes / len(features)
    table = features.to_table(["label", "sha256", *(["split"] if has_split else [])])
    y = np.array(table["label"].to_pylist())
    if name.endswith("kinds"):  # from the folders bad_apple, good_apple, cherry, …
        y = np.array([label.rpartition("_")[2] for label in y])
    is_test = np.array(table["split"].to_pylist()) == "Test" if has_split else None
    return ImageSet(features.to_numpy(), y, np.array(table["sha256"].to_pylist()), is_test, parquet_bytes)


def measure(name: str, models: dict[str, ImageSet]) -> Iterator[str]:
    """Yield the lines of the two tables of a set."""
    yield from head(SET_COLUMNS)
    schemes = {}
    for model, images in models.items():
        threshold = near_duplicate_threshold(images.X, images.y)
        groups = near_duplicate_groups(images.X, images.y, images.hashes, threshold=threshold)
        schemes[model] = schemes_of(images, groups)
        yield row(described(model, images, schemes[model], [f"{threshold:.3f}", f"{groups.max() + 1:,}"]))
    yield ""
    yield from head(COLUMNS)
    for model, images in models.items():
        for n_numbers in (images.X.shape[1], *COMPONENTS):
            started = time.perf_counter()
            yield from lines(model, images, schemes[model], n_numbers)
            seconds = time.perf_counter() - started
            print(f"{name}, {model}, {n_numbers} numbers: {seconds:.0f} s", file=sys.stderr, flush=True)


def described(model: str, images: ImageSet, schemes: Sequence[Scheme], near_duplicates: list[str]) -> list[str]:
    """Return the cells about the tested images of a set."""
    tested = {name: rows for scheme in schemes for name, rows in scheme.counted.items()}
    n_classes = {name: len(np.unique(images.y[rows])) for name, rows in tested.items()}
    left_out = {name: sum(f.n_left_out for f in scheme.folds) for scheme in schemes for name in scheme.counted}
    if images.is_test is not None:  # test images that have a near-duplicate in training
        left_out["leak-aware"] += len(tested["naive"]) - len(tested["leak-aware"])
    return [
        f"{len(images.y):,}, {len(np.unique(images.y))}",
        model,
        *near_duplicates,
        *(f"{len(tested[name]):,} of {n_classes[name]}" for name in ("naive", "leak-aware")),
        *(f"{left_out[name]:,}" for name in ("naive", "leak-aware")),
    ]


def lines(model: str, images: ImageSet, schemes: Sequence[Scheme], n_numbers: int) -> Iterator[str]:
    """Yield the rows of one model and one number of features."""
    found: dict[tuple[str, str], dict[str, str]] = {(stored, kind): {} for stored in STORED for kind in KINDS}
    regularization = chosen_regularization(images, schemes[-1], n_numbers)
    for scheme in schemes:
        for key, right in are_correct(images, scheme, n_numbers, regularization).items():
            for name, rows in scheme.counted.items():
                found[key][name] = share(int(right[rows].sum()), len(rows))
    for stored, n_bytes in STORED.items():
        parquet = f"{images.parquet_bytes[n_numbers]:,.0f}" if stored == "float32" else ""
        shares = [found[stored, kind][name] for kind in KINDS for name in ("naive", "leak-aware")]
        yield row([model, f"{n_numbers:,}", stored, f"{n_numbers * n_bytes:,}", parquet, *shares])


# -- what is measured ------------------------------------------------------------------------------------------


def schemes_of(images: ImageSet, groups: Rows) -> tuple[Scheme, ...]:
    """Return the split of a set (both accuracies from one fit), else folds without and with groups."""
    if images.is_test is None:
        every = {"naive": None, "leak-aware": groups}
        folds = {name: folds_of(images.y, own) for name, own in every.items()}
        tested = {name: np.concatenate([fold.test for fold in found]) for name, found in folds.items()}
        return tuple(Scheme(folds[name], own, {name: tested[name]}) for name, own in every.items())
    naive, aware = (given_split(images.y, images.is_test, own) for own in (None, groups))
    counted = {"naive": naive.test, "leak-aware": aware.test}
    return (Scheme((Fold(naive.train, naive.test),), groups, counted),)


def folds_of(y: npt.NDArray[np.str_], groups: Rows | None) -> tuple[Fold, ...]:
    """Return five stratified folds; groups of near-duplicates stay whole.

    In a fold with fewer than two training images of a class, the class is neither trained nor tested.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for train, test in splitter(FOLDS, shuffle=True, random_state=0).split(y, y, groups):
            labels, counts = np.unique(y[train], return_counts=True)
            is_known = np.isin(y, labels[counts >= 2])
            found.append(Fold(train[is_known[train]], test[is_known[test]], int((~is_known[test]).sum())))
    return tuple(found)


def chosen_regularization(images: ImageSet, scheme: Scheme, n_numbers: int) -> float:
    """Return the regularisation from cross-validation by groups, on the training rows of the first fold.

    It is used for all folds and types, and chosen with float32: choosing takes twenty times as long as fitting.
    """
    train = scheme.folds[0].train
    numbers = numbers_of(images, train, n_numbers)[train]
    groups = None if scheme.groups is None else scheme.groups[train]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        chosen = Classifier("logistic").fit(numbers, images.y[train], groups).regularization_
    assert chosen is not None
    return chosen


def numbers_of(images: ImageSet, train: Rows, n_numbers: int) -> npt.NDArray[np.float32]:
    """Return the features of all rows, or their projection by a PCA of the training rows."""
    if n_numbers == images.X.shape[1]:
        return images.X
    return PCA(n_components=n_numbers).fit(images.X[train]).transform(images.X)


def are_correct(images: ImageSet, scheme: Scheme, n_numbers: int, regularization: float) -> Right:
    """Fit and test in each fold, for each type of storage and both classifiers."""
    y = images.y
    right = {(stored, kind): np.zeros(len(y), np.bool_) for stored in STORED for kind in KINDS}
    for fold in scheme.folds:
        numbers = numbers_of(images, fold.train, n_numbers)
        for stored in STORED:
            Z = rounded(numbers, stored)
            for kind in KINDS:
                classifier = Classifier(kind, regularization=regularization).fit(Z[fold.train], y[fold.train])
                right[stored, kind][fold.test] = classifier.predict(Z[fold.test]) == y[fold.test]
    return right


def rounded(X: npt.NDArray[np.float32], stored: str) -> npt.NDArray[np.float32]:
    """Return numbers rounded to a type: to the nearest, of two to the even one."""
    if stored == "float32":
        return X
    if stored == "float16":
        narrow: npt.NDArray[np.float32] = X.astype(np.float16).astype(np.float32)
        return narrow
    # bfloat16 is the upper half of a float32: add half of its last bit, minus one bit if that one is even.
    bits = np.ascontiguousarray(X, np.float32).view(np.uint32)
    kept: npt.NDArray[Any] = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF_0000)
    return kept.astype(np.uint32).view(np.float32)


# -- Markdown --------------------------------------------------------------------------------------------------


def head(columns: Sequence[str]) -> tuple[str, str]:
    return row(columns), "|" + "---|" * len(columns)


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def share(n_right: int, n_samples: int) -> str:
    """Return an accuracy in per cent with its 95 % interval."""
    if not n_samples:
        return "nothing to test"
    low, high = wilson_interval(n_right, n_samples)
    return f"{100 * n_right / n_samples:.1f} ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    main()
