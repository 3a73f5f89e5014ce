"""What the user wrote, turned into sources and one listing: overlap, order, labels, limit."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featurepress.errors import SettingError, SourceError
from featurepress.settings import ListingSettings
from featurepress.sources import Listing, describe, field_names, open_source
from featurepress.sources.describe import _refuse_shared_images
from featurepress.sources.listing import _parent_label
from featurepress.specs import ImageRef, SourceSpec
from featurepress.testing import memory_source


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """Stand in a folder with some pictures."""
    for name in ("a/x.jpg", "a/y.png", "a/b/z.jpg", "a/b/c/x.jpg", "ab/x.jpg", "d/x.jpg", "e/n.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def listing(*locations: Any, settings: ListingSettings | None = None, **options: Any) -> Listing:
    all_files, destination = options.pop("all_files", False), options.pop("destination", "")
    specs = describe(list(locations), ListingSettings(all_files=all_files), destination=destination)
    return Listing(specs, settings or ListingSettings(), **options)


def uris(*locations: Any, **options: Any) -> list[str]:
    return [ref.uri for ref in listing(*locations, **options)]


# -- what is accepted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("locations", ["a", Path("a"), ["a"], [Path("a")], ("a",)])
def test_one_location_or_several_text_or_path(here: Path, locations: Any) -> None:
    (spec,) = describe(locations)
    assert spec == SourceSpec("folder", "a", str(here), {"all_files": False, "destination": ""})


def test_no_location_at_all() -> None:
    with pytest.raises(SourceError, match="No source was named"):
        describe([])


@pytest.mark.parametrize("location", ["", "a\0b"])
def test_what_is_no_path(here: Path, location: str) -> None:
    with pytest.raises(SourceError, match="is not a path"):
        describe(location)


@pytest.mark.parametrize(
    ("location", "scheme"), [("hdfs://b", "hdfs"), ("file:///a", "file"), ("s4://b/x.tar", "s4")]
)
def test_a_scheme_without_support_is_named_with_those_that_exist(location: str, scheme: str) -> None:
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
def test_the_kind_of_a_source_is_told_by_scheme_and_ending(here: Path, location: str, kinds: list[str]) -> None:
    assert [spec.kind for spec in describe(location)] == kinds


def test_braces_count_as_the_shell_does() -> None:
    assert [spec.location for spec in describe("s/{08..11}.tar")] == [f"s/{n:02d}.tar" for n in range(8, 12)]
    with pytest.raises(SourceError, match="more than 100,000 locations"):
        describe("s/{0..100000}.tar")
    with pytest.raises(SourceError, match="cannot be listed, or read in pieces, over https"):
        describe("https://host/folder/")


def test_a_folder_is_a_folder_whatever_it_is_called(here: Path) -> None:
    (here / "x.tar").mkdir()
    assert [spec.kind for spec in describe("x.tar")] == ["folder"]


def test_a_table_with_a_column_of_uris_is_a_list() -> None:
    assert [spec.kind for spec in describe("t.parquet", ListingSettings(uri_column="url"))] == ["uris"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("s3://b/a", "s3://b/a/"), ("s3://b/a/", "s3://b/a/b/"), ("s3://b", "s3://b/x"), ("a.tar", "./a.tar")],
)
def test_places_that_hold_one_another_overlap(here: Path, one: str, other: str) -> None:
    with pytest.raises(SourceError, match="overlap"):
        describe([one, other])
    describe([one, other.replace("a", "c").replace("/x", "")] if one != "s3://b" else [one])


# -- labels by pattern ---------------------------------------------------------------------------------------


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
def test_a_pattern_of_labels_is_held_against_the_end_of_the_path(
    here: Path, labels: str, names: tuple[str, ...], fields: tuple[str | None, ...]
) -> None:
    settings = ListingSettings(labels=labels)
    assert field_names(settings) == names
    assert [ref.fields for ref in listing("a/b/c", settings=settings)] == [fields]


@pytest.mark.parametrize("labels", ["{uri}/{name}", "{a}/{a}", "{}/x", "{two words}/x", "{width}"])
def test_a_pattern_that_names_no_column_or_one_twice_is_refused(labels: str) -> None:
    with pytest.raises(SettingError, match="names each column once, by a word other than uri, width"):
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
    assert listed.skipped == {"not an image's name": 1, "not included": 3}


def test_a_tilde_is_the_home_folder() -> None:
    (spec,) = describe("~/pics")
    assert spec.location == f"{Path.home()}/pics"


def test_a_tilde_of_nobody_is_a_name_like_any_other(here: Path) -> None:
    (here / "~nobody-of-this-name").mkdir()
    (here / "~nobody-of-this-name" / "x.jpg").touch()
    assert uris("~nobody-of-this-name") == ["~nobody-of-this-name/x.jpg"]


def test_the_destination_is_made_absolute(here: Path) -> None:
    (here / "link").symlink_to("d")
    (spec,) = describe("a", ListingSettings(all_files=True), destination="link/out")
    assert spec.options == {"all_files": True, "destination": str(here / "d" / "out")}


def test_a_source_is_found_from_another_folder(here: Path, tmp_path: Path) -> None:
    specs = describe(["a/b", "d/*.jpg"])
    os.chdir("/")
    refs = list(Listing(specs, ListingSettings()))
    assert [ref.uri for ref in refs] == ["a/b/c/x.jpg", "a/b/z.jpg", "d/x.jpg"]
    assert [open_source(specs[ref.source]).read(ref) for ref in refs] == [ref.uri.encode() for ref in refs]


@pytest.mark.parametrize("location", ["{here}/a", "{here}/a/", "{here}/a/*.jpg", "{here}/a/x.jpg", "{here}/a/b/.."])
def test_an_absolute_source_is_the_same_from_everywhere(here: Path, location: str) -> None:
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
def test_a_closing_slash_that_changes_nothing_is_dropped(here: Path, location: str, same: str) -> None:
    (here / "photos [2019]").mkdir()
    (spec,) = describe(location.format(here=here))
    assert spec.location == same.format(here=here)


# -- nothing there -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("nothing", "There is no source 'nothing': no such file or folder."),
        ("nothing/*.jpg", "No image matches 'nothing/*.jpg': there is no folder 'nothing'."),
        ("a/*.gif", "No image matches 'a/*.gif': no path matches."),
        ("empty", "No image below 'empty': it is empty."),
        ("loop", "The source 'loop' cannot be read: too many levels of symbolic links. {check}"),
        ("loop/", "The source 'loop' cannot be read: too many levels of symbolic links. {check}"),
        ("loop/*.jpg", "The source 'loop/*.jpg' cannot be read: too many levels of symbolic links. {check}"),
        ("pipe", "The source 'pipe' is neither a regular file nor a folder. {name}"),
        ("/dev/null", "The source '/dev/null' is neither a regular file nor a folder. {name}"),
        (
            "e",
            "No image below 'e': 1 skipped (not an image's name); --all-files lists every regular file.",
        ),
        ("dots", "No image below 'dots': 1 skipped (dot file)."),
        (
            "e/*.md",
            "No image matches 'e/*.md': 1 skipped (not an image's name); --all-files lists every regular file.",
        ),
    ],
)
def test_nothing_to_embed_is_an_error_that_says_why(here: Path, location: str, text: str) -> None:
    (here / "empty").mkdir()
    (here / "dots").mkdir()
    (here / "dots" / ".x.jpg").touch()
    (here / "loop").symlink_to("loop")
    os.mkfifo(here / "pipe")
    with pytest.raises(SourceError) as caught:
        uris(location)
    advice = {"check": "Check it and the folders above it.", "name": "Name a folder, a glob or a file with images."}
    assert str(caught.value) == text.format(**advice)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
@pytest.mark.parametrize("location", ["a/b/z.jpg", "a/b/c", "a/b/c/", "a/b/c/*.jpg"])
def test_what_lies_in_a_folder_that_may_not_be_entered(here: Path, location: str) -> None:
    (here / "a" / "b").chmod(0)
    try:
        with pytest.raises(SourceError, match="cannot be read: permission denied"):
            uris(location)
    finally:
        (here / "a" / "b").chmod(0o700)


def test_one_empty_source_of_several_is_an_error(here: Path) -> None:
    (here / "z").mkdir()
    with pytest.raises(SourceError, match="No image below 'z'"):
        uris("a", "z")


# -- overlap -------------------------------------------------------------------------------------------------


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
def test_sources_that_share_no_image_are_not(here: Path, locations: tuple[str, ...]) -> None:
    found = uris(*locations)
    assert len(found) == len(set(found)) == sum(len(uris(location)) for location in locations)
    assert found == sorted(found, key=str.encode)


def test_sources_are_compared_without_holding_their_images(here: Path) -> None:
    """One path of each source at a time: what the comparison holds does not grow with the images."""
    (here / "many").mkdir()
    for i in range(3000):
        (here / "many" / f"{i}.jpg").touch()
        (here / "many" / f"{i}.png").touch()
    specs = [SourceSpec("folder", f"many/*.{kind}", str(here)) for kind in ("jpg", "png")]
    tracemalloc.start()
    try:
        for _ in open_source(SourceSpec("folder", "many", str(here))).list():
            pass
        _, listing_bytes = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        _refuse_shared_images(specs)
        _, comparing_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert comparing_bytes < 2.2 * listing_bytes  # both walk the folder at once


def test_one_source_may_reach_an_image_by_two_links(here: Path) -> None:
    (here / "d" / "link").symlink_to("../ab")
    (here / "d" / "other").symlink_to("../ab")
    assert uris("d/*/*.jpg", "d/*.jpg") == ["d/link/x.jpg", "d/other/x.jpg", "d/x.jpg"]


def test_links_of_one_name_to_different_files_are_different_images(here: Path) -> None:
    """Stores that name files by their content are seen through such links."""
    for i, name in enumerate(("p/1/image.jpg", "p/1/q/image.jpg")):
        (here / "store").mkdir(exist_ok=True)
        (here / "store" / f"{i}.jpg").touch()
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).symlink_to(here / "store" / f"{i}.jpg")
    assert uris("p/*/*.jpg", "p/*/q/*.jpg") == ["p/1/image.jpg", "p/1/q/image.jpg"]


def test_two_sources_that_give_one_uri_are_refused_by_name() -> None:
    one, other = memory_source({"a": b"", "b": b"", "d": b""}), memory_source({"c": b"", "d": b""})
    with pytest.raises(SourceError, match="'memory' and 'memory' both contain 'd': every image may be listed once"):
        list(Listing([one, other], ListingSettings()))


# -- one listing of several ----------------------------------------------------------------------------------


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


def test_labels_are_the_folders_names(here: Path) -> None:
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
    assert _parent_label(SourceSpec("folder", "/x.jpg", "/"), "/x.jpg", ImageRef("/x.jpg", 0, 0, "")) == ""
    assert _parent_label(SourceSpec("folder", "x.jpg", "/"), "x.jpg", ImageRef("x.jpg", 0, 0, "")) == ""


def test_no_labels_no_fields(here: Path) -> None:
    assert field_names(ListingSettings()) == ()
    assert all(ref.fields == () for ref in listing("a"))


@pytest.mark.parametrize("limit", [1, 3, 6, 100, 10**30])
def test_limit(here: Path, limit: int) -> None:
    assert uris("a", "ab", "d", settings=ListingSettings(limit=limit)) == uris("a", "ab", "d")[:limit]


def test_limit_counts_what_earlier_chunks_hold(here: Path) -> None:
    settings = ListingSettings(limit=5)
    everything = uris("a", "ab", "d")
    for n in range(1, 6):
        rest = uris("a", "ab", "d", settings=settings, start_after=everything[n - 1].encode(), n_before=n)
        assert rest == everything[n:5]
    assert uris("a", settings=settings, start_after=b"a/x.jpg", n_before=7) == []


def test_a_listing_goes_on_after_any_key(here: Path) -> None:
    everything = list(listing("a", "ab", "d"))
    for i, ref in enumerate(everything):
        assert list(listing("a", "ab", "d", start_after=ref.order)) == everything[i + 1 :]


def test_what_is_passed_over_is_counted_once_however_often_the_listing_is_interrupted(here: Path) -> None:
    for name in ("a/.1", "a/0.txt", "a/b/.2", "a/b/zz.txt", "ab/1.txt", "ab/y.txt", "d/0.txt", "d/zz.txt"):
        (here / name).touch()
    whole = listing("d", "a", "ab")
    n_images = sum(1 for _ in whole)
    assert whole.skipped == {"dot file": 2, "not an image's name": 6}
    for n in range(1, n_images + 1):
        before = listing("d", "a", "ab")
        refs = iter(before)
        for _ in range(n):
            last = next(refs)
        after = listing("d", "a", "ab", start_after=last.order, positions=before.positions)
        assert n + sum(1 for _ in after) == n_images
        total = {reason: before.skipped.get(reason, 0) + after.skipped.get(reason, 0) for reason in whole.skipped}
        assert total == whole.skipped


def test_all_files_lists_what_has_no_images_name(here: Path) -> None:
    assert uris("e", all_files=True) == ["e/n.md"]


def test_the_destination_is_left_out(here: Path) -> None:
    one = listing("a", destination="a/b")
    assert [ref.uri for ref in one] == ["a/x.jpg", "a/y.png"]
    assert one.skipped == {"the destination": 1}
