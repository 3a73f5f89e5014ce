"""Labelled rows of a feature set, with their labels and their split into training and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featurepress.analysis.classifier import draw_rows
from featurepress.analysis.near_duplicates import searchable_rows
from featurepress.errors import AnalysisError, SettingError
from featurepress.features.feature_set import FeatureSet, record_batches
from featurepress.features.parts import matrix_of
from featurepress.settings import LabelSettings, SplitSettings, nearest

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from featurepress.specs import Features

    Rows = npt.NDArray[np.int64]
    Labels = npt.NDArray[np.str_]

DRAWN = "drawn"  # the value of split_field for a drawn split, even if the set has a field 'split'
_NAMED = 3  # images that an error names


@dataclass(frozen=True)
class Samples:
    """Labelled rows of a feature set; their features stay on disk until they are read.

    Attributes
    ----------
    features : FeatureSet
        The set.
    rows : array (n_samples,) int64
        Their numbers in the set, ascending.
    classes : array (n_classes,) of str
        The labels, sorted.
    codes : array (n_samples,) int32
        The label of each row, as an index of `classes`.
    is_test : array (n_samples,) bool, or None
        Which rows are for testing, if a field or a file says so.
    split : str
        Where the split comes from, in words.
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
        labels: Labels = self.classes[self.codes]
        return labels

    @property
    def n_bytes(self) -> int:
        """Bytes of all features, in memory."""
        return 4 * self.features.n_features * len(self)

    def n_fitted(self, in_memory_bytes: int) -> int:
        """Return how many rows can be fitted in this memory: 4 bytes per feature and per class of each row."""
        return max(1, in_memory_bytes // (4 * (self.features.n_features + len(self.classes))))

    @property
    def n_searchable(self) -> int:
        """Maximum number of rows for a search for near-duplicates."""
        return max(1, searchable_rows(np.bincount(self.codes), self.features.n_features))

    def draw(self, n_rows: int, random_state: int) -> Samples:
        """Return a stratified sample, at least three rows per label; all rows if there are not more."""
        return self if len(self) <= n_rows else self.take(draw_rows(self.codes, n_rows, random_state))

    def take(self, chosen: Rows) -> Samples:
        """Return the samples at these indices, ascending, without the labels that none of them has."""
        kinds, codes = np.unique(self.codes[chosen], return_inverse=True)
        is_test = None if self.is_test is None else self.is_test[chosen]
        classes = self.classes[kinds]
        return Samples(self.features, self.rows[chosen], classes, codes.astype(np.int32), is_test, self.split)

    def train_side(self) -> Samples:
        """Return the training rows; all if there is no split."""
        return self if self.is_test is None else self.take(np.flatnonzero(~self.is_test))

    @property
    def digest(self) -> str:
        """Hash of the row numbers."""
        return hashlib.sha256(self.rows.astype("<i8").tobytes()).hexdigest()

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of the set for these rows, such as ``uri`` or ``sha256``."""
        return self.features.to_table([name]).column(name).take(self.rows)

    def matrix(self) -> Features:
        """Return the features: array (n_samples, n_features) float32, in memory."""
        X = np.empty((len(self), self.features.n_features), np.float32)
        for indices, batch in self.batches():
            X[indices] = batch
        return X

    def batches(self, batch_size: int = 8192) -> Iterator[tuple[Rows, Features]]:
        """Yield all features in order, with bounded memory: indices of samples, and their features."""
        start = 0
        for record_batch in record_batches(self.features, batch_size, ["features"]):
            stop = start + len(record_batch)
            indices = np.arange(*np.searchsorted(self.rows, (start, stop)))
            if len(indices):
                yield indices, matrix_of(record_batch)[self.rows[indices] - start]
            start = stop


def joined(columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Return columns of text, one after the other, as one column."""
    import pyarrow as pa

    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())


def numbered(columns: Sequence[pa.ChunkedArray]) -> npt.NDArray[np.int64]:
    """Return a number for each text of some columns, one after the other; equal texts have equal numbers."""
    encoded = joined(columns).dictionary_encode().unify_dictionaries()
    numbers = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    return np.concatenate([np.empty(0, np.int64), *numbers]).astype(np.int64)


def read_samples(
    features: FeatureSet, labels: LabelSettings | None = None, split: SplitSettings | None = None
) -> Samples:
    """Read which rows of a complete set have a label, and their split.

    By default the split is the set's field ``split``, if it has one with both sides.

    Raises
    ------
    AnalysisError
        The set is empty, images have no label or no side of the split, or one side is empty.
    SettingError
        The field or the file does not exist.
    """
    labels, split = labels or LabelSettings(), split or SplitSettings()
    if not len(features):
        raise AnalysisError(f"The feature set '{features.location}' is empty: there is nothing to learn or test.")
    texts = _labels_of(features, labels)
    has_label = np.array([bool(text) for text in texts])
    if not has_label.all() and not labels.skip_unlabelled:
        raise AnalysisError(
            f"{_missing(features, ~has_label)} no label. Add labels, for instance with --labels-file, or leave "
            "these images out with --skip-unlabelled."
        )
    rows = np.flatnonzero(has_label)
    if not len(rows):
        raise AnalysisError(f"No image of '{features.location}' has a label.")
    classes, codes = np.unique(np.array([texts[row] for row in rows], np.str_), return_inverse=True)
    is_test, description = _split_of(features, split)
    is_test = None if is_test is None else is_test[rows]
    return Samples(features, rows, classes, codes.astype(np.int32), is_test, description)


