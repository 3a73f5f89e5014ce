"""Accuracy of features that are reduced and stored in fewer bytes: the tables of docs/explanation/quality.md.

    python -m benchmarks.quality [--data DIR] [--weights DIR] [--sets NAME ...]

Of two models and three sets of pictures: the accuracy of a linear probe (multinomial logistic regression) and of
the five nearest neighbours by cosine; for all features and after PCA to 128 and 64 numbers, each as float32,
bfloat16 and float16. Everything is fitted to the training pictures of its fold only. The naive figure takes
pictures as they come; the leak-aware one never tests with a picture that has a near-duplicate in training.
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
from featurepress.models.catalog import add_model

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
Right = dict[tuple[str, str], npt.NDArray[np.bool_]]  # of (stored as, kind): whether each row is told rightly


@dataclass(frozen=True)
class Pictures:
    """The features of a set: float32 (n_samples, n_features), labels, hashes, which rows are given as test.

    `parquet_bytes`: of a picture in the parts, by how many numbers it has.
    """

    X: npt.NDArray[np.float32]
    y: npt.NDArray[np.str_]
    hashes: npt.NDArray[np.str_]
    is_test: npt.NDArray[np.bool_] | None
    parquet_bytes: dict[int, float]


@dataclass(frozen=True)
class Fold:
    """Rows that train, rows that test, and how many of the test are left out: nothing teaches their class."""

    train: Rows
    test: Rows
    n_left_out: int = 0


@dataclass(frozen=True)
class Scheme:
    """Folds, the groups of twins that they keep whole, and which of the tested rows are counted as what."""

    folds: tuple[Fold, ...]
    groups: Rows | None
    counted: dict[str, Rows]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder with fruits/, grocery/, …")
    parser.add_argument("--weights", type=Path, default=SHARED / "weights", help=f"folder with {IMAGENET_FILE}")
    parser.add_argument("--sets", nargs="*", choices=SETS, default=SETS)
    asked = parser.parse_args()
    for path in (asked.weights / IMAGENET_FILE, *(asked.data / folder_of(name) for name in asked.sets)):
        if not path.exists():
            sys.exit(
                f"The benchmark of quality needs '{path}', which is not there: name it with --data, --weights."
            )
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="featurepress-quality-") as work:
        os.environ["FEATUREPRESS_HOME"] = str(Path(work, "home"))
        add_model(str(asked.weights / IMAGENET_FILE), "imagenet", output="ReduceMean:1")
        print(f"{headline()}, {time.strftime('%Y-%m-%d')}\n")
        for name in asked.sets:
            print(f"## {name}\n")
            for line in measure(name, {model: embedded(asked.data, name, model, Path(work)) for model in MODELS}):
                print(line, flush=True)
            print()
    print(f"{(time.perf_counter() - begun) / 60:.0f} minutes", file=sys.stderr)


def folder_of(name: str) -> str:
    return name.partition(",")[0]


def embedded(data: Path, name: str, model: str, work: Path) -> Pictures:
    """Embed a set, or take it as it is, and measure what it takes on disk."""
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
    if name.endswith("kinds"):  # of the folders bad_apple, good_apple, cherry, …
        y = np.array([label.rpartition("_")[2] for label in y])
    is_test = np.array(table["split"].to_pylist()) == "Test" if has_split else None
    return Pictures(features.to_numpy(), y, np.array(table["sha256"].to_pylist()), is_test, parquet_bytes)


def measure(name: str, models: dict[str, Pictures]) -> Iterator[str]:
    """Yield the lines of the two tables of a set."""
    yield from head(SET_COLUMNS)
    schemes = {}
    for model, pictures in models.items():
        threshold = near_duplicate_threshold(pictures.X, pictures.y)
        groups = near_duplicate_groups(pictures.X, pictures.y, pictures.hashes, threshold=threshold)
        schemes[model] = schemes_of(pictures, groups)
        yield row(described(model, pictures, schemes[model], [f"{threshold:.3f}", f"{groups.max() + 1:,}"]))
    yield ""
    yield from head(COLUMNS)
    for model, pictures in models.items():
        for n_numbers in (pictures.X.shape[1], *COMPONENTS):
            begun = time.perf_counter()
            yield from lines(model, pictures, schemes[model], n_numbers)
            seconds = time.perf_counter() - begun
            print(f"{name}, {model}, {n_numbers} numbers: {seconds:.0f} s", file=sys.stderr, flush=True)


def described(model: str, pictures: Pictures, schemes: Sequence[Scheme], twins: list[str]) -> list[str]:
    """Give the cells that say of a set how many pictures of it are tested."""
    tested = {name: rows for scheme in schemes for name, rows in scheme.counted.items()}
    n_classes = {name: len(np.unique(pictures.y[rows])) for name, rows in tested.items()}
    left_out = {name: sum(f.n_left_out for f in scheme.folds) for scheme in schemes for name in scheme.counted}
    if pictures.is_test is not None:  # given test pictures that have a twin in training
        left_out["leak-aware"] += len(tested["naive"]) - len(tested["leak-aware"])
    return [
        f"{len(pictures.y):,}, {len(np.unique(pictures.y))}",
        model,
        *twins,
        *(f"{len(tested[name]):,} of {n_classes[name]}" for name in ("naive", "leak-aware")),
        *(f"{left_out[name]:,}" for name in ("naive", "leak-aware")),
    ]


def lines(model: str, pictures: Pictures, schemes: Sequence[Scheme], n_numbers: int) -> Iterator[str]:
    """Yield the rows of one model and one number of numbers."""
    found: dict[tuple[str, str], dict[str, str]] = {(stored, kind): {} for stored in STORED for kind in KINDS}
    regularization = chosen_regularization(pictures, schemes[-1], n_numbers)
    for scheme in schemes:
        for key, right in told_rightly(pictures, scheme, n_numbers, regularization).items():
            for name, rows in scheme.counted.items():
                found[key][name] = share(int(right[rows].sum()), len(rows))
    for stored, n_bytes in STORED.items():
        parquet = f"{pictures.parquet_bytes[n_numbers]:,.0f}" if stored == "float32" else ""
        shares = [found[stored, kind][name] for kind in KINDS for name in ("naive", "leak-aware")]
        yield row([model, f"{n_numbers:,}", stored, f"{n_numbers * n_bytes:,}", parquet, *shares])


# -- what is measured ------------------------------------------------------------------------------------------


def schemes_of(pictures: Pictures, groups: Rows) -> tuple[Scheme, ...]:
    """Split a set: as it is given (both figures from one fit), else into folds without and with groups of twins."""
    if pictures.is_test is None:
        every = {"naive": None, "leak-aware": groups}
        folds = {name: folds_of(pictures.y, own) for name, own in every.items()}
        tested = {name: np.concatenate([fold.test for fold in found]) for name, found in folds.items()}
        return tuple(Scheme(folds[name], own, {name: tested[name]}) for name, own in every.items())
    naive, aware = (given_split(pictures.y, pictures.is_test, own) for own in (None, groups))
    counted = {"naive": naive.test, "leak-aware": aware.test}
    return (Scheme((Fold(naive.train, naive.test),), groups, counted),)


def folds_of(y: npt.NDArray[np.str_], groups: Rows | None) -> tuple[Fold, ...]:
    """Split into five folds, of each class its share; groups of twins stay whole.

    In a fold in which fewer than two pictures of a class train, nothing is learned of it and it is not tested.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for train, test in splitter(FOLDS, shuffle=True, random_state=0).split(y, y, groups):
            labels, counts = np.unique(y[train], return_counts=True)
            taught = np.isin(y, labels[counts >= 2])
            found.append(Fold(train[taught[train]], test[taught[test]], int((~taught[test]).sum())))
    return tuple(found)


