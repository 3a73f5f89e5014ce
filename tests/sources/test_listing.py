"""Several sources as one listing: order, labels, limit, and what is skipped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from featurepress.errors import SettingError, SourceError
from featurepress.settings import ListingSettings
from featurepress.sources import Listing, describe, field_names
from featurepress.sources.listing import parent_label
from featurepress.specs import ImageRef, SourceSpec
from featurepress.testing import memory_source
from tests.sources.listed import listing, uris


@pytest.mark.parametrize(
    ("labels", "names", "fields"),
    [
        ("{split}/{label}/{name}", ("split", "label", "name"), ("b", "c", "x.jpg")),
        ("{label}/{name}.jpg", ("label", "name"), ("c", "x")),
        ("a/{x}/{y}/{z}", ("x", "y", "z"), ("b", "c", "x.jpg")),
        ("{label}/{name}.png", ("label", "name"), (None, None)),
        ("{a}/{b}/{c}/{d}/{e}/{f}/{g}/{h}/{i}/{j}/{k}/{l}", tuple("abcdefghijkl"), (None,) * 12),
    ],
)
def test_a_pattern_of_labels_is_matched_against_the_end_of_the_path(
    here: Path, labels: str, names: tuple[str, ...], fields: tuple[str | None, ...]
) -> None:
    settings = ListingSettings(labels=labels)
    assert field_names(settings) == names
    assert [ref.fields for ref in listing("a/b/c", settings=settings)] == [fields]


@pytest.mark.parametrize("labels", ["{uri}/{name}", "{a}/{a}", "{}/x", "{two words}/x", "{width}"])
def test_a_pattern_with_an_invalid_or_repeated_column_is_refused(labels: str) -> None:
    with pytest.raises(SettingError, match=r"'labels' .*uri, width"):
        field_names(ListingSettings(labels=labels))


def test_include_and_exclude_narrow_a_listing(here: Path) -> None:
    (here / "a" / "note.md").touch()

    def found(**options: Any) -> list[str]:
        (spec,) = describe("a", ListingSettings(**options))
        return [ref.uri for ref in Listing([spec], ListingSettings(**options))]

    assert found(include=("*.png",)) == ["a/y.png"]
    assert found(include=("x.*", "z.*")) == ["a/b/c/x.jpg", "a/b/z.jpg", "a/x.jpg"]
    assert found(include=("b/*",)) == ["a/b/z.jpg"]
    assert found(include=("b/**",)) == ["a/b/c/x.jpg", "a/b/z.jpg"]
    assert found(include=("**/x.jpg",)) == ["a/b/c/x.jpg", "a/x.jpg"]
    assert found(exclude=("x.jpg", "y*")) == ["a/b/z.jpg"]
    assert found(include=("*.jpg",), exclude=("b/**",)) == ["a/x.jpg"]
    assert found(include=("*.md",), all_files=True) == ["a/note.md"]
    listed = Listing(describe("a", ListingSettings(include=("*.png",))), ListingSettings())
    assert len(list(listed)) == 1
    assert listed.skipped == {"no image suffix": 1, "not included": 3}


@pytest.mark.parametrize(
    ("location", "facts"),
    [
        ("nothing", ["source 'nothing'", "no such file or folder"]),
        ("nothing/*.jpg", ["matches 'nothing/*.jpg'", "no folder 'nothing'"]),
        ("a/*.gif", ["matches 'a/*.gif'"]),
        ("empty", ["below 'empty'", "empty."]),
        ("loop", ["'loop'", "too many levels of symbolic links"]),
        ("loop/", ["'loop'", "too many levels of symbolic links"]),
        ("loop/*.jpg", ["'loop/*.jpg'", "too many levels of symbolic links"]),
        ("pipe", ["'pipe'", "neither a regular file nor a folder"]),
        ("/dev/null", ["'/dev/null'", "neither a regular file nor a folder"]),
        ("e", ["below 'e'", "1 skipped (no image suffix)", "--all-files"]),
        ("dots", ["below 'dots'", "1 skipped (dot file)."]),
        ("e/*.md", ["matches 'e/*.md'", "1 skipped (no image suffix)", "--all-files"]),
    ],
)
def test_a_source_without_images_is_an_error_with_the_reason(here: Path, location: str, facts: list[str]) -> None:
    (here / "empty").mkdir()
    (here / "dots").mkdir()
    (here / "dots" / ".x.jpg").touch()
    (here / "loop").symlink_to("loop")
    os.mkfifo(here / "pipe")
    with pytest.raises(SourceError) as caught:
        uris(location)
    assert [fact for fact in facts if fact not in str(caught.value)] == [], caught.value


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
@pytest.mark.parametrize("location", ["a/b/z.jpg", "a/b/c", "a/b/c/", "a/b/c/*.jpg"])
def test_a_source_in_a_folder_without_permission_is_an_error(here: Path, location: str) -> None:
    (here / "a" / "b").chmod(0)
    try:
        with pytest.raises(SourceError, match="cannot be read: permission denied"):
            uris(location)
    finally:
        (here / "a" / "b").chmod(0o700)


def test_an_empty_source_among_others_is_an_error(here: Path) -> None:
    (here / "z").mkdir()
    with pytest.raises(SourceError, match="No image below 'z'"):
        uris("a", "z")


def test_two_sources_with_the_same_uri_are_refused_by_name() -> None:
    one, other = memory_source({"a": b"", "b": b"", "d": b""}), memory_source({"c": b"", "d": b""})
    with pytest.raises(SourceError, match="'memory' and 'memory' both contain 'd'"):
        list(Listing([one, other], ListingSettings()))


def test_several_sources_are_merged_in_byte_order(here: Path) -> None:
    refs = list(listing("d", "a", "ab"))
    assert [ref.uri for ref in refs] == ["a/b/c/x.jpg", "a/b/z.jpg", "a/x.jpg", "a/y.png", "ab/x.jpg", "d/x.jpg"]
    assert [ref.source for ref in refs] == [1, 1, 1, 1, 2, 0]


def test_interleaved_sources_are_merged_in_byte_order() -> None:
    names = [f"{i:03d}" for i in range(100)]
    parts: list[dict[str, bytes]] = [{}, {}, {}]
    for i, name in enumerate(names):
        parts[i * i % 3][name] = b""
    refs = list(Listing([memory_source(part) for part in parts if part], ListingSettings()))
    assert [ref.uri for ref in refs] == names


def test_labels_are_the_names_of_folders(here: Path) -> None:
    settings = ListingSettings(labels="parent")
    assert field_names(settings) == ("label",)
    assert [ref.fields for ref in listing("a", "d/x.jpg", settings=settings)] == [
        ("c",), ("b",), ("a",), ("a",), ("d",),
    ]  # fmt: skip
    os.chdir("d")
    assert [ref.fields for ref in listing("x.jpg", settings=settings)] == [("d",)]


@pytest.mark.parametrize(
    ("location", "labels"),
    [
        (".", ["b", "c", "Apple"]),
        ("./", ["b", "c", "Apple"]),
        ("*.jpg", ["Apple"]),
        ("./*.jpg", ["Apple"]),
        ("x.jpg", ["Apple"]),
        ("../Apple/*.jpg", ["Apple"]),
        ("b/..", ["b", "c", "Apple"]),
        ("b/../*.jpg", ["Apple"]),
        ("{here}/Apple/.", ["b", "c", "Apple"]),
        ("..//Apple//", ["b", "c", "Apple"]),
    ],
)
def test_labels_are_the_names_of_real_folders(tmp_path: Path, here: Path, location: str, labels: list[str]) -> None:
    (here / "a").rename(here / "Apple")
    (here / "Apple" / "y.png").unlink()
    os.chdir("Apple")
    refs = listing(location.format(here=here), settings=ListingSettings(labels="parent"))
    assert sorted(str(ref.fields[0]) for ref in refs) == sorted(labels)


def test_an_image_at_the_root_of_the_disk_has_no_label() -> None:
    assert parent_label(SourceSpec("folder", "/x.jpg", "/"), "/x.jpg", ImageRef("/x.jpg", 0, 0, "")) == ""
    assert parent_label(SourceSpec("folder", "x.jpg", "/"), "x.jpg", ImageRef("x.jpg", 0, 0, "")) == ""


def test_no_labels_no_fields(here: Path) -> None:
    assert field_names(ListingSettings()) == ()
    assert all(ref.fields == () for ref in listing("a"))


@pytest.mark.parametrize("limit", [1, 3, 6, 100, 10**30])
def test_limit(here: Path, limit: int) -> None:
    assert uris("a", "ab", "d", settings=ListingSettings(limit=limit)) == uris("a", "ab", "d")[:limit]


def test_limit_counts_the_images_of_earlier_chunks(here: Path) -> None:
    settings = ListingSettings(limit=5)
    everything = uris("a", "ab", "d")
    for n in range(1, 6):
        rest = uris("a", "ab", "d", settings=settings, start_after=everything[n - 1].encode(), n_before=n)
        assert rest == everything[n:5]
    assert uris("a", settings=settings, start_after=b"a/x.jpg", n_before=7) == []


def test_a_listing_continues_after_any_key(here: Path) -> None:
    everything = list(listing("a", "ab", "d"))
    for i, ref in enumerate(everything):
        assert list(listing("a", "ab", "d", start_after=ref.order)) == everything[i + 1 :]


def test_skipped_files_are_counted_once_if_the_listing_is_interrupted(here: Path) -> None:
    for name in ("a/.1", "a/0.txt", "a/b/.2", "a/b/zz.txt", "ab/1.txt", "ab/y.txt", "d/0.txt", "d/zz.txt"):
        (here / name).touch()
    whole = listing("d", "a", "ab")
    n_images = sum(1 for _ in whole)
    assert whole.skipped == {"dot file": 2, "no image suffix": 6}
    for n in range(1, n_images + 1):
        before = listing("d", "a", "ab")
        refs = iter(before)
        for _ in range(n):
            last = next(refs)
        after = listing("d", "a", "ab", start_after=last.order, positions=before.positions)
        assert n + sum(1 for _ in after) == n_images
        total = {reason: before.skipped.get(reason, 0) + after.skipped.get(reason, 0) for reason in whole.skipped}
        assert total == whole.skipped


def test_all_files_lists_other_names(here: Path) -> None:
    assert uris("e", all_files=True) == ["e/n.md"]


def test_the_destination_is_skipped(here: Path) -> None:
    one = listing("a", destination="a/b")
    assert [ref.uri for ref in one] == ["a/x.jpg", "a/y.png"]
    assert one.skipped == {"the destination": 1}
