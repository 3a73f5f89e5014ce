"""Buckets as sources: reading, and refusals."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featurepress.errors import ImageError, StorageError
from featurepress.settings import ImageSettings
from featurepress.sources.files.objects import ObjectSource, read_object
from featurepress.specs import ImageRef
from featurepress.storage.connection import Address, connect
from tests.servers.azurite import Azure
from tests.servers.fixtures import Faulty
from tests.servers.google import Google
from tests.servers.s3 import S3, FastS3
from tests.sources.files.test_objects import (
    filled,
    keys_and_skipped,
    keys_below,
    refused_listing,
    source_of,
)
from tests.sources.listed import failure

# -- reading -------------------------------------------------------------------------------------------------


def one_ref(server: Any, limits: ImageSettings | None = None, data: bytes = b"12") -> tuple[ObjectSource, ImageRef]:
    bucket = server.bucket()
    server.put(bucket, {"in/a.jpg": data, "in/b.jpg": b"other"})
    source = source_of(server.url(bucket, "in/"), limits)
    ref = next(source.list())
    return source, ref


def test_a_reference_has_size_and_quoted_etag(each_store: Any) -> None:
    source, ref = one_ref(each_store)
    assert ref.size == 2
    assert re.fullmatch(r'"[^"]+"', ref.version)
    assert source.stat(ref) == ref
    assert source.read(ref) == b"12"


def test_an_object_that_changed_or_vanished_is_a_failure(each_store: Any) -> None:
    source, ref = one_ref(each_store)
    bucket = ref.uri.split("/")[-3]
    each_store.put(bucket, {"in/a.jpg": b"34"})
    assert failure(source, ref) == "changed since listing"
    with pytest.raises(ImageError, match="changed since listing"):
        source.open(ref)
    now = source.stat(ref)
    assert now.version != ref.version
    assert source.read(now) == b"34"
    gone = ref._replace(uri=f"{ref.uri}x")
    assert failure(source, gone) == "vanished since listing"
    assert source.stat(gone) == gone._replace(size=0, version="", problem="vanished since listing")
    with pytest.raises(ImageError, match="vanished since listing"):
        source.open(gone)


def test_a_change_below_an_open_file_is_noticed(fast_s3: FastS3) -> None:
    source, ref = one_ref(fast_s3, data=bytes(3 * 1024**2))
    with source.open(ref) as file:
        assert file.read(10) == bytes(10)
        fast_s3.put(ref.uri.split("/")[2], {"in/a.jpg": b"1" * 3 * 1024**2})
        file.seek(2 * 1024**2 + 500_000)
        with pytest.raises(StorageError, match="it has changed"):
            file.read(10)


def test_open_reads_ranges(each_store: Any) -> None:
    data = os.urandom(3 * 1024**2)
    source, ref = one_ref(each_store, data=data)
    with source.open(ref) as file:
        file.seek(-5, os.SEEK_END)
        assert file.read() == data[-5:]
        file.seek(1_000_000)
        assert file.read(100_000) == data[1_000_000:1_100_000]


def test_an_object_that_is_too_large_is_not_read(fast_s3: FastS3) -> None:
    source, ref = one_ref(fast_s3, ImageSettings(max_bytes=100), data=bytes(10_000_000))
    fast_s3.forget()
    assert failure(source, ref) == "too many bytes: 10000000, above the limit of 100 (--max-bytes)"
    with pytest.raises(ImageError, match="too many bytes: 10000000"):  # an entry of a list has no size
        read_object(Address.parse(ref.uri), anonymous=False, limits=ImageSettings(max_bytes=100))
    assert fast_s3.bytes_sent() < 20_000_000


def test_a_public_bucket_is_read_without_signature(fast_s3: FastS3) -> None:
    bucket = filled(fast_s3, "a.jpg", "b//c.jpg")
    fast_s3.require("anonymous")
    source = source_of(fast_s3.url(bucket), anonymous=True)
    assert [source.read(ref) for ref in source.list()] == [b"a.jpg", b"b//c.jpg"]
    assert "no permission" in refused_listing(fast_s3.url(bucket))


def test_a_public_container_and_a_google_bucket_without_signature(azure: Azure, google: Google) -> None:
    container = azure.container(public=True)
    azure.put(container, {"a.jpg": b"1"})
    source = source_of(azure.url(container), anonymous=True)
    assert [source.read(ref) for ref in source.list()] == [b"1"]
    bucket = filled(google, "a.jpg")
    google.require("anonymous")
    source = source_of(google.url(bucket), anonymous=True)
    assert [source.read(ref) for ref in source.list()] == [b"a.jpg"]


# -- refusals ------------------------------------------------------------------------------------------------


def test_a_key_without_read_permission_is_a_failure(fast_s3: FastS3) -> None:
    source, ref = one_ref(fast_s3)
    fast_s3.refuse("AccessDenied", keys="/in/a")
    assert failure(source, ref) == "no permission (AccessDenied, status 403)"
    assert "no permission" in (source.stat(ref).problem or "")
    other = list(source.list())[1]
    assert source.read(other) == b"other"


@pytest.mark.parametrize(
    ("code", "status"),
    [("ExpiredToken", 400), ("InvalidAccessKeyId", 403), ("SignatureDoesNotMatch", 403), ("AccessDenied", 403)],
)
def test_refused_credentials_stop_the_run(fast_s3: FastS3, code: str, status: int) -> None:
    source, ref = one_ref(fast_s3)
    fast_s3.refuse(code, status)
    for do in (source.read, source.stat, source.open):
        with pytest.raises(
            StorageError, match=r"Cannot read 's3://.*': the credentials are refused.*and resume\.$"
        ):
            do(ref)
    fast_s3.behave()
    assert source.read(ref) == b"12"


def test_a_bucket_that_disappears_stops_the_run(fast_s3: FastS3) -> None:
    source, ref = one_ref(fast_s3)
    fast_s3.ask("empty")
    for do in (source.read, source.stat):
        with pytest.raises(StorageError, match=r"there is no such bucket.*and resume\.$"):
            do(ref)


def test_a_denied_entry_of_a_list_is_one_failure(fast_s3: FastS3) -> None:
    bucket = filled(fast_s3, "a.jpg")
    fast_s3.refuse("AccessDenied")  # the right to read objects does not include the right to list
    with pytest.raises(ImageError, match="no permission"):
        read_object(Address.parse(f"s3://{bucket}/a.jpg"), anonymous=False, limits=ImageSettings())


@pytest.mark.parametrize("kind", ["500", "503", "reset", "short", "long", "stall"])
def test_transient_faults_are_retried(fast_s3: FastS3, faulty: Faulty, kind: str) -> None:
    keys = [f"in/{i:02d}.jpg" for i in range(12)]
    bucket = fast_s3.bucket()
    fast_s3.put(bucket, {key: key.encode() * 1000 for key in keys})
    source = source_of(f"s3://{bucket}/in/", ImageSettings(timeout_seconds=4.0))
    refs = list(source.list())
    proxy = faulty(fast_s3, rate=0.3, seed=5, kinds=(kind,), stall_seconds=2.0, most_in_a_row=2)
    for _ in range(10):  # each bucket has another name, so other requests fail
        for ref, key in zip(refs, keys, strict=True):
            assert source.read(ref) == key.encode() * 1000
        if proxy.n_faults() >= 1:
            return
    pytest.fail("no request failed")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("InternalError", 500),
        ("SlowDown", 503),
        ("TooManyRequests", 429),
        ("RequestTimeout", 408),
        ("RequestTimeout", 400),
    ],
)
def test_transient_refusals_are_retried(fast_s3: FastS3, code: str, status: int) -> None:
    source, ref = one_ref(fast_s3)
    fast_s3.refuse(code, status, times=2)
    assert source.read(ref) == b"12"


@pytest.mark.parametrize(("code", "status"), [("InternalError", 500), ("TooManyRequests", 429)])
def test_a_key_that_never_answers_is_a_failure_in_bounded_time(fast_s3: FastS3, code: str, status: int) -> None:
    source, ref = one_ref(fast_s3, ImageSettings(timeout_seconds=2.0))
    fast_s3.refuse(code, status, keys="/in/a")
    start = time.monotonic()
    assert failure(source, ref) == f"no answer: the server answers {code}, status {status} again and again"
    assert time.monotonic() - start < 4


def test_a_key_that_stalls_is_a_failure_in_bounded_time(fast_s3: FastS3, faulty: Faulty) -> None:
    source, ref = one_ref(fast_s3, ImageSettings(timeout_seconds=2.0))
    faulty(fast_s3, rate=1.0, kinds=("stall",), paths=r"a\.jpg", stall_seconds=9, most_in_a_row=99)
    start = time.monotonic()
    assert failure(source, ref) == "no answer: no answer in time"
    assert time.monotonic() - start < 3


def test_an_unreachable_store_stops_the_run(fast_s3: FastS3) -> None:
    source, ref = one_ref(fast_s3, ImageSettings(timeout_seconds=2.0))
    fast_s3.refuse("InternalError", 500)
    with pytest.raises(StorageError, match=r"Cannot read 's3://.*again; check the network.*and resume\.$"):
        source.read(ref)


# -- bad input -----------------------------------------------------------------------------------------------


def test_no_such_bucket(each_store: Any) -> None:
    text = refused_listing(each_store.url("no-such-bucket", "in/"))
    assert "there is no such bucket" in text
    assert each_store.url("no-such-bucket", "in/") in text
    assert "there is no such bucket" in refused_listing(each_store.url("no-such-bucket", "in/a.jpg"))


def test_no_permission(fast_s3: FastS3) -> None:
    bucket = filled(fast_s3, "in/a.jpg")
    fast_s3.refuse("AccessDenied")
    for key in ("", "in/", "in/a.jpg", "in/*.jpg"):
        text = refused_listing(fast_s3.url(bucket, key))
        assert "no permission (AccessDenied, status 403)" in text
        assert "--anonymous" in text


@pytest.mark.parametrize("status", [301, 400])
@pytest.mark.parametrize("key", ["", "in/", "in/a.jpg"])
def test_a_wrong_region_names_the_right_one(fast_s3: FastS3, status: int, key: str) -> None:
    bucket = filled(fast_s3, "in/a.jpg", "in/b//c.jpg")
    fast_s3.place(bucket, "ap-south-1", status=status)
    text = refused_listing(fast_s3.url(bucket, key))
    assert "'ap-south-1', not in 'eu-west-3': set AWS_REGION=ap-south-1" in text


def test_the_right_region_helps(fast_s3: FastS3, use_environment: Callable[[Mapping[str, str]], None]) -> None:
    bucket = filled(fast_s3, "in/a.jpg", "in/b//c.jpg")
    fast_s3.place(bucket, "ap-south-1")
    use_environment({"AWS_REGION": "ap-south-1"})
    assert keys_below(fast_s3, bucket, "in/") == ["in/a.jpg", "in/b//c.jpg"]


def test_no_credentials_for_s3(fast_s3: FastS3, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = filled(fast_s3, "in/a.jpg")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    connect.cache_clear()
    start = time.monotonic()
    text = refused_listing(fast_s3.url(bucket, "in/"))
    assert time.monotonic() - start < 5
    assert text.startswith("There are no credentials for S3")
    assert "--anonymous" in text
    assert keys_below(fast_s3, bucket, "in/", anonymous=True) == ["in/a.jpg"]


@pytest.mark.parametrize("location", ["gs://some-bucket/in/", "az://account/container/in/"])
def test_no_credentials_elsewhere(
    use_environment: Callable[[Mapping[str, str]], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    location: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    use_environment({})
    start = time.monotonic()
    text = refused_listing(location)
    assert time.monotonic() - start < 30
    assert "no credentials" in text


def test_an_endpoint_that_does_not_listen(
    fast_s3: FastS3, use_environment: Callable[[Mapping[str, str]], None]
) -> None:
    use_environment({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    with pytest.raises(StorageError, match=r"Cannot list 's3://b/in/': the connection is refused") as caught:
        list(source_of("s3://b/in/", ImageSettings(timeout_seconds=0.2)).list())
    assert "\n" not in str(caught.value)


def test_an_empty_prefix_lists_nothing(each_store: Any) -> None:
    bucket = filled(each_store, "in/a.txt")
    assert keys_and_skipped(each_store, bucket, "nothing/") == ([], {})
    assert keys_and_skipped(each_store, bucket, "in/") == ([], {"no image suffix": 1})


def test_moto_agrees(s3: S3) -> None:
    bucket = filled(s3, "in/a b.jpg", "in/é#%.jpg", "in/x//y.jpg", "in/.z.jpg")
    source = source_of(s3.url(bucket, "in/"))
    refs = list(source.list())
    assert [ref.uri.removeprefix(s3.url(bucket)) for ref in refs] == ["in/a b.jpg", "in/x//y.jpg", "in/é#%.jpg"]
    assert [source.read(ref) for ref in refs] == [b"in/a b.jpg", b"in/x//y.jpg", "in/é#%.jpg".encode()]
    s3.put(bucket, {"in/a b.jpg": b"new"})
    assert failure(source, refs[0]) == "changed since listing"
    assert replace(Address.parse(refs[0].uri), key="").bucket == bucket