def _labels_of(features: FeatureSet, settings: LabelSettings) -> list[str | None]:
    if settings.labels_file is not None:
        return _from_file(features, settings.labels_file, "label", "labels_file")
    names = features.plan.field_names
    if settings.label_field not in names:
        fields = f"Its fields are {', '.join(names)}" if names else "It was embedded without --labels"
        raise AnalysisError(
            f"The feature set '{features.location}' has no field '{settings.label_field}'. {fields}. Name a field "
            "with --label-field, or a CSV file of uris and labels with --labels-file."
        )
    return _texts(features, settings.label_field)


def _split_of(features: FeatureSet, settings: SplitSettings) -> tuple[npt.NDArray[np.bool_] | None, str]:
    """Return which rows of the set are for testing, and where the split comes from."""
    names, field = features.plan.field_names, settings.split_field
    is_default = settings == SplitSettings(near_duplicate_threshold=settings.near_duplicate_threshold)
    if settings.split_file is not None:
        texts = _from_file(features, settings.split_file, "split", "split_file")
        description = f"by the file '{settings.split_file}'"
    elif field == DRAWN or (field is None and "split" not in names):
        if field is None and not is_default:
            raise SettingError(
                f"The 'test_value' setting (--test-value) needs a split, and '{features.location}' has no field "
                "'split'. Name another field with --split-field, or a file with --split-file."
            )
        return None, DRAWN
    else:
        field = field or "split"
        if field not in names:
            raise SettingError(
                f"The 'split_field' setting (--split-field) must be a field of '{features.location}'"
                f"{nearest(field, list(names))} Got '{field}'."
            )
        texts, description = _texts(features, field), f"by the column '{field}'"
    sides = np.array([(text or "").casefold() for text in texts], np.str_)
    if (without := sides == "").any():
        raise AnalysisError(
            f"{_missing(features, without)} no side in the split {description}. Set one for all images."
        )
    is_test = sides == settings.test_value.casefold()
    if is_test.any() and not is_test.all():
        return is_test, description
    if is_default:
        return None, DRAWN
    values = ", ".join(f"'{text}'" for text in sorted({text or "" for text in texts})[:5])
    raise AnalysisError(
        f"The split {description} must have test images, with '{settings.test_value}', and training images, with "
        f"another value. It has {values}. Name the value of the test images with --test-value."
    )


def _texts(features: FeatureSet, field: str) -> list[str | None]:
    texts: list[str | None] = features.to_table([field]).column(0).to_pylist()
    return texts


def _from_file(features: FeatureSet, path: str, column: str, setting: str) -> list[str | None]:
    """Return the values of a column of a CSV file for each row of a set, by its uri."""
    table = _read_csv(path, column, setting)
    values: dict[str, str] = {}
    for uri, text in zip(table["uri"].to_pylist(), table[column].to_pylist(), strict=True):
        if values.setdefault(uri, text) != text:
            raise AnalysisError(
                f"'{path}' has both '{values[uri]}' and '{text}' for '{uri}'. Keep one of these lines."
            )
    return [values.get(uri or "") or None for uri in _texts(features, "uri")]


def _read_csv(path: str, column: str, setting: str) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv

    rule = f"The '{setting}' setting (--{setting.replace('_', '-')}) must be a CSV file with the columns uri and"
    if not Path(path).is_file():
        raise SettingError(f"{rule} {column}. There is no file '{path}'.")
    texts = pyarrow.csv.ConvertOptions(column_types={"uri": pa.string(), column: pa.string()})
    try:
        table = pyarrow.csv.read_csv(path, convert_options=texts)
    except (pa.ArrowInvalid, OSError) as error:
        raise SettingError(f"{rule} {column}. Cannot read '{path}': {' '.join(str(error).split())}") from error
    for name in ("uri", column):
        count = table.column_names.count(name)
        if count == 0:
            columns = ", ".join(table.column_names)
            raise SettingError(f"{rule} {column}. '{path}' has no column '{name}'; it has {columns}.")
        if count > 1:
            raise SettingError(f"{rule} {column}. '{path}' has more than one column '{name}'.")
    return table


def _missing(features: FeatureSet, is_missing: npt.NDArray[np.bool_]) -> str:
    """Return the beginning of a sentence about images that lack something: how many, and the first ones."""
    rows = np.flatnonzero(is_missing)
    uris = features.to_table(["uri"]).column("uri").take(rows[:_NAMED]).to_pylist()
    named = ", ".join(f"'{uri}'" for uri in uris) + (", …" if len(rows) > _NAMED else "")
    verb = "has" if len(rows) == 1 else "have"
    return f"{len(rows):,} of the {len(is_missing):,} images of '{features.location}' ({named}) {verb}"
