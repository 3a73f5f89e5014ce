"""Labelled rows of a feature set, with their labels and their split into training and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.analysis.classifier import draw_rows
from featurepress.analysis.near_duplicates import searchable_rows
from featurepress.errors import AnalysisError, SettingError
from featurepress.features.feature_set import FeatureSet
from featurepress.settings import LabelSettings, SplitSettings, nearest

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from featurepress.specs import Features

    Rows = npt.NDArray[np.int64]
    Labels = npt.NDArray[np.str_]

DRAWN = "drawn"  # the word for a split that is drawn, though the set has a column 'split'
_NAMED = 3  # pictures that an error names


@dataclass(frozen=True)
class Samples:
    """Labelled rows of a feature set; their features stay on disk until they are asked for.

    Attributes
    ----------
    features : FeatureSet
        The set.
    rows : array (n_samples,) int64
        Their numbers in the set, ascending.
    classes : array (n_classes,) of str
        The labels there are, sorted.
    codes : array (n_samples,) int32
        The label of each row, as its place in `classes`.
    is_test : array (n_samples,) bool, or None
        Which rows test, where a column or a file says it.
    split : str
        How that is known, in words.
    """

    features: FeatureSet
    rows: Rows
    classes: Labels
    codes: npt.NDArray[np.int32]
    is_test: npt.NDArray[np.bool_] | None
    split: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def y(self) -> Labels:
        """The label of each row: array (n_samples,) of str."""
        found: Labels = self.classes[self.codes]
        return found

    @property
    def n_bytes(self) -> int:
        """Bytes of all features, in memory."""
        return 4 * self.features.n_features * len(self)

    def n_fitted(self, in_memory_bytes: int) -> int:
        """Say how many rows a classifier may be fitted to in memory; each takes 4 bytes a feature, and a label."""
        return max(1, in_memory_bytes // (4 * (self.features.n_features + len(self.classes))))

    @property
    def n_searchable(self) -> int:
        """Rows among which near-duplicates are looked for, at most."""
        return max(1, searchable_rows(np.bincount(self.codes), self.features.n_features))

    def draw(self, n_rows: int, random_state: int) -> Samples:
        """Return so many drawn samples, of each label its share, and three at least; all if there are no more."""
        return self if len(self) <= n_rows else self.take(draw_rows(self.codes, n_rows, random_state))

    def take(self, chosen: Rows) -> Samples:
        """Return some of the samples, by their places, ascending; labels that none has are left out."""
        kinds, codes = np.unique(self.codes[chosen], return_inverse=True)
        is_test = None if self.is_test is None else self.is_test[chosen]
        own = self.classes[kinds]
        return Samples(self.features, self.rows[chosen], own, codes.astype(np.int32), is_test, self.split)

    def train_side(self) -> Samples:
        """Return those that train: all, where nobody says which test."""
        return self if self.is_test is None else self.take(np.flatnonzero(~self.is_test))

    @property
    def digest(self) -> str:
        """Hash of which rows of the set these are."""
        return hashlib.sha256(self.rows.astype("<i8").tobytes()).hexdigest()

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of the set for these rows, such as ``uri`` or ``sha256``, as Arrow holds it."""
        return self.features.to_table([name]).column(name).take(_indices(self.rows))

    def matrix(self) -> Features:
        """Return the features: array (n_samples, n_features) float32, in memory."""
        X = np.empty((len(self), self.features.n_features), np.float32)
        for places, batch in self.batches():
            X[places] = batch
        return X

    def batches(self, batch_size: int = 8192) -> Iterator[tuple[Rows, Features]]:
        """Yield all features in order, with bounded memory: places among these samples, and their features."""
        n_features, start = self.features.n_features, 0
        for record_batch in self.features.record_batches(batch_size, ["features"]):
            stop = start + len(record_batch)
            places = np.arange(*np.searchsorted(self.rows, (start, stop)))
            if len(places):
                X = record_batch.column("features").flatten().to_numpy().reshape(-1, n_features)
                yield places, X[self.rows[places] - start]
            start = stop


