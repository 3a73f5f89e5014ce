"""Connections to object stores: addresses, credentials, retries, and the meaning of errors."""

from __future__ import annotations

import os
import pickle
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest

from featurepress.errors import SourceError, StorageError
from featurepress.storage import open_storage
from featurepress.storage.bucket import list_objects
from featurepress.storage.connection import (
    Address,
    Refusal,
    connect,
    etag_of,
    refused,
    retrying,
    s3_region,
    scheme_of,
    store_errors,
)
from tests.servers.azurite import Azure
from tests.servers.fixtures import Faulty
from tests.servers.google import Google
from tests.servers.s3 import FastS3

Use = Callable[[Mapping[str, str]], None]


def store_of(server: Any, bucket: str, **options: Any) -> Any:
    address = Address.parse(server.url(bucket))
    return connect(address.scheme, address.bucket, **{"tries": 1, **options})


def refusal_of(do: Callable[[], object]) -> Refusal:
    with pytest.raises(store_errors()) as caught:
        do()
    return Refusal.of(caught.value)


# -- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "scheme", "bucket", "key"),
    [
        ("s3://b", "s3", "b", ""),
        ("S3://b/a/c.jpg", "s3", "b", "a/c.jpg"),
        ("gs://b//a/", "gs", "b", "/a/"),
        ("az://account/container/a?b@c", "az", "account/container", "a?b@c"),
    ],
)
def test_an_address_is_parsed(url: str, scheme: str, bucket: str, key: str) -> None:
    address = Address.parse(url)
    assert address == Address(scheme, bucket, key)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("url", ["s3://", "s3:///key", "az://account", "az://account/", "az:///container/key"])
def test_an_address_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(SourceError, match=r"names no bucket\. .* (s3://bucket|az://account/container)/…"):
        Address.parse(url, SourceError)


@pytest.mark.parametrize("url", ["s3://key:hunter2@b/a", "az://account/container?sig=hunter2/a"])
def test_an_address_with_a_password_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match="must not contain a password") as caught:
        Address.parse(url)
    assert "hunter2" not in str(caught.value)


def test_schemes() -> None:
    assert [scheme_of(one) for one in ("s3://b", "HTTPS://x", "/a/b", "a:b", "./s3://b", "C://x")] == [
        "s3", "https", "", "", "", "c",
    ]  # fmt: skip


def test_a_store_is_created_once_per_process(fast_s3: FastS3) -> None:
    bucket = fast_s3.bucket()
    assert connect("s3", bucket) is connect("s3", bucket)
    assert connect("s3", bucket) is not connect("s3", bucket, anonymous=True)


def test_etags_have_quotes() -> None:
    assert [etag_of({"e_tag": given}) for given in ("0x1", '"0x1"', 'W/"1"', None, "")] == [
        '"0x1"', '"0x1"', 'W/"1"', "", "",
    ]  # fmt: skip


# -- what refusals mean --------------------------------------------------------------------------------------


def test_missing_objects_buckets_and_conditions_of_each_store(each_store: Any) -> None:
    bucket = each_store.bucket()
    each_store.put(bucket, {"a": b"1"})
    store, none = store_of(each_store, bucket), store_of(each_store, "no-such-bucket")
    assert refusal_of(lambda: obstore.get(store, "b")).kind == "missing"
    assert refusal_of(lambda: obstore.head(store, "b")).kind == "missing"
    assert refusal_of(lambda: list(obstore.list(none))).kind == "bucket"
    assert refusal_of(lambda: obstore.get(none, "a")).kind == "bucket"
    assert refusal_of(lambda: obstore.put(none, "a", b"", use_multipart=False)).kind == "bucket"
    assert refusal_of(lambda: obstore.put(store, "a", b"", mode="create")).kind == "exists"
    assert refusal_of(lambda: obstore.get(store, "a", options={"if_match": '"x"'})).kind == "changed"
    version: Any = {"e_tag": '"0"', "version": "1"}
    assert refusal_of(lambda: obstore.put(store, "a", b"", mode=version)).kind == "changed"
    assert refusal_of(lambda: obstore.get(store, "a//b")).kind == "path"
    each_store.put(bucket, {"x//y": b""})
    assert refusal_of(lambda: list(list_objects(store, ""))).kind == "path"


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("AccessDenied", 403, "denied"),
        ("AllAccessDisabled", 403, "denied"),
        ("ExpiredToken", 400, "credentials"),
        ("InvalidAccessKeyId", 403, "credentials"),
        ("SignatureDoesNotMatch", 403, "credentials"),
        ("RequestTimeTooSkewed", 403, "credentials"),
        ("EntityTooLarge", 400, "other"),
        ("NotImplemented", 501, "unsupported"),
        ("InternalError", 500, "transient"),
        ("SlowDown", 503, "transient"),
        ("TooManyRequests", 429, "transient"),
        ("RequestTimeout", 408, "transient"),
        ("RequestTimeout", 400, "transient"),
        ("ConditionalRequestConflict", 409, "transient"),
        ("OperationAborted", 409, "transient"),
    ],
)
def test_error_codes_of_s3_are_classified(fast_s3: FastS3, code: str, status: int, kind: str) -> None:
    bucket = fast_s3.bucket()
    store = store_of(fast_s3, bucket)
    fast_s3.refuse(code, status)
    for do in (
        lambda: obstore.get(store, "a"),
        lambda: obstore.put(store, "a", b"", use_multipart=False),
        lambda: list(obstore.list(store)),
    ):
        refusal = refusal_of(do)
        assert refusal.kind == kind
        assert f"({code}, status {status})" in str(refusal) or f"{code}, status {status} again" in str(refusal)


