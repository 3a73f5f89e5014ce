"""The servers for tests of object stores, used by boto3 and obstore, without featurepress."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import obstore
import pytest
from botocore.exceptions import ClientError
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
)

from tests.servers.azurite import ACCOUNT, Azure
from tests.servers.clients import connect, listed
from tests.servers.google import Google, GoogleByMoto
from tests.servers.listing import Listing, MadeUpKeys
from tests.servers.s3 import REGION, S3, FastS3

PART_BYTES = 5 * 1024**2


@pytest.fixture(params=["s3", "fast_s3"])
def any_s3(request: pytest.FixtureRequest) -> Any:
    """Return each S3 that can be written to."""
    return request.getfixturevalue(request.param)


# -- all servers ---------------------------------------------------------------------------------------------


def test_objects_are_read_as_they_were_written(each_store: Any) -> None:
    bucket = each_store.bucket()
    store = connect(each_store, bucket)
    objects = {"a/b.jpg": b"1", "a/c d+é%.jpg": bytes(range(256)) * 40, "empty": b""}
    each_store.put(bucket, objects)
    obstore.put(store, "a/written", b"2")
    assert {key: bytes(obstore.get(store, key).bytes()) for key in objects} == objects
    assert each_store.get(bucket, "a/written") == b"2"
    assert listed(store) == each_store.keys(bucket) == sorted([*objects, "a/written"])
    assert listed(store, "a", offset="a/b.jpg") == ["a/c d+é%.jpg", "a/written"]
    assert bytes(obstore.get_range(store, "a/c d+é%.jpg", start=250, length=10)) == bytes(
        [250, 251, 252, 253, 254, 255, 0, 1, 2, 3]
    )
    obstore.delete(store, ["a/b.jpg", "empty"])
    assert each_store.keys(bucket) == ["a/c d+é%.jpg", "a/written"]


def test_an_object_is_created_only_if_absent(each_store: Any) -> None:
    bucket = each_store.bucket()
    store = connect(each_store, bucket)

    def create(i: int) -> bool:
        try:
            obstore.put(store, "key", str(i).encode(), mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = [i for i, done in enumerate(pool.map(create, range(16))) if done]
    assert len(won) == 1
    assert each_store.get(bucket, "key") == str(won[0]).encode()


def test_an_object_is_replaced_only_in_the_version_that_was_read(each_store: Any) -> None:
    store = connect(each_store, each_store.bucket())
    obstore.put(store, "key", b"1")
    read = obstore.head(store, "key")
    version: Any = {name: read[name] for name in ("e_tag", "version") if read[name] is not None}
    obstore.put(store, "key", b"2", mode=version)
    with pytest.raises(PreconditionError):
        obstore.put(store, "key", b"3", mode=version)
    with pytest.raises(PreconditionError):
        obstore.put(store, "other", b"3", mode=version)
    with pytest.raises(PreconditionError):
        obstore.get(store, "key", options={"if_match": read["e_tag"]})
    assert obstore.get(store, "key").bytes() == b"2"


def test_large_objects_are_written_in_parts(each_store: Any) -> None:
    bucket = each_store.bucket()
    store = connect(each_store, bucket)
    data = os.urandom(2 * PART_BYTES + 1)
    obstore.put(store, "large", data, chunk_size=PART_BYTES)
    assert bytes(obstore.get(store, "large").bytes()) == data
    assert each_store.uploads(bucket) == []


def test_a_missing_object_is_reported(each_store: Any) -> None:
    bucket = each_store.bucket()
    with pytest.raises(FileNotFoundError):
        obstore.get(connect(each_store, bucket), "missing")
    with pytest.raises(FileNotFoundError):
        obstore.get(connect(each_store, "missing"), "missing")
    with pytest.raises(BaseError, match=r"NoSuchBucket|ContainerNotFound"):
        listed(connect(each_store, "missing"))


def test_buckets_are_new(each_store: Any) -> None:
    assert each_store.bucket() != each_store.bucket()
    assert each_store.keys(each_store.bucket()) == []


# -- S3 ------------------------------------------------------------------------------------------------------


def test_the_environment_leads_to_the_server(any_s3: S3) -> None:
    assert os.environ["AWS_ENDPOINT_URL"] == any_s3.endpoint
    assert os.environ["AWS_REGION"] == REGION
    assert any_s3.url("photos", "a.jpg") == "s3://photos/a.jpg"
    assert any_s3.environment.items() <= os.environ.items()


def test_unfinished_uploads_are_seen(any_s3: S3) -> None:
    bucket = any_s3.bucket()
    number = any_s3.client.create_multipart_upload(Bucket=bucket, Key="a")["UploadId"]
    any_s3.client.upload_part(Bucket=bucket, Key="a", UploadId=number, PartNumber=1, Body=b"1")
    assert any_s3.uploads(bucket) == ["a"]
    assert any_s3.keys(bucket) == []
    any_s3.client.abort_multipart_upload(Bucket=bucket, Key="a", UploadId=number)
    assert any_s3.uploads(bucket) == []


def test_the_fast_server_pages_like_moto(moto_process: S3, fast_s3: FastS3) -> None:
    keys = ["a", "a/1", "a/b/1", "a/b/2", "a/c", "ab", "b/1", "b/2", "ü/1"]
    places = [(one, one.bucket()) for one in (moto_process, fast_s3)]
    for one, bucket in places:
        one.put(bucket, dict.fromkeys(keys, b"1"))
    for prefix, delimiter, max_keys in product(["", "a", "a/", "a/b/", "missing"], ["", "/"], [1, 2, 1000]):
        asked: dict[str, Any] = {"Prefix": prefix, "Delimiter": delimiter, "MaxKeys": max_keys}
        assert take_pages(*places[0], **asked) == take_pages(*places[1], **asked), asked
    assert take_pages(*places[0], StartAfter="a/b/1") == take_pages(*places[1], StartAfter="a/b/1")


def take_pages(server: S3, bucket: str, **asked: Any) -> list[tuple[list[str], list[str]]]:
    """Return keys and common prefixes of each page."""
    pages = []
    token: dict[str, str] = {}
    while True:
        page = server.client.list_objects_v2(Bucket=bucket, **asked, **token)
        contents = [entry["Key"] for entry in page.get("Contents", ())]
        pages.append((contents, [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]))
        if not page["IsTruncated"]:
            return pages
        token = {"ContinuationToken": page["NextContinuationToken"]}


def test_parts_must_be_whole_and_large(fast_s3: FastS3) -> None:
    bucket, client = fast_s3.bucket(), fast_s3.client
    number = client.create_multipart_upload(Bucket=bucket, Key="a")["UploadId"]
    place = {"Bucket": bucket, "Key": "a", "UploadId": number}
    etags = [client.upload_part(**place, PartNumber=n, Body=b"1")["ETag"] for n in (1, 2)]
    with pytest.raises(ClientError, match="EntityTooSmall"):
        parts = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]
        client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
    with pytest.raises(ClientError, match="InvalidPart"):
        client.complete_multipart_upload(**place, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": '"other"'}]})
    fast_s3.put(bucket, {"a": b"there"})
    last = {"Parts": [{"PartNumber": 2, "ETag": etags[1]}]}
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.complete_multipart_upload(**place, MultipartUpload=last, IfNoneMatch="*")
    client.complete_multipart_upload(**place, MultipartUpload=last)
    assert fast_s3.get(bucket, "a") == b"1"


def test_keys_are_unchanged(fast_s3: FastS3) -> None:
    bucket = fast_s3.bucket()
    keys = ["/lead", "a/../b", "a/./b", "a//b", "line\nfeed", "na\udcffme", "plus+ &<>%41"]
    fast_s3.put(bucket, {key: key.encode(errors="surrogateescape") for key in keys})
    assert fast_s3.keys(bucket) == keys
    assert fast_s3.get(bucket, "a/../b") == b"a/../b"
    assert fast_s3.get(bucket, "na\udcffme") == b"na\xffme"
    assert S3.keys(fast_s3, bucket) == [key.replace("\udcff", "\ufffd") for key in keys]
    with pytest.raises(InvalidPathError):
        listed(connect(fast_s3, bucket))


def test_a_folder_is_loaded_and_requests_are_counted(fast_s3: FastS3, tmp_path: Path) -> None:
    for i in range(1200):
        path = tmp_path / str(i % 3) / f"{i:04d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(str(i).encode())
    assert fast_s3.load("photos", tmp_path, "Test/") == 1200
    store = connect(fast_s3, "photos")
    keys = listed(store)
    assert keys == sorted(keys)
    assert len(keys) == 1200
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda key: len(obstore.get(store, key).bytes()), keys))
    assert sum(sizes) == sum(len(str(i)) for i in range(1200))
    assert fast_s3.operations() == {"ListObjectsV2": 2, "GetObject": 1200}
    assert fast_s3.methods() == {"GET": 1202}
    assert fast_s3.bytes_sent() > sum(sizes)
    assert fast_s3.asked()[0] == "ListObjectsV2 photos/"
    assert "GetObject photos/Test/0/0000.jpg" in fast_s3.asked()
    fast_s3.forget()
    assert fast_s3.methods() == {}


def test_responses_can_be_delayed(fast_s3: FastS3) -> None:
    bucket = fast_s3.bucket()
    fast_s3.put(bucket, {"a": b"1"})
    store = connect(fast_s3, bucket)
    fast_s3.delay(0.2, "GetObject")
    start = time.monotonic()
    listed(store)
    assert time.monotonic() - start < 0.2
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: obstore.get(store, "a").bytes(), range(4)))
    assert time.monotonic() - start >= 0.2
    assert fast_s3.most_at_once() == 4


def test_conditions_can_be_ignored_or_unknown(fast_s3: FastS3) -> None:
    bucket = fast_s3.bucket()
    store = connect(fast_s3, bucket)
    fast_s3.honour_conditions("ignored")
    for data in (b"1", b"2"):
        obstore.put(store, "a", data, mode="create")
    assert fast_s3.get(bucket, "a") == b"2"
    fast_s3.honour_conditions("unsupported")
    with pytest.raises(BaseError, match="NotImplemented"):
        obstore.put(store, "b", b"", mode="create")
    fast_s3.behave()
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "a", b"3", mode="create")


def test_requests_can_be_refused(fast_s3: FastS3) -> None:
    bucket = fast_s3.bucket()
    fast_s3.put(bucket, {"a": b"1", "b": b"2"})
    store = connect(fast_s3, bucket)
    fast_s3.refuse("AccessDenied", keys="/a$", methods="GET")
    with pytest.raises(PermissionDeniedError, match="AccessDenied"):
        obstore.get(store, "a")
    assert obstore.get(store, "b").bytes() == b"2"
    fast_s3.refuse("ExpiredToken", 400, keys="/b$", after=1, times=1)
    assert obstore.get(store, "b").bytes() == b"2"
    with pytest.raises(BaseError, match="ExpiredToken"):
        obstore.get(store, "b")
    assert obstore.get(store, "b").bytes() == b"2"
    fast_s3.behave()
    assert obstore.get(store, "a").bytes() == b"1"


def test_signatures_can_be_required_or_refused(fast_s3: FastS3) -> None:
    bucket = fast_s3.bucket()
    fast_s3.put(bucket, {"a": b"1"})
    signed, anonymous = connect(fast_s3, bucket), connect(fast_s3, bucket, skip_signature=True)
    for access, who in (("anonymous", signed), ("signed", anonymous)):
        fast_s3.require(access)
        with pytest.raises(PermissionDeniedError):
            obstore.get(who, "a")
        assert obstore.get(anonymous if who is signed else signed, "a").bytes() == b"1"


def test_a_bucket_can_be_in_another_region(fast_s3: FastS3) -> None:
    bucket = fast_s3.bucket()
    fast_s3.put(bucket, {"a": b"1"})
    fast_s3.place(bucket, "ap-south-1")
    with pytest.raises(BaseError, match="redirect without LOCATION"):
        listed(connect(fast_s3, bucket))
    assert S3.keys(fast_s3, bucket) == ["a"]  # boto3 follows: the response has the region in a header
    fast_s3.place(bucket, "ap-south-1", status=400)
    with pytest.raises(BaseError, match="<Region>ap-south-1</Region>"):
        listed(connect(fast_s3, bucket))
    assert listed(connect(fast_s3, bucket, region="ap-south-1")) == ["a"]


# -- generated listings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_keys", [0, 1, 9, 10, 11, 1234, 100_000_000])
def test_generated_keys_are_in_byte_order(n_keys: int) -> None:
    keys = MadeUpKeys(n_keys)
    assert len(keys) == n_keys
    some = keys[:20] if n_keys < 2000 else [*keys[9_999_990:10_000_010], keys[-1 % n_keys]]
    assert list(some) == sorted(set(some))
    assert len(some) == min(20, n_keys) if n_keys < 2000 else 21


def test_a_million_keys_are_listed(listing: Listing) -> None:
    store = connect(listing, listing.bucket())
    keys = MadeUpKeys(1_000_000)
    last = keys[len(keys) - 1].decode()
    assert listed(store, offset=keys[998_499].decode())[0] == "Test/raspberry/0098500.jpg"
    assert len(listed(store, offset=keys[990_000 - 1].decode())) == 10_000
    assert listing.client.list_objects_v2(Bucket="any", MaxKeys=2)["Contents"][1]["Key"] == keys[1].decode()
    assert [path.rpartition("/")[2] for path in obstore.list_with_delimiter(store, "Test")["common_prefixes"]] == [
        "apple",
        "banana",
        "cherry",
        "grape",
        "kiwi",
        "lemon",
        "orange",
        "pear",
        "plum",
        "raspberry",
    ]
    assert obstore.get(store, last).bytes() == obstore.get(store, keys[0].decode()).bytes()
    assert bytes(obstore.get(store, last).bytes())[:2] == b"\xff\xd8"
    assert obstore.head(store, last)["size"] == len(obstore.get(store, last).bytes())
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "Test/raspberry/0100000.jpg")
    with pytest.raises(PermissionDeniedError):
        obstore.put(store, "new", b"")


def test_a_generated_listing_is_complete(listing: Listing) -> None:
    listing.make(12_345)
    listing.delay(0.005, "ListObjectsV2")
    store = connect(listing, listing.bucket())
    assert listed(store) == [key.decode() for key in MadeUpKeys(12_345)]
    assert listing.operations() == {"ListObjectsV2": 13}


# -- Azure and Google ----------------------------------------------------------------------------------------


def test_azure_is_emulated(azure: Azure) -> None:
    container = azure.container()
    assert azure.url(container) == f"az://{ACCOUNT}/{container}/"
    store = connect(azure, container)
    obstore.put(store, "a", b"1")
    entry, head = obstore.list(store).collect()[0], obstore.head(store, "a")
    assert f'"{entry["e_tag"]}"' == head["e_tag"]  # the quotes are missing in listings
    azure.put(container, {"a//b": b"1"})
    assert azure.keys(container) == ["a", "a//b"]
    with pytest.raises(InvalidPathError):
        listed(store)
    with pytest.raises(BaseError, match="AuthorizationFailure"):
        listed(connect(azure, container, skip_signature=True))
    public = azure.container(public=True)
    assert listed(connect(azure, public, skip_signature=True)) == []


def test_google_has_generations(google: Google) -> None:
    bucket = google.bucket()
    store = connect(google, bucket)
    assert google.url(bucket) == f"gs://{bucket}/"
    first = obstore.put(store, "a", b"1")["version"]
    second = obstore.put(store, "a", b"2")["version"]
    assert first is not None
    assert second is not None
    assert int(second) > int(first)
    assert obstore.head(store, "a")["version"] == second
    assert obstore.list(store).collect()[0]["version"] is None
    assert obstore.get(store, "a", options={"version": second}).bytes() == b"2"
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "a", options={"version": first})
    with pytest.raises(BaseError, match="Version required"):
        obstore.put(store, "a", b"3", mode={"e_tag": obstore.head(store, "a")["e_tag"]})
    with pytest.raises(FileNotFoundError):
        obstore.delete(store, "missing")


def test_moto_emulates_google_for_reads(google_by_moto: GoogleByMoto) -> None:
    bucket = google_by_moto.bucket()
    google_by_moto.put(bucket, {"a/1": b"1", "b": b"2"})
    store = connect(google_by_moto, bucket)
    assert listed(store) == ["a/1", "b"]
    assert obstore.get(store, "a/1").bytes() == b"1"