def joined(columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Return some columns of text, one after the other, as one."""
    import pyarrow as pa

    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())


def numbered(columns: Sequence[pa.ChunkedArray]) -> npt.NDArray[np.int64]:
    """Return a number for each text of some columns, one after the other: the same text has the same number."""
    encoded = joined(columns).dictionary_encode().unify_dictionaries()
    numbers = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    return np.concatenate([np.empty(0, np.int64), *numbers]).astype(np.int64)


def read_samples(
    features: FeatureSet, labels: LabelSettings | None = None, split: SplitSettings | None = None
) -> Samples:
    """Find the labelled rows of a set.

    Parameters
    ----------
    features : FeatureSet
        Complete.
    labels : LabelSettings
        Where labels come from.
    split : SplitSettings, optional
        What says which rows test. By default the set's field ``split``, if it has one with both sides.

    Raises
    ------
    AnalysisError
        The set is empty, pictures have no label or no side, or one side has no picture.
    SettingError
        There is no such column or file.
    """
    labels, split = labels or LabelSettings(), split or SplitSettings()
    if not len(features):
        raise AnalysisError(
            f"The feature set '{features.location}' is empty: there is nothing to learn or to test."
        )
    texts = _labels_of(features, labels)
    has_label = np.array([bool(text) for text in texts])
    if not has_label.all() and not labels.skip_unlabelled:
        raise AnalysisError(
            f"{_missing(features, ~has_label)} no label. Give them one, with --labels-file for instance, or leave "
            "them out with --skip-unlabelled."
        )
    rows = np.flatnonzero(has_label)
    if not len(rows):
        raise AnalysisError(f"No picture of '{features.location}' has a label.")
    classes, codes = np.unique(np.array([texts[row] for row in rows], np.str_), return_inverse=True)
    is_test, words = _split_of(features, split)
    return Samples(
        features, rows, classes, codes.astype(np.int32), None if is_test is None else is_test[rows], words
    )


def _labels_of(features: FeatureSet, settings: LabelSettings) -> list[str | None]:
    if settings.labels_file is not None:
        return _from_file(features, settings.labels_file, "label", "labels_file")
    names = features.plan.field_names
    if settings.label_field not in names:
        has = f"Its fields are {', '.join(names)}" if names else "It was embedded without --labels"
        raise AnalysisError(
            f"The feature set '{features.location}' has no field '{settings.label_field}'. {has}; name one with "
            "--label-field, or give a CSV file of uris and labels with --labels-file."
        )
    texts: list[str | None] = features.to_table([settings.label_field]).column(0).to_pylist()
    return texts


def _split_of(features: FeatureSet, settings: SplitSettings) -> tuple[npt.NDArray[np.bool_] | None, str]:
    """Say which rows of the set test, and how that is known."""
    names, column = features.plan.field_names, settings.split_field
    if settings.split_file is not None:
        texts, words = _from_file(features, settings.split_file, "split", "split_file"), "file"
        words = f"by the file '{settings.split_file}'"
    elif column == DRAWN or (column is None and "split" not in names):
        if column is None and _is_asked(settings):
            raise SettingError(
                "The 'test_value' setting (--test-value) is a word of what says which pictures test, and "
                f"'{features.location}' has no field 'split'. Name another with --split-field, or a --split-file."
            )
        return None, DRAWN
    else:
        column = column or "split"
        if column not in names:
            raise SettingError(
                f"The 'split_field' setting (--split-field) must be a field of '{features.location}'"
                f"{nearest(column, list(names))} Got '{column}'."
            )
        texts, words = features.to_table([column]).column(0).to_pylist(), f"by the column '{column}'"
    sides = np.array([(text or "").casefold() for text in texts], np.str_)
    if (without := sides == "").any():
        raise AnalysisError(
            f"{_missing(features, without)} no side in the split {words}. Say of all whether they train or test."
        )
    is_test = sides == settings.test_value.casefold()
    if is_test.any() and not is_test.all():
        return is_test, words
    if not _is_asked(settings):
        return None, DRAWN
    there = ", ".join(f"'{text}'" for text in sorted({text or "" for text in texts})[:5])
    raise AnalysisError(
        f"The split {words} must have pictures with '{settings.test_value}', which test, and others, which train. "
        f"It has {there}. Name another word with --test-value."
    )


def _is_asked(settings: SplitSettings) -> bool:
    """Whether the settings say how to split training and test."""
    return settings != SplitSettings(near_duplicate_threshold=settings.near_duplicate_threshold)


def _from_file(features: FeatureSet, path: str, column: str, setting: str) -> list[str | None]:
    """Return what a CSV file with uris says of each row of a set."""
    table = _read_csv(path, column, setting)
    said: dict[str, str] = {}
    for uri, text in zip(table["uri"].to_pylist(), table[column].to_pylist(), strict=True):
        if said.setdefault(uri, text) != text:
            raise AnalysisError(f"'{path}' says both '{said[uri]}' and '{text}' of '{uri}'. Keep one line of it.")
    uris = features.to_table(["uri"]).column("uri").to_pylist()
    return [said.get(uri) or None for uri in uris]


def _read_csv(path: str, column: str, setting: str) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv

    name = f"The '{setting}' setting (--{setting.replace('_', '-')}) must be a CSV file with the columns uri and"
    if not Path(path).is_file():
        raise SettingError(f"{name} {column}. There is no file '{path}'.")
    texts = pyarrow.csv.ConvertOptions(column_types={"uri": pa.string(), column: pa.string()})
    try:
        table = pyarrow.csv.read_csv(path, convert_options=texts)
    except (pa.ArrowInvalid, OSError) as error:
        raise SettingError(f"{name} {column}. '{path}' is none: {' '.join(str(error).split())}") from error
    if lacking := [one for one in ("uri", column) if one not in table.column_names]:
        there = ", ".join(table.column_names)
        raise SettingError(f"{name} {column}. '{path}' has no column '{lacking[0]}'; it has {there}.")
    if repeated := [one for one in ("uri", column) if table.column_names.count(one) > 1]:
        raise SettingError(f"{name} {column}. '{path}' has more than one column '{repeated[0]}'.")
    return table


def _missing(features: FeatureSet, which: npt.NDArray[np.bool_]) -> str:
    """Begin a sentence about pictures that lack something: how many, and which."""
    rows = np.flatnonzero(which)
    uris = features.to_table(["uri"]).column("uri").take(_indices(rows[:_NAMED])).to_pylist()
    named = ", ".join(f"'{uri}'" for uri in uris) + (", …" if len(rows) > _NAMED else "")
    return (
        f"{len(rows):,} of the {len(which):,} pictures of '{features.location}' ({named}) "
        f"{'has' if len(rows) == 1 else 'have'}"
    )


def _indices(rows: npt.NDArray[Any]) -> pa.Array:
    import pyarrow as pa

    return pa.array(rows.astype(np.int64))
