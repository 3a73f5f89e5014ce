"""Fetching urls from servers that are slow, broken or greedy."""

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
from featurepress.sources.lists import web as web_module
from featurepress.sources.lists.web import AT_ONCE, TRIES, Web, fetch
from tests.sources.lists.web_server import DATA, Answer, Handler, failure, get, serving


@pytest.fixture
def web() -> Iterator[Web]:
    one = Web(allow_private_hosts=True)
    yield one
    one.close()


def refuse(reason: str, web: Web, answer: Answer, **limits: Any) -> int:
    """Hold the reason against what is expected; give the number of requests."""
    with serving(answer) as server:
        assert failure(web, server.url("/a.jpg?token=secret").replace("//", "//user:secret@"), **limits) == reason
        return len(server.seen)


# -- good answers --------------------------------------------------------------------------------------------


def test_a_picture_is_fetched(web: Web) -> None:
    with serving(lambda request: request.say(200, DATA)) as server:
        assert get(web, server.url("/some%20where/ü.jpg?x=1&y=%2F#fragment")) == DATA
        (seen,) = server.seen
    assert seen.path == "/some%20where/%C3%BC.jpg?x=1&y=%2F"
    assert seen.headers["User-Agent"].startswith("featurepress/")
    assert seen.headers["Host"] == f"127.0.0.1:{server.server_port}"
    assert "Authorization" not in seen.headers


def test_the_function_asks_no_private_address_unless_it_may() -> None:
    limits = ImageSettings(timeout_seconds=10)
    with serving(lambda request: request.say(200, DATA)) as server:
        with pytest.raises(ImageError, match=r"read: private address refused: 127\.0\.0\.1; --allow-private-hosts"):
            fetch(server.url(), limits=limits, allow_private_hosts=False, max_bytes=10**6)
        assert not server.seen
        assert fetch(server.url(), limits=limits, allow_private_hosts=True, max_bytes=10**6) == DATA
    web_module._web(True).close()


def test_connections_are_kept(web: Web) -> None:
    with serving(lambda request: request.say(200, DATA)) as server:
        for _ in range(5):
            assert get(web, server.url()) == DATA
        assert (len(server.seen), server.n_connections) == (5, 1)


def test_a_server_that_hangs_up_after_each_answer(web: Web) -> None:
    with serving(lambda request: request.say(200, DATA, Connection="close")) as server:
        assert [get(web, server.url()) for _ in range(3)] == [DATA] * 3
        assert server.n_connections == 3


def test_chunks_and_compression(web: Web) -> None:
    def answer(request: Handler) -> None:
        if "gzip" in request.path:
            request.say(200, gzip.compress(DATA), Content_Encoding="gzip")
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
    with serving(lambda request: request.say(200, DATA)) as other:

        def answer(request: Handler) -> None:
            request.say(302, Location="/again" if request.path == "/a.jpg" else other.url())

        with serving(answer) as server:
            assert get(web, server.url().replace("//", "//us%40er:päss中@")) == DATA
        assert [seen.headers["Authorization"] for seen in server.seen] == [
            f"Basic {b64encode('us@er:päss中'.encode()).decode()}"
        ] * 2
        assert [seen.headers["Authorization"] for seen in other.seen] == [None]


# -- bad answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, "no such picture: status 404"),
        (410, "no such picture: status 410"),
        (401, "no permission: status 401"),
        (403, "no permission: status 403"),
        (418, "refused: status 418"),
        (204, "unexpected answer: status 204"),
        (206, "unexpected answer: status 206"),
        (304, "unexpected answer: status 304"),
        (302, "unexpected answer: status 302"),
    ],
)
def test_what_will_not_get_better_is_asked_once(web: Web, status: int, reason: str) -> None:
    assert refuse(reason, web, lambda request: request.say(status, b"sorry")) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_get_better_is_asked_again(web: Web, status: int) -> None:
    def answer(request: Handler) -> None:
        request.say(status) if len(request.server.seen) < 3 else request.say(200, DATA)

    with serving(answer) as server:
        assert get(web, server.url()) == DATA
        assert len(server.seen) == 3


def test_a_server_that_keeps_failing_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_module, "_BACKOFF_SECONDS", 0.001)
    assert refuse("the server fails: status 503", web, lambda request: request.say(503)) == TRIES
    assert refuse("the server is busy: status 429", web, lambda request: request.say(429)) == TRIES


def test_retry_after_is_honoured(web: Web) -> None:
    def answer(request: Handler) -> None:
        when = email.utils.format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2))
        waits = {"/seconds": "1", "/date": when, "/nonsense": "soon", "/past": "Thu, 01 Jan 1970 00:00:00 GMT"}
        if len(request.server.seen) % 2:
            request.say(503, Retry_After=waits[request.path])
        else:
            request.say(200, DATA)

    with serving(answer) as server:
        for path, least, most in (("/seconds", 1, 5), ("/date", 0.9, 5), ("/nonsense", 0, 0.9), ("/past", 0, 0.9)):
            started = time.monotonic()
            assert get(web, server.url(path)) == DATA
            assert least <= time.monotonic() - started < most


def test_nobody_waits_longer_than_there_is_time(web: Web) -> None:
    started = time.monotonic()
    assert refuse("the server is busy: status 429", web, lambda request: request.say(429, Retry_After="3600")) == 1
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("how", ["short", "short chunk", "no answer", "half a header", "reset"])
def test_an_answer_that_breaks_off_is_asked_for_again(web: Web, how: str) -> None:
    def answer(request: Handler) -> None:
        request.close_connection = True
        if len(request.server.seen) > 2:
            request.say(200, DATA)
        elif how == "short":
            request.say(200, DATA[:-100], Content_Length=str(len(DATA)))
        elif how == "short chunk":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n12345678")
        elif how == "half a header":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
        elif how == "reset":
            request.say(200, b"123", Content_Length="1000")
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            request.connection.close()

    with serving(answer) as server:
        assert get(web, server.url()) == DATA
        assert len(server.seen) == 3


