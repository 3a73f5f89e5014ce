from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurepress.analysis.samples import joined, numbered, read_samples
from featurepress.errors import AnalysisError, SettingError
from featurepress.settings import LabelSettings, SplitSettings
from tests.analysis.clouds import cloud, cloud_set
from tests.features.feature_sets import made, numbers


def sides(n: int) -> list[str]:
    return ["Test" if i % 4 == 3 else "Training" for i in range(n)]


def test_labels_come_from_the_field(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "out", 60)
    samples = read_samples(features)
    assert samples.classes.tolist() == ["apple", "banana", "cherry"]
    assert samples.y.tolist() == cloud(60)[1].tolist()
    assert (samples.is_test, samples.split) == (None, "drawn")
    assert samples.column("uri")[3].as_py() == "out-00003.jpg"
    assert samples.matrix().tobytes() == features.to_numpy().tobytes()


def test_equal_texts_have_equal_numbers() -> None:
    columns = [pa.chunked_array([["b", "a"], ["b"]]), pa.chunked_array([["c", "a"]])]
    numbers = numbered(columns).tolist()
    assert [numbers.index(number) for number in numbers] == [0, 1, 0, 3, 1]
    assert joined(columns).to_pylist() == ["b", "a", "b", "c", "a"]
    assert numbered([pa.chunked_array([], pa.string())]).tolist() == []


def test_labels_count_in_the_memory_of_a_row(tmp_path: Path) -> None:
    samples = read_samples(cloud_set(tmp_path / "out", 60))
    assert samples.n_fitted(4 * (12 + 3) * 30) == 30
    assert samples.n_fitted(1) == 1
    assert samples.draw(60, 0) is samples
    assert np.bincount(samples.draw(30, 0).codes).tolist() == [10, 10, 10]


def test_training_rows_have_a_digest(tmp_path: Path) -> None:
    samples = read_samples(cloud_set(tmp_path / "out", 60, split=sides(60)))
    other = read_samples(cloud_set(tmp_path / "other", 60, split=sides(60)[::-1]))
    assert len(samples.train_side()) == 45
    assert samples.train_side().digest != other.train_side().digest
    assert samples.digest == other.digest


def test_taken_rows_keep_their_features(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "out", 60, rows_a_part=7)
    chosen = np.array([0, 3, 4, 19, 41, 59])
    some = read_samples(features).take(chosen)
    assert some.matrix().tobytes() == features.to_numpy()[chosen].tobytes()
    assert some.y.tolist() == cloud(60)[1][chosen].tolist()
    few = some.take(np.array([0, 1]))
    assert few.classes.tolist() == ["apple"]
    assert len(few) == 2


def test_labels_come_from_a_file(tmp_path: Path) -> None:
    features = made(tmp_path / "out", numbers(4), ["ä.jpg", "b,c.jpg", "d.jpg", "e.jpg"])
    path = tmp_path / "labels.csv"
    path.write_text('label,uri\nx,e.jpg\n7,"b,c.jpg"\ny,ä.jpg\nz,d.jpg\nz,other.jpg\n', encoding="utf-8")
    samples = read_samples(features, LabelSettings(labels_file=str(path)))
    assert samples.y.tolist() == ["y", "7", "z", "x"]


def test_missing_labels_are_counted_and_named(tmp_path: Path) -> None:
    labels = ["a", None, "b", "", "a", None, None, "b"]
    features = cloud_set(tmp_path / "out", 8, label=labels)
    with pytest.raises(AnalysisError) as error:
        read_samples(features)
    for fact in ("4 of the 8", features.location, "('out-00001.jpg', 'out-00003.jpg', 'out-00005.jpg', …)"):
        assert fact in str(error.value)
    kept = read_samples(features, LabelSettings(skip_unlabelled=True))
    assert kept.y.tolist() == ["a", "b", "a", "b"]
    assert kept.matrix().tobytes() == features.to_numpy()[[0, 2, 4, 7]].tobytes()


def test_no_label_at_all(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "out", 6, label=[None] * 6)
    with pytest.raises(AnalysisError, match=r"No image of '.*out' has a label"):
        read_samples(features, LabelSettings(skip_unlabelled=True))


