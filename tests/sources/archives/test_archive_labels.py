"""Labels in archives: from the files before or after an image."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.sources.archives.test_archive import labels, listed, pack, source
from tests.sources.archives.test_tar import info


@pytest.mark.parametrize(
    ("name", "text", "label"),
    [
        ("a.cls", b"7", "7"),
        ("a.cls", b" 7\n", "7"),
        ("a.CLS", b"7", "7"),
        ("a.cls", b"\xef\xbb\xbfcat", "cat"),
        ("a.cls", "Äpfel".encode(), "Äpfel"),
        ("a.cls", b"\xff", None),
        ("a.cls", b"", None),
        ("a.txt", b" a red apple\n", "a red apple"),
        ("a.json", b'{"label": "cat", "cls": 1}', "cat"),
        ("a.json", b'{"cls": 1, "class": 2}', "1"),
        ("a.json", b'{"class": 2.5}', "2.5"),
        ("a.json", b'{"label": null, "cls": 3}', "3"),
        ("a.json", b'{"label": [1], "cls": {"label": 1}, "class": true}', "true"),
        ("a.json", b'{"label": 0}', "0"),
        ("a.json", b'{"caption": "cat"}', None),
        ("a.json", b"7", "7"),
        ("a.json", b'"cat"', "cat"),
        ("a.json", b"[1, 2]", None),
        ("a.json", b"null", None),
        ("a.json", b'{"label": ', None),
        ("a.json", b'"\\ud800"', None),
        ("a.json", b"9" * 5000, None),
        ("a.json", b"[" * 100_000, None),
        ("a.json", b"\xff\xfe", None),
        ("a.left.cls", b"7", None),
        ("b.cls", b"7", None),
        ("x/a.cls", b"7", None),
        ("a.cls", b"7" * 1024**2, "7" * 1024**2),
        ("a.cls", b"7" * (1024**2 + 1), None),
    ],
)
@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("location", ["a.tar", "a.tgz"])
def test_labels_come_from_the_file_beside_the_image(
    tmp_path: Path, location: str, is_before: bool, name: str, text: bytes, label: str | None
) -> None:
    image, beside = ("a.jpg", b"1"), (name, text)
    contents = (beside, image) if is_before else (image, beside)
    assert labels(tmp_path, *contents, ("z.jpg", b""), ("z.cls", b"9"), location=location) == [label, "9"]


@pytest.mark.parametrize(
    ("beside", "label"),
    [
        ({"cls": b"1", "json": b'{"label": 2}', "txt": b"3"}, "1"),
        ({"json": b'{"label": 2}', "txt": b"3"}, "2"),
        ({"txt": b"3", "json": b'{"width": 2}'}, "3"),
        ({"txt": b"3", "cls": b""}, "3"),
        ({"txt": b"3", "json": b"{"}, None),
        ({"txt": b"3", "cls": b"\xff"}, None),
    ],
)
def test_the_first_label_counts_and_a_broken_file_has_no_substitute(
    tmp_path: Path, beside: Mapping[str, bytes], label: str | None
) -> None:
    assert labels(tmp_path, ("a.jpg", b""), *((f"a.{one}", text) for one, text in beside.items())) == [label]


@pytest.mark.parametrize(
    ("column", "label"),
    [("txt", "3"), (".txt", "3"), ("TXT", "3"), ("cls", "1"), ("json", "2"), ("label.txt", "4"), ("index", None)],
)
def test_a_label_column_names_one_suffix(tmp_path: Path, column: str, label: str | None) -> None:
    beside = {"cls": b"1", "json": b'{"label": 2}', "txt": b"3", "label.txt": b"4"}
    contents = [("a.jpg", b""), *((f"a.{one}", text) for one, text in beside.items())]
    assert labels(tmp_path, *contents, label_column=column) == [label]


def test_the_file_of_a_label_column_is_beside_an_image(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", ("a.jpg", b""), ("a.index", b"4"), ("a.npy", b""))
    _, skipped = listed(tmp_path, brings_label=True, label_column="index")
    assert skipped == {"beside an image": 1, "no image suffix": 1}


def test_several_images_of_a_sample_share_its_label(tmp_path: Path) -> None:
    assert labels(tmp_path, ("a.left.jpg", b""), ("a.cls", b"7"), ("a.right.jpg", b"")) == ["7", "7"]


def test_other_members_do_not_split_a_sample(tmp_path: Path) -> None:
    folder = (info("d", type=tarfile.DIRTYPE), b"")
    assert labels(tmp_path, ("d/a.jpg", b""), ("d/._a.cls", b"x"), folder, ("d/a.cls", b"7")) == ["7"]


def test_the_first_of_two_files_with_one_name_counts(tmp_path: Path) -> None:
    assert labels(tmp_path, ("a.cls", b"1"), ("a.jpg", b""), ("a.cls", b"2")) == ["1"]


def test_a_repeated_sample_is_a_new_one(tmp_path: Path) -> None:
    given = [("a.jpg", b""), ("a.cls", b"1"), ("b.jpg", b""), ("a.jpg", b""), ("a.cls", b"2")]
    assert labels(tmp_path, *given) == ["1", None, "2"]


def test_labels_are_listed_only_if_requested(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", ("a.jpg", b""), ("a.cls", b"1"))
    (ref,), _ = listed(tmp_path)
    assert ref.fields == ()


def test_a_very_long_sample_is_yielded_in_pieces(tmp_path: Path) -> None:
    many = [(f"a.{i}.jpg", b"") for i in range(2500)]
    found = labels(tmp_path, *many[:1200], ("a.cls", b"7"), *many[1200:], ("b.jpg", b""))
    assert found == [None] * 1000 + ["7"] * 1500 + [None]
    refs = list(source(tmp_path, brings_label=True).list())
    for i in (998, 999, 1000, 1001, 1999, 2001):
        assert list(source(tmp_path, brings_label=True).list(refs[i].order)) == refs[i + 1 :]
