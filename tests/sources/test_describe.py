"""Locations of the user as descriptions of sources: what is accepted, and what overlaps."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from featurepress.errors import SourceError
from featurepress.settings import ListingSettings
from featurepress.sources import Listing, describe, open_source
from featurepress.specs import SourceSpec
from tests.sources.listed import uris


@pytest.mark.parametrize("locations", ["a", Path("a"), ["a"], [Path("a")], ("a",)])
def test_one_location_or_several_text_or_path(here: Path, locations: Any) -> None:
    (spec,) = describe(locations)
    assert spec == SourceSpec("folder", "a", str(here), {"all_files": False, "destination": ""})


def test_no_location_is_refused() -> None:
    with pytest.raises(SourceError, match="No source was named"):
        describe([])


@pytest.mark.parametrize("location", ["", "a\0b"])
def test_an_invalid_path_is_refused(here: Path, location: str) -> None:
    with pytest.raises(SourceError, match="is not a path"):
        describe(location)


@pytest.mark.parametrize(
    ("location", "scheme"), [("hdfs://b", "hdfs"), ("file:///a", "file"), ("s4://b/x.tar", "s4")]
)
def test_an_unsupported_scheme_is_named_with_the_allowed_ones(location: str, scheme: str) -> None:
    allowed = "https://, http://, s3://, gs://, az://"
    with pytest.raises(SourceError, match=f"^The source '{location}' has the scheme '{scheme}'.* {allowed}\\.$"):
        describe(location)


@pytest.mark.parametrize("location", ["https://me:SECRET@host/a.jpg", "https://host/l.txt?X-Amz-Signature=SECRET"])
def test_a_url_with_a_secret_is_refused_without_showing_it(location: str) -> None:
    with pytest.raises(SourceError, match="contains a password or a signature") as caught:
        describe(location)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "kinds"),
    [
        ("s3://b/x/", ["objects"]),
        ("gs://b/x/*.jpg", ["objects"]),
        ("az://account/c/x.tar", ["archive"]),
        ("shards/{0008..0011}.tar", ["archive"] * 4),
        ("a.{tar,tgz}", ["archive"] * 2),
        ("t.PARQUET", ["table"]),
        ("s3://b/*.arrow", ["table"]),
        ("urls.csv", ["uris"]),
        ("https://host/list.txt", ["uris"]),
        ("https://host/a.jpg?size=3", ["uris"]),
        ("a", ["folder"]),
        ("{2019}", ["folder"]),
    ],
)
def test_scheme_and_suffix_decide_the_kind_of_a_source(here: Path, location: str, kinds: list[str]) -> None:
    assert [spec.kind for spec in describe(location)] == kinds


def test_braces_expand_as_in_a_shell() -> None:
    assert [spec.location for spec in describe("s/{08..11}.tar")] == [f"s/{n:02d}.tar" for n in range(8, 12)]
    with pytest.raises(SourceError, match="more than 100,000 locations"):
        describe("s/{0..100000}.tar")
    with pytest.raises(SourceError, match="cannot be listed, or read in pieces, over https"):
        describe("https://host/folder/")


def test_a_folder_is_a_folder_whatever_its_name(here: Path) -> None:
    (here / "x.tar").mkdir()
    assert [spec.kind for spec in describe("x.tar")] == ["folder"]


def test_a_table_with_a_column_of_uris_is_a_list() -> None:
    assert [spec.kind for spec in describe("t.parquet", ListingSettings(uri_column="url"))] == ["uris"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("s3://b/a", "s3://b/a/"), ("s3://b/a/", "s3://b/a/b/"), ("s3://b", "s3://b/x"), ("a.tar", "./a.tar")],
)
def test_locations_that_contain_one_another_overlap(here: Path, one: str, other: str) -> None:
    with pytest.raises(SourceError, match="overlap"):
        describe([one, other])
    describe([one, other.replace("a", "c").replace("/x", "")] if one != "s3://b" else [one])


def test_a_tilde_is_the_home_folder() -> None:
    (spec,) = describe("~/pics")
    assert spec.location == f"{Path.home()}/pics"


def test_a_tilde_without_such_a_user_is_part_of_the_name(here: Path) -> None:
    (here / "~nobody-of-this-name").mkdir()
    (here / "~nobody-of-this-name" / "x.jpg").touch()
    assert uris("~nobody-of-this-name") == ["~nobody-of-this-name/x.jpg"]


def test_the_destination_is_made_absolute(here: Path) -> None:
    (here / "link").symlink_to("d")
    (spec,) = describe("a", ListingSettings(all_files=True), destination="link/out")
    assert spec.options == {"all_files": True, "destination": str(here / "d" / "out")}


def test_a_description_is_valid_in_another_folder(here: Path, tmp_path: Path) -> None:
    specs = describe(["a/b", "d/*.jpg"])
    os.chdir("/")
    refs = list(Listing(specs, ListingSettings()))
    assert [ref.uri for ref in refs] == ["a/b/c/x.jpg", "a/b/z.jpg", "d/x.jpg"]
    assert [open_source(specs[ref.source]).read(ref) for ref in refs] == [ref.uri.encode() for ref in refs]


@pytest.mark.parametrize("location", ["{here}/a", "{here}/a/", "{here}/a/*.jpg", "{here}/a/x.jpg", "{here}/a/b/.."])
def test_an_absolute_source_does_not_depend_on_the_folder(here: Path, location: str) -> None:
    location = location.format(here=here)
    specs = describe(location)
    found = list(Listing(specs, ListingSettings()))
    assert f"{here}/a" in found[0].uri
    assert [open_source(specs[0]).read(ref) for ref in found] == [
        os.path.relpath(Path(ref.uri).resolve(), here).encode() for ref in found
    ]
    os.chdir("d")
    assert describe(location) == specs
    assert list(Listing(specs, ListingSettings())) == found


@pytest.mark.parametrize(
    ("location", "same"),
    [
        ("a/", "a"),
        ("./", "."),
        ("{here}/a/", "{here}/a"),
        ("photos [2019]/", "photos [2019]"),
        ("nothing/", "nothing"),
        ("a//", "a//"),
        ("/", "/"),
        ("//", "//"),
        ("a*/", "a*/"),
        ("a/x.jpg/", "a/x.jpg/"),
    ],
)
def test_a_closing_slash_without_effect_is_removed(here: Path, location: str, same: str) -> None:
    (here / "photos [2019]").mkdir()
    (spec,) = describe(location.format(here=here))
    assert spec.location == same.format(here=here)


@pytest.mark.parametrize(
    "locations",
    [
        ("a", "a"),
        ("a", "a/"),
        ("a", "./a"),
        ("a", "d/../a"),
        ("a", "{here}/a"),
        ("a", "a/b"),
        ("a/b", "a"),
        ("a/b/c", "a"),
        (".", "a"),
        ("a*/", "a/x.jpg"),
        ("{here}/a//*.jpg", "a/x.jpg"),
        (".", "*/*/*.jpg"),
        ("a", "link to a"),
        ("a/x.jpg", "a/x.jpg"),
        ("a", "a/x.jpg"),
        ("a/x.jpg", "a"),
        ("a", "a/*.jpg"),
        ("a/*.jpg", "a"),
        ("a", "a/b/*.jpg"),
        ("a/*.jpg", "a/*.jpg"),
        ("a/*.jpg", "a/x.jpg"),
        ("a/*.jpg", "a/*"),
        ("a/*.jpg", "./a/*.jpg"),
        ("a/x*", "{here}/a/*.jpg"),
        ("a/*/*.jpg", "a/b"),
        ("a/**/*.jpg", "a/b/c/x.jpg"),
        ("**/*.jpg", "a/*.jpg"),
        ("*/x.jpg", "d"),
        ("d", "ab", "a/b", "a"),
        ("a/*.png", "a/*.jpg", "a/x.*"),
    ],
)
def test_sources_that_share_an_image_are_refused_by_name(here: Path, locations: tuple[str, ...]) -> None:
    if "link to a" in locations:
        (here / "link to a").symlink_to("a")
    given = [location.format(here=here) for location in locations]
    with pytest.raises(SourceError, match=r"^The sources '.*' and '.*' overlap: ") as caught:
        describe(given)
    named = {location if "*" in location else location.rstrip("/") for location in given}
    assert sum(f"'{location}'" in str(caught.value) for location in named) >= min(2, len(named))


@pytest.mark.parametrize(
    "locations",
    [
        ("a", "ab"),
        ("a", "d"),
        ("a/b", "a/x.jpg"),
        ("a/*.jpg", "a/*.png"),
        ("a/*.jpg", "a/b"),
        ("a/*.jpg", "a/b/*.jpg"),
        ("a/x.jpg", "a/y.png"),
        ("*/x.jpg", "a/b/*"),
        ("[ad]/x.jpg", "a/y.png", "a/b"),
    ],
)
def test_sources_without_a_common_image_are_accepted(here: Path, locations: tuple[str, ...]) -> None:
    found = uris(*locations)
    assert len(found) == len(set(found)) == sum(len(uris(location)) for location in locations)
    assert found == sorted(found, key=str.encode)


def test_sources_are_compared_in_constant_memory(here: Path) -> None:
    """The comparison holds one path of each source at a time."""
    (here / "many").mkdir()
    for i in range(3000):
        (here / "many" / f"{i}.jpg").touch()
        (here / "many" / f"{i}.png").touch()
    tracemalloc.start()
    try:
        for _ in open_source(SourceSpec("folder", "many", str(here))).list():
            pass
        _, listing_bytes = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        describe(["many/*.jpg", "many/*.png"])
        _, comparing_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert comparing_bytes < 2.2 * listing_bytes  # both walk the folder at the same time


def test_one_source_may_reach_an_image_by_two_links(here: Path) -> None:
    (here / "d" / "link").symlink_to("../ab")
    (here / "d" / "other").symlink_to("../ab")
    assert uris("d/*/*.jpg", "d/*.jpg") == ["d/link/x.jpg", "d/other/x.jpg", "d/x.jpg"]


def test_links_of_one_name_to_different_files_are_different_images(here: Path) -> None:
    """Content-addressed stores are used through such links."""
    for i, name in enumerate(("p/1/image.jpg", "p/1/q/image.jpg")):
        (here / "store").mkdir(exist_ok=True)
        (here / "store" / f"{i}.jpg").touch()
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).symlink_to(here / "store" / f"{i}.jpg")
    assert uris("p/*/*.jpg", "p/*/q/*.jpg") == ["p/1/image.jpg", "p/1/q/image.jpg"]
