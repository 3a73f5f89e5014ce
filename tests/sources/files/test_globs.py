"""Globs: what they match, and locations that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurepress.errors import SourceError
from tests.sources.files.test_folder import listed, touch, uris

ORCHARD = [
    "apple/1.jpg", "apple/2.png", "apple/wild/3.jpg", "banana/1.jpg", "banana/10.jpg", "cherry.jpg", "[a]/1.jpg",
    "star*/1.jpg", "what?.jpg", "zz/y/x/1.jpg",
]  # fmt: skip


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("pics/*.jpg", ["cherry.jpg", "what?.jpg"]),
        ("pics/*/*.jpg", ["[a]/1.jpg", "apple/1.jpg", "banana/1.jpg", "banana/10.jpg", "star*/1.jpg"]),
        ("pics/*/?.jpg", ["[a]/1.jpg", "apple/1.jpg", "banana/1.jpg", "star*/1.jpg"]),
        ("pics/[ab]*/1*.jpg", ["apple/1.jpg", "banana/1.jpg", "banana/10.jpg"]),
        ("pics/[!ab]*.jpg", ["cherry.jpg", "what?.jpg"]),
        ("pics/**/1.jpg", ["[a]/1.jpg", "apple/1.jpg", "banana/1.jpg", "star*/1.jpg", "zz/y/x/1.jpg"]),
        ("pics/**/*.png", ["apple/2.png"]),
        ("pics/apple/**", ["apple/1.jpg", "apple/2.png", "apple/wild/3.jpg"]),
        ("pics/**/wild/*", ["apple/wild/3.jpg"]),
        ("pics/**/**/wild/**/*", ["apple/wild/3.jpg"]),
        ("pics/ap*", ["apple/1.jpg", "apple/2.png", "apple/wild/3.jpg"]),
        ("pics/*/wild", ["apple/wild/3.jpg"]),
        ("pics/*/wild/", ["apple/wild/3.jpg"]),
        ("pics/z*/", ["zz/y/x/1.jpg"]),
        ("pics/*e*/", ["apple/1.jpg", "apple/2.png", "apple/wild/3.jpg"]),
        ("pics//*.jpg", ["cherry.jpg", "what?.jpg"]),
        ("pics/apple//*.png", ["apple/2.png"]),
        ("pics/ban*//1.jpg", ["banana/1.jpg"]),
        ("pics/[[]a]/*", ["[a]/1.jpg"]),
        ("pics/star[*]/*", ["star*/1.jpg"]),
        ("pics/what[?].jpg", ["what?.jpg"]),
        ("p?cs/cherry.*", ["cherry.jpg"]),
        ("**/cherry.jpg", ["cherry.jpg"]),
        ("pics/*.gif", []),
        ("pics/*/*/*/*/*.jpg", []),
        ("pics/cherry.jpg/*", []),
        ("pics/CHERRY*", []),
    ],
)
def test_globs(tmp_path: Path, location: str, expected: list[str]) -> None:
    touch(tmp_path / "pics", *ORCHARD)
    assert uris(tmp_path, location) == [f"pics/{name}" for name in expected]


def test_a_pattern_does_not_match_a_slash(tmp_path: Path) -> None:
    touch(tmp_path, "a/b.jpg", "ab.jpg")
    assert uris(tmp_path, "a*.jpg") == ["ab.jpg"]
    assert uris(tmp_path, "a?b.jpg") == []
    assert uris(tmp_path, "a[/]b.jpg") == []


def test_a_glob_skips_dot_files(tmp_path: Path) -> None:
    touch(tmp_path / "pics", ".a.jpg", ".b/c.jpg", "d.jpg")
    assert uris(tmp_path, "pics/*") == ["pics/d.jpg"]
    assert uris(tmp_path, "pics/.*") == []
    assert uris(tmp_path, "pics/**") == ["pics/d.jpg"]


def test_an_existing_path_is_not_a_glob(tmp_path: Path) -> None:
    touch(tmp_path, "pics [2019]/1.jpg", "pics 2/2.jpg", "what?.jpg", "whatx.jpg", "stars */3.jpg", "stars 1/4.jpg")
    assert uris(tmp_path, "pics [2019]") == ["pics [2019]/1.jpg"]
    assert uris(tmp_path, "what?.jpg") == ["what?.jpg"]
    assert uris(tmp_path, "stars *") == ["stars */3.jpg"]
    assert uris(tmp_path, "pics [2]") == ["pics 2/2.jpg"]


def test_a_glob_matches_names_that_are_not_utf_8(tmp_path: Path) -> None:
    touch(tmp_path / "pics", b"\xff/1.jpg", b"a\xfe.jpg")
    assert uris(tmp_path, "pics/?/*.jpg") == ["pics/\\xff/1.jpg"]
    assert uris(tmp_path, "pics/a?.jpg") == ["pics/a\\xfe.jpg"]


def test_only_folders_that_can_match_are_walked(tmp_path: Path) -> None:
    touch(tmp_path / "pics", "yes/1.jpg", "no/1.txt", "no/.hidden", "yes/deeper/1.txt", "1.txt")
    refs, skipped = listed(tmp_path, "pics/y*/*.jpg")
    assert [ref.uri for ref in refs] == ["pics/yes/1.jpg"]
    assert skipped == {}


@pytest.mark.parametrize("location", ["nothing", "nothing/*.jpg", "pics/a.jpg/b", "\0", "nothing/**/x"])
def test_a_missing_location_is_named(tmp_path: Path, location: str) -> None:
    touch(tmp_path / "pics", "a.jpg")
    with pytest.raises(SourceError, match=r"^(There is no source|No image matches) '"):
        uris(tmp_path, location)