@pytest.mark.parametrize("kind", ["reset", "short", "long", "stall"])
def test_broken_connections_are_transient(fast_s3: FastS3, faulty: Faulty, kind: str) -> None:
    bucket = fast_s3.bucket()
    fast_s3.put(bucket, {"a": b"1" * 5000})
    faulty(fast_s3, rate=1.0, kinds=(kind,), most_in_a_row=99, stall_seconds=3.0)
    store = store_of(fast_s3, bucket, timeout_seconds=0.5)
    refusal = refusal_of(lambda: obstore.get(store, "a").bytes())
    assert refusal.kind == "transient"
    assert "http" not in refusal.reason


def test_a_refused_connection_is_named(use_environment: Use, fast_s3: FastS3) -> None:
    use_environment({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    assert refusal_of(lambda: obstore.get(connect("s3", "b", tries=1), "a")).reason == "the connection is refused"


@pytest.mark.parametrize("status", [301, 400])
def test_a_wrong_region_is_named(fast_s3: FastS3, status: int) -> None:
    bucket = fast_s3.bucket()
    fast_s3.place(bucket, "ap-south-1", status=status)
    store = store_of(fast_s3, bucket)
    refusal = refusal_of(lambda: obstore.get(store, "a"))
    assert refusal.kind == "region"
    assert re.search("'ap-south-1', not .*'eu-west-3'.* AWS_REGION=ap-south-1$", refusal.reason)


# -- again ---------------------------------------------------------------------------------------------------


def test_transient_errors_are_retried() -> None:
    tries = []

    def fail() -> None:
        tries.append(1)
        raise OSError("connection reset")

    with pytest.raises(OSError, match="reset"):
        retrying(fail, seconds=0.3)
    assert 2 <= len(tries) <= 4
    tries.clear()
    with pytest.raises(OSError, match="reset"):
        retrying(fail, seconds=0)
    assert len(tries) == 1


def test_permanent_errors_are_not_retried() -> None:
    tries = []

    def fail() -> None:
        tries.append(1)
        raise FileNotFoundError("no")

    with pytest.raises(FileNotFoundError):
        retrying(fail)
    assert len(tries) == 1


def test_the_result_of_a_retry_is_returned() -> None:
    outcomes: Iterator[OSError | int] = iter([OSError("connection reset"), OSError("timed out"), 7])

    def request() -> int:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert retrying(request) == 7


# -- secrets -------------------------------------------------------------------------------------------------

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAHUNTER",
    "AWS_SECRET_ACCESS_KEY": "hunter2secret",
    "AWS_SESSION_TOKEN": "hunter3",
}


def spelled(error: BaseException | None) -> str:
    """Return the text, repr and pickle of an error and of the causes that a traceback shows."""
    text = ""
    while error is not None:
        text += f"{error} {error!r} {pickle.dumps(error)!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return text


@pytest.mark.parametrize(
    ("code", "status"), [("SignatureDoesNotMatch", 403), ("ExpiredToken", 400), ("InternalError", 500)]
)
def test_no_error_contains_a_secret(fast_s3: FastS3, use_environment: Use, code: str, status: int) -> None:
    bucket = fast_s3.bucket()
    use_environment(SECRETS)
    fast_s3.refuse(code, status)
    storage = open_storage(f"s3://{bucket}/out")
    try:
        obstore.get(store_of(fast_s3, bucket), "a")
    except store_errors() as error:
        text = spelled(refused("read", f"s3://{bucket}/a", error))
    for do in (
        (lambda: storage.read("a"), lambda: storage.create("a", b"1"), lambda: list(storage.list("")))
        if status != 500
        else ()
    ):
        with pytest.raises(StorageError) as caught:
            do()
        text += spelled(caught.value)
    text += repr(pickle.dumps(storage)) + repr(storage)
    assert "Cannot read" in text
    for secret in ("HUNTER", "hunter", "Signature=", "X-Amz", "Authorization", "authorization"):
        assert secret not in text


def test_no_error_of_azure_contains_its_sas(azure: Azure, use_environment: Use) -> None:
    sas = "sv=2022-11-02&sig=hunter2hunter2hunter2%3D&sp=rl"
    use_environment({"AZURE_STORAGE_USE_EMULATOR": "false", "AZURE_STORAGE_SAS_TOKEN": sas,
                     "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1/acct", "AZURE_ALLOW_HTTP": "true"})  # fmt: skip
    storage = open_storage("az://acct/cont/out")
    store = connect("az", "acct/cont", tries=1, timeout_seconds=1.0)
    with pytest.raises(store_errors()) as caught:
        obstore.get(store, "a")
    text = spelled(refused("read", "az://acct/cont/out/a", caught.value)) + repr(pickle.dumps(storage))
    assert "hunter2" not in text
    assert "sig=" not in text


# -- where credentials come from -----------------------------------------------------------------------------


def signed_as(server: FastS3, bucket: str) -> str:
    """Return the key id and the region with which a request is signed."""
    url = obstore.sign(store_of(server, bucket), "GET", "a", timedelta(seconds=60))
    assert isinstance(url, str)
    credential = url.partition("X-Amz-Credential=")[2].partition("&")[0]
    key_id, _, region, *_ = credential.replace("%2F", "/").split("/")
    return f"{key_id} {region}"


@pytest.fixture
def profiles(fast_s3: FastS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FastS3:
    """Write the files of profiles, and remove the keys from the environment."""
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = default-id\naws_secret_access_key = hunter2\n"
        "[work]\naws_access_key_id = work-id\naws_secret_access_key = hunter3\n"
    )
    (tmp_path / "config").write_text("[default]\nregion = eu-north-1\n[profile work]\nregion = sa-east-1\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    connect.cache_clear()
    return fast_s3


def test_keys_and_region_from_the_environment(fast_s3: FastS3) -> None:
    assert signed_as(fast_s3, fast_s3.bucket()) == "test-key eu-west-3"


def test_keys_and_region_from_the_default_profile(profiles: FastS3) -> None:
    assert signed_as(profiles, profiles.bucket()) == "default-id eu-north-1"
    assert s3_region() == "eu-north-1"


def test_keys_and_region_from_a_named_profile(profiles: FastS3, use_environment: Use) -> None:
    use_environment({"AWS_PROFILE": "work"})
    bucket = profiles.bucket()
    assert signed_as(profiles, bucket) == "work-id sa-east-1"
    profiles.place(bucket, "sa-east-1")
    open_storage(f"s3://{bucket}/out").write("a", b"1")
    assert profiles.get(bucket, "out/a") == b"1"
    use_environment({"AWS_REGION": "us-west-2"})
    assert signed_as(profiles, bucket) == "work-id us-west-2"
    with pytest.raises(StorageError, match="'sa-east-1', not in 'us-west-2'"):
        open_storage(f"s3://{bucket}/out").read("a")


def test_a_missing_profile_is_named(profiles: FastS3, use_environment: Use) -> None:
    use_environment({"AWS_PROFILE": "typo"})
    with pytest.raises(StorageError, match="typo") as caught:
        open_storage(f"s3://{profiles.bucket()}/out").read("a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_endpoint_from_the_environment(fast_s3: FastS3, use_environment: Use, name: str) -> None:
    bucket = fast_s3.bucket()
    use_environment({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    use_environment({name: fast_s3.endpoint})
    open_storage(f"s3://{bucket}/out").write("a", b"1")
    assert fast_s3.get(bucket, "out/a") == b"1"


def test_missing_credentials_of_google_are_reported_soon(
    use_environment: Use, google: Google, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GOOGLE_SERVICE_ACCOUNT")
    monkeypatch.setenv("HOME", str(tmp_path))
    use_environment({})
    start = time.monotonic()
    with pytest.raises(StorageError, match="no credentials"):
        open_storage("gs://some-bucket/out").read("a")
    assert time.monotonic() - start < 30
    assert not any(name.startswith("GOOGLE_") for name in os.environ)