def chosen_regularization(pictures: Pictures, scheme: Scheme, n_numbers: int) -> float:
    """Choose it by cross-validation that knows of twins, among the training rows of the first fold, with float32.

    Once for all folds and types: choosing takes twenty times as long as fitting.
    """
    train = scheme.folds[0].train
    numbers = numbers_of(pictures, train, n_numbers)[train]
    groups = None if scheme.groups is None else scheme.groups[train]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        chosen = Classifier("logistic").fit(numbers, pictures.y[train], groups).regularization_
    assert chosen is not None
    return chosen


def numbers_of(pictures: Pictures, train: Rows, n_numbers: int) -> npt.NDArray[np.float32]:
    """Give all rows in so many numbers: the features, or their projection by a PCA of the training rows alone."""
    if n_numbers == pictures.X.shape[1]:
        return pictures.X
    return PCA(n_components=n_numbers).fit(pictures.X[train]).transform(pictures.X)


def told_rightly(pictures: Pictures, scheme: Scheme, n_numbers: int, regularization: float) -> Right:
    """Fit in each fold and test, for every way to store the numbers and both classifiers."""
    y = pictures.y
    right = {(stored, kind): np.zeros(len(y), np.bool_) for stored in STORED for kind in KINDS}
    for fold in scheme.folds:
        numbers = numbers_of(pictures, fold.train, n_numbers)
        for stored in STORED:
            Z = rounded(numbers, stored)
            for kind in KINDS:
                classifier = Classifier(kind, regularization=regularization).fit(Z[fold.train], y[fold.train])
                right[stored, kind][fold.test] = classifier.predict(Z[fold.test]) == y[fold.test]
    return right


def rounded(X: npt.NDArray[np.float32], stored: str) -> npt.NDArray[np.float32]:
    """Give numbers as they come back from a type: rounded to the nearest of it, of two to the even one."""
    if stored == "float32":
        return X
    if stored == "float16":
        narrow: npt.NDArray[np.float32] = X.astype(np.float16).astype(np.float32)
        return narrow
    # bfloat16 is the upper half of a float32: half of its last place is added, less one bit where that one is even.
    bits = np.ascontiguousarray(X, np.float32).view(np.uint32)
    kept: npt.NDArray[Any] = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF_0000)
    return kept.astype(np.uint32).view(np.float32)


# -- Markdown --------------------------------------------------------------------------------------------------


def head(columns: Sequence[str]) -> tuple[str, str]:
    return row(columns), "|" + "---|" * len(columns)


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def share(n_right: int, n_samples: int) -> str:
    """Give an accuracy in per cent with its 95 % interval."""
    if not n_samples:
        return "nothing to test"
    low, high = wilson_interval(n_right, n_samples)
    return f"{100 * n_right / n_samples:.1f} ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    main()