def test_broken_headers_are_not_logged_with_the_url(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    def answer(request: Handler) -> None:
        request.close_connection = True
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nno header at all\r\n\r\nabc")

    with serving(answer) as server:
        assert get(web, server.url("/a?token=secret")) == b"abc"
    assert "secret" not in caplog.text


def test_an_answer_that_always_breaks_off_is_a_failure(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_module, "_BACKOFF_SECONDS", 0.001)

    def short(request: Handler) -> None:
        request.close_connection = True
        request.say(200, b"123", Content_Length="1000")

    def silent(request: Handler) -> None:
        request.close_connection = True

    assert refuse("the answer is not whole", web, short) == TRIES
    assert refuse("the connection breaks off", web, silent) == TRIES


def test_a_broken_encoding_is_a_failure(web: Web) -> None:
    reason = "its content encoding is broken"
    assert refuse(reason, web, lambda request: request.say(200, b"no gzip", Content_Encoding="gzip")) == 1


def test_nobody_listens(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_module, "_BACKOFF_SECONDS", 0.001)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert failure(web, f"http://127.0.0.1:{port}/?sig=secret") == "the connection is refused"


@pytest.mark.parametrize("url", ["http://", "http:///a", "http://h:x/a", "http://[::1/a", "ftp://h/a", "nothing"])
def test_what_is_no_url_is_a_failure(web: Web, url: str) -> None:
    assert failure(web, url) in (
        "the url cannot be understood",
        "the url is none of http or https, or names no server",
    )


def test_a_url_cannot_bring_headers_along(web: Web) -> None:
    with serving(lambda request: request.say(200, DATA)) as server:
        get(web, server.url("/a\r\nX-Evil: 1"))
        assert "X-Evil" not in server.seen[0].headers


# -- limits --------------------------------------------------------------------------------------------------


def test_an_announced_size_above_the_limit_is_not_fetched(web: Web) -> None:
    reason = f"too many bytes: {len(DATA)}, above the limit of 100 (--max-bytes)"
    assert refuse(reason, web, lambda request: request.say(200, DATA), max_bytes=100) == 1


def test_a_size_that_shows_only_later_is_cut_off(web: Web) -> None:
    def endless(request: Handler) -> None:
        request.send_response(200)
        request.send_header("Connection", "close")
        request.end_headers()
        with contextlib.suppress(OSError):
            while True:
                request.wfile.write(b"x" * 10_000)

    assert refuse("too many bytes: above the limit of 100000 (--max-bytes)", web, endless, max_bytes=100_000) == 1


def test_what_grows_when_it_is_unpacked_is_cut_off(web: Web) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    reason = "too many bytes: above the limit of 1000000 (--max-bytes)"
    answer: Answer = lambda request: request.say(200, bomb, Content_Encoding="gzip")  # noqa: E731
    assert refuse(reason, web, answer, max_bytes=1_000_000) == 1


@pytest.mark.parametrize("where", ["header", "body", "chunks", "nothing"])
def test_a_server_that_drips_is_given_up_in_time(web: Web, where: str) -> None:
    def drip(request: Handler) -> None:
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
    assert refuse("timed out: not fetched in 0.5 seconds", web, drip, timeout_seconds=0.5) == 1
    assert 0.4 < time.monotonic() - started < 3


def test_all_tries_together_have_the_time(web: Web) -> None:
    def slow(request: Handler) -> None:
        time.sleep(0.3)
        request.say(503)

    started = time.monotonic()
    with serving(slow) as server:
        failure(web, server.url(), timeout_seconds=1.0)
        assert time.monotonic() - started < 2
        assert 1 < len(server.seen) < TRIES


def test_few_requests_at_once_to_one_host(web: Web) -> None:
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
        request.say(200, DATA)

    with serving(answer) as server, ThreadPoolExecutor(40) as pool:
        # To wait for one's turn takes longer than the time for a fetch, and does not count.
        urls = [server.url(f"/{i}") for i in range(80)]
        assert list(pool.map(lambda url: get(web, url, timeout_seconds=0.4), urls)) == [DATA] * 80
        assert most == AT_ONCE
        assert server.n_connections <= AT_ONCE


def test_connections_to_many_hosts_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_module, "_MOST_HOSTS", 3)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serving(lambda request: request.say(200, DATA))) for _ in range(6)]
        web = Web(allow_private_hosts=True)
        for server in servers * 2:
            assert get(web, server.url()) == DATA
        assert len(web._idle) == 3
        web.close()
        assert not web._slots


# -- redirects -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(web: Web, status: int) -> None:
    def answer(request: Handler) -> None:
        if request.path == "/there/ü".replace("ü", "%C3%BC"):
            request.say(200, DATA)
        else:
            request.say(status, b"elsewhere", Location="there/%C3%BC")

    with serving(answer) as server:
        assert get(web, server.url()) == DATA


def test_redirects_in_a_circle_end(web: Web) -> None:
    answer: Answer = lambda request: request.say(302, Location=f"{request.path}x")  # noqa: E731
    assert refuse("redirected too often: more than 5 times", web, answer) == 6


@pytest.mark.parametrize("location", ["ftp://h/a", "file:///etc/passwd", "gopher://h", "data:image/png;base64,"])
def test_redirects_lead_to_http_only(web: Web, location: str) -> None:
    reason = "the url is none of http or https, or names no server"
    assert refuse(reason, web, lambda request: request.say(302, Location=location)) == 1
