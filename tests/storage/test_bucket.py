"""Buckets as storage: lost answers, stores without conditional requests, and large objects."""

from __future__ import annotations

import os
from typing import Any

import pytest

from featurepress.errors import StorageError
from featurepress.storage import Storage, open_storage
from featurepress.storage.bucket import UNCONDITIONAL, BucketStorage
from tests.servers.fixtures import Faulty
from tests.servers.s3 import FastS3

LARGE = os.urandom(1024) * 20 * 1024  # 20 MiB: three pieces of an upload


def storage_in(server: Any) -> tuple[Storage, str]:
    bucket = server.bucket()
    return open_storage(server.url(bucket, "out")), bucket


@pytest.fixture(params=["fast_s3", "azure", "google"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("kind", ["reset", "stall", "short", "500"])
def test_create_whose_answer_was_lost_leaves_the_object(server: Any, faulty: Faulty, kind: str) -> None:
    storage, bucket = storage_in(server)
    proxy = faulty(
        server, rate=1.0, kinds=(kind,), when=("after",), methods="PUT", most_in_a_row=1, stall_seconds=0.5
    )
    storage.create("a", b"1")  # who created it cannot be known; whoever reads what is there learns it
    assert proxy.n_faults() == 1
    assert server.get(bucket, "out/a") == b"1"
    assert not storage.create("a", b"2")
    assert server.get(bucket, "out/a") == b"1"


@pytest.mark.parametrize("kind", ["reset", "503"])
def test_create_whose_request_was_lost_creates(server: Any, faulty: Faulty, kind: str) -> None:
    storage, bucket = storage_in(server)
    proxy = faulty(server, rate=1.0, kinds=(kind,), when=("before",), methods="PUT", most_in_a_row=2)
    assert storage.create("a", b"1")
    assert proxy.n_faults() == 2
    assert server.get(bucket, "out/a") == b"1"


def test_replace_whose_answer_was_lost_leaves_the_new_version(server: Any, faulty: Faulty) -> None:
    storage, bucket = storage_in(server)
    storage.write("a", b"1")
    entry = storage.stat("a")
    assert entry is not None
    faulty(server, rate=1.0, kinds=("reset",), when=("after",), methods="PUT", most_in_a_row=1)
    storage.replace("a", b"2", entry.version)
    assert server.get(bucket, "out/a") == b"2"


@pytest.mark.parametrize("kind", ["500", "503", "reset", "short", "long"])
def test_transient_faults_are_retried(fast_s3: FastS3, faulty: Faulty, kind: str) -> None:
    storage, _ = storage_in(fast_s3)
    proxy = faulty(fast_s3, rate=0.3, seed=1, kinds=(kind,), most_in_a_row=2)
    names = [f"part-{i}" for i in range(8)]
    for name in names:
        storage.write(name, name.encode() * 100)
        assert storage.read(name) == name.encode() * 100
        assert storage.stat(name) is not None
        with storage.open(name) as file:
            assert file.read() == name.encode() * 100
    assert [entry.name for entry in storage.list("")] == names
    for name in names:
        storage.delete(name)
    assert list(storage.list("")) == []
    assert proxy.n_faults() > 3


# -- stores without conditions -------------------------------------------------------------------------------


def test_a_store_without_conditional_requests_is_detected(fast_s3: FastS3) -> None:
    storage, bucket = storage_in(fast_s3)
    assert isinstance(storage, BucketStorage)
    assert storage.is_conditional
    fast_s3.honour_conditions("unsupported")
    try:
        assert storage.create("a", b"1")
        assert not storage.is_conditional
        assert not storage.create("a", b"2")
        entry = storage.stat("a")
        assert entry is not None
        assert storage.replace("a", b"3", entry.version)
        assert not storage.replace("a", b"4", entry.version)
        assert fast_s3.get(bucket, "out/a") == b"3"
        assert not open_storage(f"s3://{bucket}/elsewhere").is_conditional
        assert open_storage(f"s3://{fast_s3.bucket()}/out").is_conditional
    finally:
        UNCONDITIONAL.clear()


def test_replace_detects_a_store_without_conditional_requests(fast_s3: FastS3) -> None:
    storage, _ = storage_in(fast_s3)
    storage.write("a", b"1")
    entry = storage.stat("a")
    assert entry is not None
    fast_s3.honour_conditions("unsupported")
    try:
        assert storage.replace("a", b"2", entry.version)
        assert not storage.is_conditional
    finally:
        UNCONDITIONAL.clear()


def test_a_conflict_of_two_writes_is_retried(fast_s3: FastS3) -> None:
    storage, bucket = storage_in(fast_s3)
    fast_s3.refuse("ConditionalRequestConflict", 409, methods="PUT", times=3)
    assert storage.create("a", b"1")
    assert fast_s3.get(bucket, "out/a") == b"1"


# -- what is large -------------------------------------------------------------------------------------------


def test_a_large_object_is_read_at_any_position(server: Any) -> None:
    storage, _ = storage_in(server)
    storage.write("a", LARGE)
    with storage.open("a") as file:
        assert file.seek(-7, os.SEEK_END) == len(LARGE) - 7
        assert file.read() == LARGE[-7:]
        assert file.seek(9_000_000) == 9_000_000
        assert file.read(3_000_000) == LARGE[9_000_000:12_000_000]
        assert file.tell() == 12_000_000
        file.seek(len(LARGE) + 5)
        assert file.read(1) == b""


def test_of_a_large_object_only_the_requested_ranges_are_read(fast_s3: FastS3) -> None:
    storage, _ = storage_in(fast_s3)
    storage.write("a", LARGE)
    fast_s3.forget()
    with storage.open("a") as file:
        file.seek(-100, os.SEEK_END)
        assert file.read() == LARGE[-100:]
    assert fast_s3.operations()["GetObject"] <= 3


def test_a_large_stream_is_one_upload_that_is_completed(server: Any) -> None:
    storage, bucket = storage_in(server)
    with storage.stream("a") as file:
        for i in range(0, len(LARGE), 1_000_000):
            file.write(LARGE[i : i + 1_000_000])
        assert server.keys(bucket) == []
    assert server.get(bucket, "out/a") == LARGE
    assert server.uploads(bucket) == []


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_large_stream_that_fails_leaves_no_upload(server: Any, error: type[BaseException]) -> None:
    storage, bucket = storage_in(server)
    with pytest.raises(error), storage.stream("a") as file:
        file.write(LARGE)
        raise error
    assert server.keys(bucket) == []
    assert server.uploads(bucket) == []


def test_a_stream_closed_by_its_writer_is_written(fast_s3: FastS3) -> None:
    storage, bucket = storage_in(fast_s3)
    with storage.stream("a") as file:
        file.write(b"12")
        file.close()
    assert fast_s3.get(bucket, "out/a") == b"12"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["reset", "500"])
def test_a_large_stream_survives_lost_answers(fast_s3: FastS3, faulty: Faulty, kind: str, when: str) -> None:
    storage, bucket = storage_in(fast_s3)
    proxy = faulty(fast_s3, rate=1.0, kinds=(kind,), when=(when,), methods="PUT POST", most_in_a_row=1)
    with storage.stream("a") as file:
        file.write(LARGE)
    assert proxy.n_faults() > 2
    assert fast_s3.get(bucket, "out/a") == LARGE


def test_a_stream_that_is_refused_is_an_error_and_leaves_no_upload(fast_s3: FastS3) -> None:
    storage, bucket = storage_in(fast_s3)
    fast_s3.refuse("AccessDenied", 403, methods="PUT")
    with (
        pytest.raises(StorageError, match=r"Cannot write 's3://.*/out/a': no permission"),
        storage.stream("a") as file,
    ):
        file.write(LARGE)
    assert fast_s3.uploads(bucket) == []