def test_a_set_without_labels_names_the_remedies(tmp_path: Path) -> None:
    features = made(tmp_path / "out", numbers(4))
    with pytest.raises(AnalysisError, match=r"no field 'label'.*without --labels\..*--labels-file"):
        read_samples(features)
    with pytest.raises(AnalysisError, match=r"no field 'kind'. Its fields are label\."):
        read_samples(cloud_set(tmp_path / "other", 6), LabelSettings(label_field="kind"))


def test_an_empty_set(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="is empty"):
        read_samples(made(tmp_path / "out", numbers(0), label=[]))


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("uri,kind\na,b\n", "has no column 'label'; it has uri, kind"),
        ("", "Cannot read"),
        ("uri,label\na,b,c\n", "Cannot read"),
        (None, "There is no file"),
    ],
)
def test_a_wrong_file_of_labels_is_refused(text: str | None, fact: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingError, match=fact) as error:
        read_samples(cloud_set(tmp_path / "out", 6), LabelSettings(labels_file=str(path)))
    assert str(error.value).startswith("The 'labels_file' setting (--labels-file)")


def test_two_labels_of_an_image_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("uri,label\nout-00000.jpg,a\nout-00000.jpg,b\n")
    with pytest.raises(AnalysisError, match=r"both 'a' and 'b' for 'out-00000.jpg'"):
        read_samples(cloud_set(tmp_path / "out", 6), LabelSettings(labels_file=str(path)))


# -- the split -----------------------------------------------------------------------------------------------


def test_the_field_split_is_used_by_default(tmp_path: Path) -> None:
    samples = read_samples(cloud_set(tmp_path / "out", 40, split=sides(40)))
    assert samples.split == "by the column 'split'"
    assert samples.is_test is not None
    assert np.flatnonzero(samples.is_test).tolist() == list(range(3, 40, 4))


def test_the_field_split_is_not_used_if_drawn_or_one_sided(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "out", 40, split=sides(40))
    assert read_samples(features, split=SplitSettings(split_field="drawn")).is_test is None
    one_sided = cloud_set(tmp_path / "other", 40, split=["Training"] * 40)
    assert read_samples(one_sided).is_test is None


def test_another_field_and_value(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "out", 40, fold=[str(i % 5) for i in range(40)])
    samples = read_samples(features, split=SplitSettings(split_field="fold", test_value="2"))
    assert samples.is_test is not None
    assert np.flatnonzero(samples.is_test).tolist() == list(range(2, 40, 5))


def test_a_split_from_a_file(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "out", 8)
    path = tmp_path / "split.csv"
    path.write_text("uri,split\n" + "".join(f"out-{i:05d}.jpg,{side}\n" for i, side in enumerate(sides(8))))
    samples = read_samples(features, split=SplitSettings(split_file=str(path)))
    assert samples.is_test is not None
    assert np.flatnonzero(samples.is_test).tolist() == [3, 7]


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"split_field": "split", "test_value": "held-out"}, "It has 'Test', 'Training'.*--test-value"),
        ({"split_field": "splt"}, r"must be a field of '.*'; did you mean 'split'\? Got 'splt'"),
    ],
)
def test_a_wrong_split_is_refused(settings: dict[str, Any], fact: str, tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "out", 40, split=sides(40))
    with pytest.raises((AnalysisError, SettingError), match=fact):
        read_samples(features, split=SplitSettings(**settings))


def test_a_test_value_without_a_split_is_refused(tmp_path: Path) -> None:
    requested = SplitSettings(test_value="Validation")
    with pytest.raises(AnalysisError, match=r"must have test images, with 'Validation'"):
        read_samples(cloud_set(tmp_path / "out", 40, split=sides(40)), split=requested)
    with pytest.raises(SettingError, match=r"'test_value' setting .* has no field 'split'"):
        read_samples(cloud_set(tmp_path / "other", 40), split=requested)


def test_an_image_without_a_side_is_refused(tmp_path: Path) -> None:
    features = cloud_set(tmp_path / "out", 8, split=[*sides(7), None])
    with pytest.raises(AnalysisError, match=r"1 of the 8 images of '.*' \('out-00007.jpg'\) has no side"):
        read_samples(features, split=SplitSettings(split_field="split"))


def test_a_duplicate_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("uri,label,label\nx,a,b\n")
    features = cloud_set(tmp_path / "out", 60)
    with pytest.raises(SettingError, match=r"has more than one column 'label'\.$"):
        read_samples(features, LabelSettings(labels_file=str(tmp_path / "labels.csv")))
