"""Fetching urls from servers that are slow or broken, or send too much."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import gzip
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from featurepress.errors import ImageError
from featurepress.settings import ImageSettings
from featurepress.sources.lists.web import AT_ONCE, TRIES, Web, fetch
from tests.sources.lists.web_server import DATA, Answer, Handler, failure, get, serving, unguarded


@pytest.fixture
def web() -> Iterator[Web]:
    client = unguarded(backoff_seconds=0.001)
    yield client
    client.close()


def refuse(reason: str, web: Web, answer: Answer, **limits: Any) -> int:
    """Check the beginning of the reason; return the number of requests."""
    with serving(answer) as server:
        found = failure(web, server.url("/a.jpg?token=secret").replace("//", "//user:secret@"), **limits)
        assert found.startswith(reason)
        return len(server.seen)


# -- responses -----------------------------------------------------------------------------------------------


def test_an_image_is_fetched(web: Web) -> None:
    with serving(lambda request: request.reply(200, DATA)) as server:
        assert get(web, server.url("/some%20where/ü.jpg?x=1&y=%2F#fragment")) == DATA
        (seen,) = server.seen
    assert seen.path == "/some%20where/%C3%BC.jpg?x=1&y=%2F"
    assert seen.headers["User-Agent"].startswith("featurepress/")
    assert seen.headers["Host"] == f"127.0.0.1:{server.server_port}"
    assert "Authorization" not in seen.headers


def test_fetch_refuses_private_addresses_by_default() -> None:
    limits = ImageSettings(timeout_seconds=10)
    with serving(lambda request: request.reply(200, DATA)) as server:
        with pytest.raises(ImageError, match=r"read: private address refused: 127\.0\.0\.1; --allow-private-hosts"):
            fetch(server.url(), limits=limits, allow_private_hosts=False, max_bytes=10**6)
        assert not server.seen
        assert fetch(server.url(), limits=limits, allow_private_hosts=True, max_bytes=10**6) == DATA


def test_connections_are_kept(web: Web) -> None:
    with serving(lambda request: request.reply(200, DATA)) as server:
        for _ in range(5):
            assert get(web, server.url()) == DATA
        assert (len(server.seen), server.n_connections) == (5, 1)


def test_a_server_that_closes_each_connection(web: Web) -> None:
    with serving(lambda request: request.reply(200, DATA, Connection="close")) as server:
        assert [get(web, server.url()) for _ in range(3)] == [DATA] * 3
        assert server.n_connections == 3


def test_chunked_and_compressed_bodies(web: Web) -> None:
    def answer(request: Handler) -> None:
        if "gzip" in request.path:
            request.reply(200, gzip.compress(DATA), Content_Encoding="gzip")
            return
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for start in range(0, len(DATA), 1000):
            piece = DATA[start : start + 1000]
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        request.wfile.write(b"0\r\n\r\n")

    with serving(answer) as server:
        for path in ("/gzip", "/chunks") * 3:
            assert get(web, server.url(path)) == DATA
        assert server.n_connections == 1


def test_user_and_password_are_sent_to_their_own_server_only(web: Web) -> None:
    with serving(lambda request: request.reply(200, DATA)) as other:

        def answer(request: Handler) -> None:
            request.reply(302, Location="/again" if request.path == "/a.jpg" else other.url())

        with serving(answer) as server:
            assert get(web, server.url().replace("//", "//us%40er:päss中@")) == DATA
        assert [seen.headers["Authorization"] for seen in server.seen] == [
            f"Basic {b64encode('us@er:päss中'.encode()).decode()}"
        ] * 2
        assert [seen.headers["Authorization"] for seen in other.seen] == [None]


# -- failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, "no such image: status 404"),
        (410, "no such image: status 410"),
        (401, "no permission: status 401"),
        (403, "no permission: status 403"),
        (418, "refused: status 418"),
        (204, "unexpected response: status 204"),
        (206, "unexpected response: status 206"),
        (304, "unexpected response: status 304"),
        (302, "unexpected response: status 302"),
    ],
)
def test_permanent_errors_are_not_retried(web: Web, status: int, reason: str) -> None:
    assert refuse(reason, web, lambda request: request.reply(status, b"sorry")) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_transient_errors_are_retried(web: Web, status: int) -> None:
    def answer(request: Handler) -> None:
        request.reply(status) if len(request.server.seen) < 3 else request.reply(200, DATA)

    with serving(answer) as server:
        assert get(web, server.url()) == DATA
        assert len(server.seen) == 3


def test_a_server_that_keeps_failing_is_a_failure(web: Web) -> None:
    assert refuse("server error: status 503", web, lambda request: request.reply(503)) == TRIES
    assert refuse("the server is busy: status 429", web, lambda request: request.reply(429)) == TRIES


def test_retry_after_is_honoured(web: Web) -> None:
    def answer(request: Handler) -> None:
        when = email.utils.format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2))
        waits = {"/seconds": "1", "/date": when, "/nonsense": "soon", "/past": "Thu, 01 Jan 1970 00:00:00 GMT"}
        if len(request.server.seen) % 2:
            request.reply(503, Retry_After=waits[request.path])
        else:
            request.reply(200, DATA)

    with serving(answer) as server:
        for path, least, most in (("/seconds", 1, 5), ("/date", 0.9, 5), ("/nonsense", 0, 0.9), ("/past", 0, 0.9)):
            started = time.monotonic()
            assert get(web, server.url(path)) == DATA
            assert least <= time.monotonic() - started < most


def test_a_wait_beyond_the_deadline_is_a_failure_at_once(web: Web) -> None:
    started = time.monotonic()
    assert (
        refuse("the server is busy: status 429", web, lambda request: request.reply(429, Retry_After="3600")) == 1
    )
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("how", ["short", "short chunk", "no answer", "half a header", "reset"])
def test_a_response_that_is_cut_short_is_retried(web: Web, how: str) -> None:
    def answer(request: Handler) -> None:
        request.close_connection = True
        if len(request.server.seen) > 2:
            request.reply(200, DATA)
        elif how == "short":
            request.reply(200, DATA[:-100], Content_Length=str(len(DATA)))
        elif how == "short chunk":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n12345678")
        elif how == "half a header":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
        elif how == "reset":
            request.reply(200, b"123", Content_Length="1000")
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            request.connection.close()

    with serving(answer) as server:
        assert get(web, server.url()) == DATA
        assert len(server.seen) == 3


def test_urls_are_not_logged(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    def answer(request: Handler) -> None:
        request.close_connection = True
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nnot a header\r\n\r\nabc")

    with serving(answer) as server, caplog.at_level("DEBUG"):
        assert get(web, server.url("/a?token=secret")) == b"abc"
    assert "secret" not in caplog.text


def test_a_response_that_is_always_cut_short_is_a_failure(web: Web) -> None:
    def short(request: Handler) -> None:
        request.close_connection = True
        request.reply(200, b"123", Content_Length="1000")

    def silent(request: Handler) -> None:
        request.close_connection = True

    assert refuse("the response is incomplete", web, short) == TRIES
    assert refuse("the connection was lost", web, silent) == TRIES


def test_a_broken_encoding_is_a_failure(web: Web) -> None:
    reason = "the content encoding is broken"
    assert refuse(reason, web, lambda request: request.reply(200, b"no gzip", Content_Encoding="gzip")) == 1


def test_a_refused_connection_is_a_failure(web: Web) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert failure(web, f"http://127.0.0.1:{port}/?sig=secret") == "the connection is refused"


@pytest.mark.parametrize("url", ["http://", "http:///a", "http://h:x/a", "http://[::1/a", "ftp://h/a", "nothing"])
def test_an_invalid_url_is_a_failure(web: Web, url: str) -> None:
    assert failure(web, url) in (
        "the url cannot be parsed",
        "the url must begin with http:// or https:// and a host",
    )


def test_a_url_cannot_add_headers(web: Web) -> None:
    with serving(lambda request: request.reply(200, DATA)) as server:
        get(web, server.url("/a\r\nX-Evil: 1"))
        assert "X-Evil" not in server.seen[0].headers


# -- limits --------------------------------------------------------------------------------------------------


def test_an_announced_size_above_the_limit_is_not_fetched(web: Web) -> None:
    reason = f"too many bytes: {len(DATA)}, above the limit of 100 (--max-bytes)"
    assert refuse(reason, web, lambda request: request.reply(200, DATA), max_bytes=100) == 1


def test_a_body_without_a_length_is_limited(web: Web) -> None:
    def endless(request: Handler) -> None:
        request.send_response(200)
        request.send_header("Connection", "close")
        request.end_headers()
        with contextlib.suppress(OSError):
            while True:
                request.wfile.write(b"x" * 10_000)

    assert refuse("too many bytes", web, endless, max_bytes=100_000) == 1


def test_a_decompressed_body_is_limited(web: Web) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    reason = "too many bytes"
    answer: Answer = lambda request: request.reply(200, bomb, Content_Encoding="gzip")  # noqa: E731
    assert refuse(reason, web, answer, max_bytes=1_000_000) == 1


@pytest.mark.parametrize("where", ["header", "body", "chunks", "nothing"])
def test_a_server_that_sends_single_bytes_meets_the_deadline(web: Web, where: str) -> None:
    def send_slowly(request: Handler) -> None:
        request.close_connection = True
        beginnings = {
            "header": b"HTTP/1.1 200 OK\r\nX-Long: ",
            "body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
            "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "nothing": b"",
        }
        with contextlib.suppress(OSError):
            request.wfile.write(beginnings[where])
            for _ in range(200):
                time.sleep(0.05)
                if where != "nothing":
                    request.wfile.write(b"1\r\nx\r\n" if where == "chunks" else b"x")

    started = time.monotonic()
    assert refuse("timed out: not fetched in 0.5 seconds", web, send_slowly, timeout_seconds=0.5) == 1
    assert 0.4 < time.monotonic() - started < 3


def test_the_deadline_includes_all_tries(web: Web) -> None:
    def slow(request: Handler) -> None:
        time.sleep(0.3)
        request.reply(503)

    started = time.monotonic()
    with serving(slow) as server:
        failure(web, server.url(), timeout_seconds=1.0)
        assert time.monotonic() - started < 2
        assert 1 < len(server.seen) < TRIES


def test_requests_to_one_host_are_limited(web: Web) -> None:
    lock = threading.Lock()
    now, most = 0, 0

    def answer(request: Handler) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1
        request.reply(200, DATA)

    with serving(answer) as server, ThreadPoolExecutor(40) as pool:
        # Waiting for other requests takes longer than the timeout of a fetch, and does not count.
        urls = [server.url(f"/{i}") for i in range(80)]
        assert list(pool.map(lambda url: get(web, url, timeout_seconds=0.4), urls)) == [DATA] * 80
        assert most == AT_ONCE
        assert server.n_connections <= AT_ONCE


# -- redirects -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(web: Web, status: int) -> None:
    def answer(request: Handler) -> None:
        if request.path == "/there/ü".replace("ü", "%C3%BC"):
            request.reply(200, DATA)
        else:
            request.reply(status, b"elsewhere", Location="there/%C3%BC")

    with serving(answer) as server:
        assert get(web, server.url()) == DATA


def test_endless_redirects_are_a_failure(web: Web) -> None:
    answer: Answer = lambda request: request.reply(302, Location=f"{request.path}x")  # noqa: E731
    assert refuse("redirected too often: more than 5 times", web, answer) == 6


@pytest.mark.parametrize("location", ["ftp://h/a", "file:///etc/passwd", "gopher://h", "data:image/png;base64,"])
def test_redirects_to_other_schemes_are_refused(web: Web, location: str) -> None:
    reason = "the url must begin with http:// or https:// and a host"
    assert refuse(reason, web, lambda request: request.reply(302, Location=location)) == 1
