"""Patterns of names and paths."""

from __future__ import annotations

import pytest

from featurepress.sources.selection import Glob, NameFilter, glob_root


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("a/*.jpg", ["a/1.jpg", "a/.jpg"], ["a/b/1.jpg", "a/1.jpgx", "b/1.jpg"]),
        ("a/?/x", ["a/b/x"], ["a//x", "a/bc/x", "a/b/x/y"]),
        ("**/x", ["x", "a/x", "a/b/x"], ["ax", "x/a"]),
        ("a/**/x", ["a/x", "a/b/c/x"], ["x", "b/x"]),
        ("a/**", ["a/x", "a/b/x"], ["a", "b/x"]),
        ("a/", ["a/x", "a/b/x"], ["a", "ab/x"]),
        ("[a-c]*", ["a", "bx", "c\n"], ["d", "A"]),
        ("[!a-c]", ["d", "^"], ["a", "/"]),
        ("[]x]", ["]", "x"], ["[", ""]),
        ("[^a]", ["^", "a"], ["b"]),
        ("[z-a]", [], ["z", "a", "-"]),
        ("[", ["["], ["", "a"]),
        ("a[/]b", ["a[/]b"], ["a/b"]),
        ("é*", ["é", "é日\udcff"], ["e"]),
    ],
)
def test_glob_matches(pattern: str, matching: list[str], others: list[str]) -> None:
    glob = Glob(pattern)
    assert [path for path in [*matching, *others] if glob.matches(path)] == matching


def test_glob_covers_everything_below_a_matching_folder() -> None:
    glob = Glob("a*/b")
    assert all(map(glob.covers, ["ax/b", "a/b/c/d.jpg", "a/b/"]))
    assert not any(map(glob.covers, ["a", "a/bc", "x/a/b"]))


@pytest.mark.parametrize(
    ("pattern", "folders", "others"),
    [
        ("a/*/x*.jpg", ["a", "a/b"], ["b", "a/b/c", "a/b/xy.jpg"]),
        ("a?/**/x", ["ab", "ab/c/d/e"], ["b", "a"]),
        ("**", ["a", "a/b"], []),
    ],
)
def test_glob_may_match_below_a_folder(pattern: str, folders: list[str], others: list[str]) -> None:
    glob = Glob(pattern)
    assert [folder for folder in [*folders, *others] if glob.may_match_below(folder)] == folders


def test_glob_root_is_the_part_before_the_first_pattern() -> None:
    roots = {"a/b/*.jpg": "a/b", "*.jpg": "", "/*": "/", "/a/[b]/c": "/a", "s/**": "s"}
    assert {location: glob_root(location) for location in roots} == roots


def test_name_filter_returns_the_reason() -> None:
    names = NameFilter({"include": ["*.jpg", "sub/**"], "exclude": ["x*"]})
    paths = ["a.jpg", "d/b.jpg", "sub/c.png", "d/c.png", "d/x.jpg", "a.txt"]
    assert [names.skip_reason(path) for path in paths] == [
        "", "", "", "not included", "excluded", "no image suffix",
    ]  # fmt: skip
    assert NameFilter({"all_files": True}).skip_reason("a.txt") == ""
