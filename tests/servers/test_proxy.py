"""Faults on demand, and servers that end with their parent."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import obstore
import psutil
import pytest

from tests.running import wait_until
from tests.servers.clients import connect, listed
from tests.servers.fixtures import Faulty
from tests.servers.process import ROOT
from tests.servers.proxy import KINDS, Plan, Proxy
from tests.servers.s3 import FastS3

PART_BYTES = 5 * 1024**2


def ask_raw(proxy: Proxy, method: str, path: str) -> bytes:
    """Make one request, without retries, and return all bytes; ConnectionResetError if it is reset."""
    address = urlsplit(proxy.endpoint)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        received = b""
        while data := connection.recv(65536):
            received += data
            head, _, body = received.partition(b"\r\n\r\n")
            length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
            if length and method != "HEAD" and len(body) >= int(length[0].split(b":")[1]):
                break
        return received


def break_all(kind: str, **options: Any) -> dict[str, Any]:
    return {"rate": 1.0, "kinds": (kind,), "most_in_a_row": 10**6, "stall_seconds": 0.2, **options}


def test_a_proxy_without_faults_changes_nothing(each_store: Any, faulty: Faulty) -> None:
    bucket = each_store.bucket()
    proxy = faulty(each_store, rate=0.0)
    store = connect(each_store, bucket)
    data = os.urandom(PART_BYTES + 1)
    obstore.put(store, "large", data, chunk_size=PART_BYTES)
    obstore.put(store, "empty", b"")
    assert bytes(obstore.get(store, "large").bytes()) == data
    assert obstore.head(store, "empty")["size"] == 0
    assert listed(store) == ["empty", "large"]
    obstore.delete(store, ["large", "empty"])
    assert each_store.keys(bucket) == []
    assert proxy.n_faults() == 0
    assert proxy.counts()["none"] >= 7


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("500", lambda got, whole: got.startswith(b"HTTP/1.1 500") and b"InternalError" in got),
        ("503", lambda got, whole: got.startswith(b"HTTP/1.1 503") and b"<Code>SlowDown</Code>" in got),
        ("short", lambda got, whole: got.endswith(b"x" * 500) and len(got) == len(whole) - 500),
        ("long", lambda got, whole: got.replace(b": 2000", b": 1000") == whole),
        ("stall", lambda got, whole: got == b""),
    ],
)
def test_reads_can_be_truncated(
    fast_s3: FastS3, faulty: Faulty, kind: str, expected: Callable[[bytes, bytes], bool]
) -> None:
    bucket = fast_s3.bucket()
    fast_s3.put(bucket, {"a": b"x" * 1000})
    proxy = faulty(fast_s3, rate=0.0)
    whole = ask_raw(proxy, "GET", f"/{bucket}/a")
    assert b"\r\nContent-Length: 1000\r\n" in whole
    proxy.plan(**break_all(kind))
    assert expected(ask_raw(proxy, "GET", f"/{bucket}/a"), whole)


def test_connections_can_be_reset(fast_s3: FastS3, faulty: Faulty) -> None:
    bucket = fast_s3.bucket()
    fast_s3.put(bucket, {f"{i}": b"x" for i in range(40)})
    proxy = faulty(fast_s3, **break_all("reset"))
    for i in range(40):
        with pytest.raises(ConnectionResetError):
            ask_raw(proxy, "GET", f"/{bucket}/{i}")
    assert 0 < fast_s3.operations()["GetObject"] < 40  # the head of some responses comes before
    assert proxy.counts() == {"reset before": 40}


@pytest.mark.parametrize("kind", ["500", "reset", "stall"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_writes_can_fail_before_or_after(fast_s3: FastS3, faulty: Faulty, kind: str, when: str) -> None:
    bucket = fast_s3.bucket()
    proxy = faulty(fast_s3, **break_all(kind, when=(when,), methods="PUT"))
    try:
        got = ask_raw(proxy, "PUT", f"/{bucket}/a")
    except ConnectionResetError:
        got = b""
    assert got.startswith(b"HTTP/1.1 500") == (kind == "500")
    assert fast_s3.keys(bucket) == (["a"] if when == "after" else [])
    assert proxy.log() == [f"PUT /{bucket}/a {kind} {when}"]
    assert ask_raw(proxy, "GET", f"/{bucket}/a").startswith(b"HTTP/1.1 200" if when == "after" else b"HTTP/1.1 404")


def test_the_same_requests_fail_in_every_run(fast_s3: FastS3, faulty: Faulty) -> None:
    fast_s3.ask("load", bucket="photos", folder=ROOT / "tests" / "servers", prefix="")
    paths = [f"/photos/{i}" for i in range(200)]
    proxy = faulty(fast_s3, rate=0.3, seed=1, kinds=("500", "503"), methods="GET")
    broken = []
    for order in (paths, paths[::-1]):
        proxy.plan(rate=0.3, seed=1, kinds=("500", "503"))
        start = len(proxy.log())
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda path: ask_raw(proxy, "GET", path), order))
        broken.append(sorted(proxy.log()[start:]))
    assert broken[0] == broken[1]
    assert 30 < len(broken[0]) < 90
    proxy.plan(rate=0.3, seed=2, kinds=("500", "503"))
    for path in paths:
        ask_raw(proxy, "GET", path)
    assert sorted(proxy.log()[2 * len(broken[0]) :]) != broken[0]


def test_the_failures_of_a_path_in_a_row_are_limited(fast_s3: FastS3, faulty: Faulty) -> None:
    bucket = fast_s3.bucket()
    fast_s3.put(bucket, {"a": b"1"})
    proxy = faulty(fast_s3, rate=1.0, kinds=("500",), most_in_a_row=2)
    statuses = [ask_raw(proxy, "GET", f"/{bucket}/a").split()[1] for _ in range(6)]
    assert statuses == [b"500", b"500", b"200"] * 2
    proxy.calm()
    assert ask_raw(proxy, "GET", f"/{bucket}/a").split()[1] == b"200"


@pytest.mark.parametrize("methods", ["GET", "HEAD", "PUT"])
def test_retries_succeed(each_store: Any, faulty: Faulty, methods: str) -> None:
    bucket = each_store.bucket()
    objects = {f"{i:02d}": os.urandom(1000 + i) for i in range(40)}
    kinds = tuple(kind for kind in KINDS if kind != "long")  # obstore requests the bytes that do not exist
    proxy = faulty(each_store, rate=0.3, seed=3, kinds=kinds, methods=methods, paths=r"\d\d", stall_seconds=0.1)
    store = connect(each_store, bucket)
    for key, data in objects.items():
        obstore.put(store, key, data)
    assert {key: bytes(obstore.get(store, key).bytes()) for key in objects} == objects
    assert {key: obstore.head(store, key)["size"] for key in objects} == {key: len(objects[key]) for key in objects}
    assert proxy.n_faults() > 4
    assert {one.split()[0] for one in proxy.log()} == {methods}


def test_a_plan_refuses_unknown_faults() -> None:
    assert Plan().rate == 0.05
    with pytest.raises(TypeError):
        Plan(speed=1)  # type: ignore[call-arg]


# -- processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["moto.start_moto", "s3.start_fast_s3", "azurite.start_azurite"])
def test_servers_end_with_their_parent(start: str, request: pytest.FixtureRequest) -> None:
    if "azurite" in start:
        request.getfixturevalue("azure")  # or skip
    module, _, function = start.partition(".")
    script = f"""
import psutil, time
from tests.servers.{module} import {function}
with {function}():
    print(*[one.pid for one in psutil.Process().children(recursive=True)], flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        servers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(servers) == (2 if "azurite" in start else 1)
        assert all(one.is_running() for one in servers)
        parent.kill()
    wait_until(lambda: not any(is_alive(one) for one in servers), "the end of the servers", 20)


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
