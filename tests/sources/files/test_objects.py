"""Buckets as sources: what is listed, in which order, and with which names."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from featurepress.errors import SourceError
from featurepress.settings import ImageSettings
from featurepress.sources import open_source
from featurepress.sources.files.objects import ObjectSource
from featurepress.specs import SourceSpec
from tests.servers.azurite import Azure
from tests.servers.fixtures import Faulty
from tests.servers.google import Google, GoogleByMoto
from tests.servers.listing import Listing, MadeUpKeys
from tests.servers.s3 import FastS3
from tests.sources.listed import failure

UNLISTED = "cannot list the folder: it contains a key that this store's library cannot address"
PLAN = {"plan/plan.json": b'{"featurepress": 1}', "plan/chunk-00000000.parquet": b"", "manifest.json": b"{}"}


def source_of(location: str, limits: ImageSettings | None = None, **options: Any) -> ObjectSource:
    source = open_source(SourceSpec("objects", location, "/", options), limits)
    assert isinstance(source, ObjectSource)
    return source


def filled(server: Any, *keys: str, **objects: bytes) -> str:
    """Make a bucket with objects that contain their key; those that end in a slash are empty."""
    bucket: str = server.bucket()
    server.put(bucket, {key: b"" if key.endswith("/") else key.encode() for key in keys} | objects)
    return bucket


def keys_below(server: Any, bucket: str, key: str = "", **options: Any) -> list[str]:
    found = source_of(server.url(bucket, key), **options).list()
    return [ref.uri.removeprefix(server.url(bucket)) for ref in found]


def keys_and_skipped(server: Any, bucket: str, key: str = "", **options: Any) -> tuple[list[str], dict[str, int]]:
    source = source_of(server.url(bucket, key), **options)
    keys = [ref.uri.removeprefix(server.url(bucket)) for ref in source.list()]
    return keys, dict(source.skipped)


def refused_listing(location: str, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        list(source_of(location, **options).list())
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- listing -------------------------------------------------------------------------------------------------


def test_a_prefix_ends_at_a_slash(each_store: Any) -> None:
    bucket = filled(each_store, "pics/a/1.jpg", "pics/2.jpg", "pics2/3.jpg", "pics.jpg", "other/4.jpg", "é/5.jpg")
    for spelled in ("pics", "pics/"):
        assert keys_below(each_store, bucket, spelled) == ["pics/2.jpg", "pics/a/1.jpg"]
    assert keys_below(each_store, bucket, "pics/a") == ["pics/a/1.jpg"]
    assert keys_below(each_store, bucket, "é/") == ["é/5.jpg"]
    assert keys_below(each_store, bucket, "pic") == []
    everything = ["other/4.jpg", "pics.jpg", "pics/2.jpg", "pics/a/1.jpg", "pics2/3.jpg", "é/5.jpg"]
    assert keys_below(each_store, bucket) == everything


def test_a_single_object_whatever_its_suffix(each_store: Any) -> None:
    bucket = filled(each_store, "pics/a.jpg", "pics/a.jpg2", "pics/notes", "pics/.dot.jpg")
    assert keys_below(each_store, bucket, "pics/a.jpg") == ["pics/a.jpg"]
    assert keys_below(each_store, bucket, "pics/notes") == ["pics/notes"]
    source = source_of(each_store.url(bucket, "pics/a.jpg"))
    (ref,) = source.list()
    assert (ref.size, source.read(ref)) == (10, b"pics/a.jpg")
    assert list(source.list(ref.order)) == []
    assert list(source.list(ref.order[:-1])) == [ref]


def test_a_single_object_and_a_folder_of_one_name(fast_s3: FastS3) -> None:
    bucket = filled(fast_s3, "a.jpg", "a.jpg/b.jpg")
    assert keys_below(fast_s3, bucket, "a.jpg") == ["a.jpg"]
    assert keys_below(fast_s3, bucket, "a.jpg/") == ["a.jpg/b.jpg"]


ORCHARD = ["Test/[a]/1.jpg", "Test/apple/1.jpg", "Test/apple/2.png", "Test/apple/wild/3.jpg", "Test/b*/1.jpg",
           "Test/banana/1.jpg", "Test/banana/10.jpg", "Test/cherry.jpg", "Train/apple/1.jpg"]  # fmt: skip


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("Test/*/*", [0, 1, 2, 3, 4, 5, 6]),
        ("Test/*/*.jpg", [0, 1, 4, 5, 6]),
        ("Test/*/?.jpg", [0, 1, 4, 5]),
        ("Test/**", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("Test/**/*.jpg", [0, 1, 3, 4, 5, 6, 7]),
        ("**/apple/*.jpg", [1, 8]),
        ("Test/[bc]*", [4, 5, 6, 7]),
        ("Test/[!b]*/1.jpg", [0, 1]),
        ("Test/[[]a]/*", [0]),
        ("Test/b[*]/*", [4]),
        ("Test/a*/", [1, 2, 3]),
        ("T*/apple", [1, 2, 3, 8]),
        ("Test/apple*", [1, 2, 3]),
        ("Test/*.gif", []),
    ],
)
def test_globs(fast_s3: FastS3, glob: str, expected: list[int]) -> None:
    bucket = filled(fast_s3, *ORCHARD)
    assert keys_below(fast_s3, bucket, glob) == [ORCHARD[i] for i in expected]


def test_a_glob_lists_no_more_than_the_folder_before_its_first_pattern(listing: Listing) -> None:
    listing.make(20_000)
    found = keys_below(listing, listing.bucket(), "Test/kiwi/*")
    assert len(found) == 2_000
    assert listing.operations()["ListObjectsV2"] == 2


def test_include_and_exclude(fast_s3: FastS3) -> None:
    bucket = filled(fast_s3, "in/a/1.jpg", "in/a/2.png", "in/b/1.jpg", "in/notes.txt", "in/b/x")
    assert keys_and_skipped(fast_s3, bucket, "in/", include=["*.jpg"], exclude=["b/*"]) == (
        ["in/a/1.jpg"],
        {"not included": 1, "excluded": 1, "no image suffix": 2},
    )
    assert keys_and_skipped(fast_s3, bucket, "in/", include=["a/**"]) == (
        ["in/a/1.jpg", "in/a/2.png"],
        {"not included": 1, "no image suffix": 2},
    )
    assert keys_and_skipped(fast_s3, bucket, "in/", all_files=True) == (
        ["in/a/1.jpg", "in/a/2.png", "in/b/1.jpg", "in/b/x", "in/notes.txt"],
        {},
    )


@pytest.mark.parametrize("all_files", [False, True])
def test_dot_files_and_dot_folders_are_skipped(each_store: Any, all_files: bool) -> None:
    bucket = filled(each_store, "in/.a.jpg", "in/.git/b.jpg", "in/c/.d/e.jpg", "in/f.jpg")
    expected = (["in/f.jpg"], {"dot file": 3})
    assert keys_and_skipped(each_store, bucket, "in", all_files=all_files) == expected
    hidden = filled(each_store, ".hidden/a.jpg")
    assert keys_below(each_store, hidden, ".hidden/") == [".hidden/a.jpg"]  # named explicitly


@pytest.mark.parametrize("store", ["fast_s3", "google", "azure"])
@pytest.mark.parametrize("all_files", [False, True])
def test_markers_of_folders_are_not_images(store: str, all_files: bool, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(store)
    bucket = filled(server, "dir-x/y.jpg", "dir/", "dir/x.jpg", "p.jpg/", "p.jpg/q.jpg", "r.jpg/", "z.jpg")
    images = ["dir-x/y.jpg", "dir/x.jpg", "p.jpg/q.jpg", "z.jpg"]
    keys, skipped = keys_and_skipped(server, bucket, all_files=all_files)
    assert keys == images
    assert skipped == {"not a regular file": 3}
    for n in range(len(images)):
        rest = source_of(server.url(bucket), all_files=all_files).list(server.url(bucket, images[n]).encode())
        assert [ref.uri for ref in rest] == [server.url(bucket, key) for key in images[n + 1 :]]
    inside = keys_and_skipped(server, bucket, "dir/", all_files=all_files)
    assert inside == (["dir/x.jpg"], {} if store == "azure" else {"not a regular file": 1})


def test_an_empty_object_is_an_image(each_store: Any) -> None:
    bucket = filled(each_store, "in/b.jpg")
    each_store.put(bucket, {"in/a.jpg": b"", "in/c.jpg": b""})
    source = source_of(each_store.url(bucket, "in/"))
    refs = list(source.list())
    assert [(ref.uri[-5:], ref.size) for ref in refs] == [("a.jpg", 0), ("b.jpg", 8), ("c.jpg", 0)]
    assert source.read(refs[0]) == b""


@pytest.mark.parametrize("all_files", [False, True])
def test_destination_and_feature_sets_are_each_counted_once(fast_s3: FastS3, all_files: bool) -> None:
    inner = ["plan/chunk-00000000.parquet", "features/part-00000000.parquet", "receipts/part-00000000.json"]
    inner += ["analysis/moments.npz", "projection/pca-0123456789abcdef.npz"]
    bucket = filled(fast_s3, "in/a.jpg", "in/out2/b.jpg", "in/z.jpg", *(f"in/out/{name}" for name in inner))
    fast_s3.put(bucket, {"in/out/x.jpg": b"1", "in/out-x/y.jpg": b"1"})
    for name in ("in/set", "in/sub/set", "results"):
        fast_s3.put(bucket, {f"{name}/{key}": data for key, data in PLAN.items()})
        fast_s3.put(bucket, {f"{name}/{key}": b"" for key in inner[1:]})
        fast_s3.put(bucket, {f"{name}/part.jpg": b""})
    options: dict[str, Any] = {"all_files": all_files, "destination": f"s3://{bucket}/in/out"}
    keys, skipped = keys_and_skipped(fast_s3, bucket, "in/", **options)
    assert keys == ["in/a.jpg", "in/out-x/y.jpg", "in/out2/b.jpg", "in/z.jpg"]
    assert skipped == {"the destination": 1, "feature set": 2}
    first = f"s3://{bucket}/in/a.jpg".encode()
    source = source_of(f"s3://{bucket}/in/", **options)
    assert [ref.uri for ref in source.list(first)] == [f"s3://{bucket}/{key}" for key in keys[1:]]
    assert dict(source.skipped) == skipped


def test_a_folder_without_a_plan_is_not_a_feature_set(fast_s3: FastS3) -> None:
    keys = ["in/a.jpg", "in/features/part-00000001.parquet", "in/manifest.json", "in/my-manifest.json", "in/z.jpg"]
    bucket = filled(fast_s3, *keys)
    assert keys_below(fast_s3, bucket, "in/", all_files=True) == keys
    assert keys_below(fast_s3, bucket, "in/") == ["in/a.jpg", "in/z.jpg"]


def test_a_feature_set_in_the_root_of_the_bucket(fast_s3: FastS3) -> None:
    bucket = filled(fast_s3, "features/part-00000000.parquet", "pics/a.jpg", "receipts/part-00000000.json")
    fast_s3.put(bucket, PLAN)
    assert keys_and_skipped(fast_s3, bucket, all_files=True) == (["pics/a.jpg"], {"feature set": 1})


# -- continued listings --------------------------------------------------------------------------------------


def test_a_long_listing_makes_concurrent_requests(listing: Listing) -> None:
    listing.make(60_000)
    listing.delay(0.05, "ListObjectsV2")
    source = source_of(listing.url(listing.bucket(), "Test/"))
    refs = list(source.list())
    assert [ref.uri.encode() for ref in refs] == [b"s3://made-up/" + key for key in MadeUpKeys(60_000)]
    assert listing.most_at_once() > 4
    assert listing.operations()["ListObjectsV2"] < 2 * 60 + 40
    assert list(source.list(refs[20_000].order)) == refs[20_001:]


def test_a_continued_listing_requests_only_what_is_left(listing: Listing) -> None:
    listing.make(5_000)
    source = source_of(listing.url(listing.bucket(), "Test/"))
    refs = list(source.list())
    assert len(refs) == 5_000
    assert listing.operations() == {"ListObjectsV2": 5}
    for n_before in (0, 1_700, 2_999, 4_990):
        listing.forget()
        assert list(source.list(refs[n_before].order)) == refs[n_before + 1 :]
        assert listing.operations()["ListObjectsV2"] == -(-(4_999 - n_before) // 1000)
    listing.forget()
    assert list(itertools.islice(source.list(), 10)) == refs[:10]
    assert listing.operations()["ListObjectsV2"] <= 2  # pages are requested as needed


def test_a_listing_continues_after_keys_of_any_kind(fast_s3: FastS3) -> None:
    bucket = filled(fast_s3, "a b.jpg", "a%41.jpg", "a+b&c=d.jpg", "aé.jpg", "日本.jpg", "😀.jpg")
    source = source_of(fast_s3.url(bucket))
    refs = list(source.list())
    assert len(refs) == 6
    for i, ref in enumerate(refs):
        assert list(source.list(ref.order)) == refs[i + 1 :]
        for cut in range(1, 5):  # in the middle of a character
            before = ref.order[: -4 - cut]
            assert list(source.list(before)) == [one for one in refs if one.order > before]


@pytest.mark.parametrize("kind", ["500", "503", "reset", "short", "long", "stall"])
def test_an_interrupted_listing_continues(listing: Listing, faulty: Faulty, kind: str) -> None:
    listing.make(12_000)
    proxy = faulty(listing, rate=0.4, seed=3, kinds=(kind,), stall_seconds=0.4)
    source = source_of(listing.url(listing.bucket(), "Test/"), ImageSettings(timeout_seconds=30.0))
    found = [ref.uri for ref in source.list()]
    assert proxy.n_faults() > 2
    assert len(found) == len(set(found)) == 12_000
    assert found == sorted(found)


# -- names ---------------------------------------------------------------------------------------------------

PLAIN = ["a b.jpg", "a%20b.jpg", "a#1.jpg", "a+b.jpg", "a/c.jpg", "a=&b;.jpg", "a?b.jpg", "z/é.jpg", "日本/語.jpg"]
ODD = ["/lead.jpg", "a//b.jpg", "a/../c.jpg", "a/./d.jpg", "a/tab\there.jpg", "line\nfeed.jpg", "del\x7f.jpg"]


def test_any_key_of_s3_is_listed_in_order_and_read(fast_s3: FastS3) -> None:
    keys = sorted([*PLAIN, *ODD], key=str.encode)
    bucket = filled(fast_s3, *keys)
    source = source_of(fast_s3.url(bucket))
    refs = list(source.list())
    assert [ref.uri for ref in refs] == [f"s3://{bucket}/{key}" for key in keys]
    for i, (ref, key) in enumerate(zip(refs, keys, strict=True)):
        assert ref.problem is None
        assert ref.size == len(key.encode())
        assert source.read(ref) == key.encode()
        assert source.stat(ref) == ref
        with source.open(ref) as file:
            assert file.read() == key.encode()
        assert list(source.list(ref.order)) == refs[i + 1 :]


@pytest.mark.parametrize("key", ODD)
def test_an_odd_key_of_s3_can_be_named(fast_s3: FastS3, key: str) -> None:
    bucket = filled(fast_s3, key, "a/c.jpg", "b.jpg")
    source = source_of(fast_s3.url(bucket, key))
    (ref,) = source.list()
    assert (ref.uri, source.read(ref)) == (fast_s3.url(bucket, key), key.encode())
    fast_s3.put(bucket, {key: b"another"})
    assert failure(source, ref) == "changed since listing"
    fast_s3.client.delete_object(Bucket=bucket, Key=key)
    assert failure(source, ref) == "vanished since listing"
    assert source.stat(ref).problem == "vanished since listing"


def test_an_odd_prefix_of_s3_can_be_named(fast_s3: FastS3) -> None:
    bucket = filled(fast_s3, *PLAIN, *ODD)
    assert keys_below(fast_s3, bucket, "a//") == ["a//b.jpg"]
    assert keys_below(fast_s3, bucket, "a/../") == ["a/../c.jpg"]
    assert keys_below(fast_s3, bucket, "/") == ["/lead.jpg"]
    assert keys_below(fast_s3, bucket, "a/..") == ["a/../c.jpg"]


def test_an_odd_key_too_large_is_not_read(fast_s3: FastS3) -> None:
    bucket = filled(fast_s3, "a//b.jpg")
    source = source_of(fast_s3.url(bucket), ImageSettings(max_bytes=7))
    (ref,) = source.list()
    assert failure(source, ref) == "too many bytes: 8, above the limit of 7 (--max-bytes)"


@pytest.fixture(params=["azure", "google"])
def elsewhere(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_elsewhere_plain_keys_are_listed_and_read(elsewhere: Any) -> None:
    names = [key for key in PLAIN if "=&" not in key or not isinstance(elsewhere, Azure)]
    bucket = filled(elsewhere, *names)
    source = source_of(elsewhere.url(bucket))
    refs = list(source.list())
    assert [ref.uri for ref in refs] == [elsewhere.url(bucket, key) for key in sorted(names, key=str.encode)]
    assert [source.read(ref) for ref in refs] == [key.encode() for key in sorted(names, key=str.encode)]


NEIGHBOURS = ["a/1.jpg", "b-x/1.jpg", "b/c/1.jpg", "b/c/d/2.jpg", "b/e.jpg", "b0.jpg", "c/3.jpg", "top.jpg"]


@pytest.mark.parametrize(
    ("odd", "folder", "hidden"),
    [
        ("b//x.jpg", "b/", ["b/c/1.jpg", "b/c/d/2.jpg", "b/e.jpg"]),
        ("b/../x.jpg", "b/", ["b/c/1.jpg", "b/c/d/2.jpg", "b/e.jpg"]),
        ("b/c/./x.jpg", "b/c/", ["b/c/1.jpg", "b/c/d/2.jpg"]),
        ("b/c/tab\t.jpg", "b/c/", ["b/c/1.jpg", "b/c/d/2.jpg"]),
        ("new/deep/a//x.jpg", "new/deep/a/", []),
        ("/lead.jpg", "/", []),
    ],
)
def test_elsewhere_a_folder_with_an_odd_key_is_one_failure(
    elsewhere: Any, odd: str, folder: str, hidden: list[str]
) -> None:
    bucket = filled(elsewhere, odd, *NEIGHBOURS)
    source = source_of(elsewhere.url(bucket))
    refs = list(source.list())
    expected = sorted([*(key for key in NEIGHBOURS if key not in hidden), folder], key=str.encode)
    assert [ref.uri for ref in refs] == [elsewhere.url(bucket, key) for key in expected]
    problems = {ref.uri: ref.problem for ref in refs if ref.problem is not None}
    assert problems == {elsewhere.url(bucket, folder): UNLISTED}
    assert [ref.order for ref in refs] == sorted(ref.order for ref in refs)
    for i, ref in enumerate(refs):
        assert list(source.list(ref.order)) == refs[i + 1 :]
        if ref.problem is None:
            assert source.read(ref) == ref.uri.removeprefix(elsewhere.url(bucket)).encode()


def test_elsewhere_several_odd_keys_are_a_failure_each(elsewhere: Any) -> None:
    bucket = filled(elsewhere, *NEIGHBOURS, "a//x.jpg", "b/c/d/..", "c/y/../z.jpg")
    refs = list(source_of(elsewhere.url(bucket)).list())
    failures = [ref.uri.removeprefix(elsewhere.url(bucket)) for ref in refs if ref.problem]
    assert failures == ["a/", "b/c/d/", "c/y/"]
    images = [ref.uri.removeprefix(elsewhere.url(bucket)) for ref in refs if not ref.problem]
    assert images == ["b-x/1.jpg", "b/c/1.jpg", "b/e.jpg", "b0.jpg", "c/3.jpg", "top.jpg"]


def test_elsewhere_an_odd_key_in_the_root_is_a_failure_of_the_whole(elsewhere: Any) -> None:
    bucket = filled(elsewhere, "a.jpg", "tab\t.jpg")
    (ref,) = source_of(elsewhere.url(bucket)).list()
    assert (ref.uri, ref.problem) == (elsewhere.url(bucket), UNLISTED)


def test_elsewhere_a_folder_fails_only_if_it_is_requested(elsewhere: Any) -> None:
    bucket = filled(elsewhere, "in/.git//x", "in/a/1.jpg", "in/b//x.jpg", "in/out//x", "in/c.jpg")
    destination = elsewhere.url(bucket, "in/out")
    assert keys_below(elsewhere, bucket, "in", destination=destination) == ["in/a/1.jpg", "in/b/", "in/c.jpg"]
    assert keys_below(elsewhere, bucket, "in/a*/*") == ["in/a/1.jpg"]
    assert keys_below(elsewhere, bucket, "in/b*/*", destination=destination) == ["in/b/"]
    assert keys_below(elsewhere, bucket, "in/**/x.jpg", destination=destination) == ["in/b/"]


def test_elsewhere_a_folder_fails_from_the_odd_key_on(google: Google) -> None:
    keys = [f"f/{i:04d}.jpg" for i in range(1_500)]
    bucket = filled(google, "a.jpg", *keys, "f/1200//odd.jpg", "z.jpg")
    source = source_of(google.url(bucket))
    refs = list(source.list())
    uris = [ref.uri.removeprefix(google.url(bucket)) for ref in refs]
    (odd,) = (i for i, ref in enumerate(refs) if ref.problem)
    assert uris == sorted(uris)
    assert uris[-1] == "z.jpg"
    assert len(set(uris) & set(keys)) >= 1_000 or uris[odd] == "f/1200/"
    assert list(source.list(refs[odd].order)) == refs[odd + 1 :]
    assert next(source.list(refs[odd - 1].order)).problem is not None


def test_elsewhere_an_odd_prefix_cannot_be_named(elsewhere: Any) -> None:
    bucket = filled(elsewhere, "a//b.jpg", "a/c.jpg")
    assert "cannot be requested from this store" in refused_listing(elsewhere.url(bucket, "a//"))


def test_a_leading_slash_is_detected(elsewhere: Any) -> None:
    bucket = filled(elsewhere, "(1).jpg", "/a.jpg", "a.jpg", "b.jpg")
    assert keys_below(elsewhere, bucket) == ["(1).jpg", "/", "a.jpg", "b.jpg"]


def test_moto_emulates_google(google_by_moto: GoogleByMoto) -> None:
    bucket = google_by_moto.bucket()
    google_by_moto.put(bucket, {"a/1.jpg": b"1", "b.jpg": b"22"})
    source = source_of(google_by_moto.url(bucket))
    assert [source.read(ref) for ref in source.list()] == [b"1", b"22"]
