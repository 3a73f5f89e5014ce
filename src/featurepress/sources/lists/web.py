"""Fetch images over http and https, with limits of size and time, and from public addresses only.

A list of urls may come from a stranger, and name addresses of the user's own network. So each connection, also
after a redirect, is made to an address that was checked after its name was resolved: a name that is resolved twice
could change in between. Proxies of the environment are not used: they would resolve the names themselves.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import importlib.metadata
import ipaddress
import logging
import math
import os
import random
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import unquote, urljoin

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import DecodeError, HTTPError, InvalidHeader, LocationParseError
from urllib3.exceptions import TimeoutError as Urllib3TimeoutError
from urllib3.util import Retry, Url, parse_url

from featurepress.errors import ImageError
from featurepress.settings import ImageSettings
from featurepress.sources.base import too_many_bytes

TRIES = 6
MAX_REDIRECTS = 5
AT_ONCE = 8  # requests of this process to one host
_MAX_HOSTS = 64  # whose connections are kept
_MAX_BACKOFF_SECONDS = 10.0
_SHARE_OF_TIME = 0.9
_PIECE_BYTES = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_NO_RETRIES = Retry(False, redirect=False)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")

Resolve = Callable[..., list[Any]]  # as socket.getaddrinfo


def fetch(url: str, *, limits: ImageSettings, allow_private_hosts: bool, max_bytes: int) -> bytes:
    """Return the whole body of a url, at most `max_bytes` when decompressed.

    A user and password in the url are sent. All tries and redirects together may take nine tenths of
    `limits.timeout_seconds`. Raises ImageError with stage ``read``; its reason never contains the url.
    """
    # Less than `read_ahead` waits: a slow host is one failed image, while a read that hangs may stop the run.
    seconds = _SHARE_OF_TIME * limits.timeout_seconds
    return _web(allow_private_hosts).fetch(url, timeout_seconds=seconds, max_bytes=max_bytes)


@functools.cache
def _web(allow_private_hosts: bool) -> Web:
    return Web(is_refused=lambda address: False) if allow_private_hosts else Web()


os.register_at_fork(after_in_child=_web.cache_clear)  # two processes cannot share a connection


def is_private(address: str) -> bool:
    """Whether an address is not public, also if it is an IPv4 address inside an IPv6 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_private(str(inner))
        if ip.teredo is not None or ip.is_site_local or ip in _LOCAL_NAT64:
            return True
    return not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_unspecified


class Web:
    """Fetch urls, and keep connections; thread-safe.

    No connection is made to addresses that `is_refused`. `context` verifies certificates, by default with those
    that the system trusts. The wait before the first retry is `backoff_seconds`, and doubles with each one.

    Of urllib3, this uses the connection pools of single hosts: `PoolManager` adds 8 microseconds to the 200 of a
    fetch. `Retry` does not retry a body that is cut short, and would sleep beyond the deadline.
    """

    def __init__(
        self,
        *,
        is_refused: Callable[[str], bool] = is_private,
        resolve: Resolve = socket.getaddrinfo,
        context: ssl.SSLContext | None = None,
        backoff_seconds: float = 0.2,
    ) -> None:
        self._is_refused = is_refused
        self._resolve = resolve
        self._backoff_seconds = backoff_seconds
        self._context = context or _system_context()
        self._context.sslsocket_class = _TlsSocket
        self._pool = functools.lru_cache(_MAX_HOSTS)(self._new_pool)
        self._headers = {"User-Agent": _user_agent(), "Accept": "*/*"}
        self._lock = threading.Lock()
        self._slots: weakref.WeakValueDictionary[str, threading.Semaphore] = weakref.WeakValueDictionary()

    def close(self) -> None:
        """Close all idle connections."""
        self._pool.cache_clear()

    def fetch(self, url: str, *, timeout_seconds: float, max_bytes: int) -> bytes:
        """Return the whole body of a url; see `fetch`."""
        target = _parsed(url)
        with self._lock:
            slot = self._slots.setdefault(str(target.host), threading.Semaphore(AT_ONCE))
        with slot:  # the time begins when it is free
            _current.deadline, _current.connect = time.monotonic() + timeout_seconds, self._connect
            try:
                return self._fetch_with_retries(target, max_bytes)
            except TimeoutError:
                raise ImageError("read", f"timed out: not fetched in {timeout_seconds:g} seconds") from None
            finally:
                _current.deadline = math.inf

    def _fetch_with_retries(self, target: Url, max_bytes: int) -> bytes:
        n_tries = 0
        while True:
            n_tries += 1
            try:
                return self._follow(target, max_bytes)
            except _TransientError as error:
                backoff = min(_MAX_BACKOFF_SECONDS, self._backoff_seconds * 2 ** (n_tries - 1))
                wait_seconds = max(error.wait_seconds, backoff * random.uniform(0.5, 1.0))
                if n_tries == TRIES or wait_seconds >= _current.seconds_left():
                    raise ImageError("read", error.reason) from None
            time.sleep(wait_seconds)

    def _follow(self, target: Url, max_bytes: int) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            try:
                found = self._request(target, max_bytes)
            except HTTPError as error:
                _explain(error)
            if isinstance(found, bytes):
                return found
            target = _redirected(target, found)
        raise ImageError("read", f"redirected too often: more than {MAX_REDIRECTS} times")

    def _request(self, target: Url, max_bytes: int) -> bytes | Url:
        """Make one request; return the body, or the url of a redirect."""
        with self._lock:
            pool = self._pool(target.scheme, target.host, target.port)
        response = pool.urlopen(
            "GET",
            target.request_uri,
            headers=self._headers | _authorization(target),
            assert_same_host=False,
            redirect=False,
            retries=_NO_RETRIES,
            timeout=_current.seconds_left(),
            preload_content=False,
        )
        with contextlib.closing(response):  # closes the connection, unless the body has been read to its end
            location = response.headers.get("Location")
            if response.status in _REDIRECTS and location:
                return _parsed(urljoin(target.url, location.encode("latin-1").decode(errors="replace")))
            _require_success(response)
            return _body(response, max_bytes)

    def _new_pool(self, scheme: str | None, host: str | None, port: int | None) -> urllib3.HTTPConnectionPool:
        if scheme == "http":
            return _HttpPool(str(host), port, maxsize=AT_ONCE)
        return _HttpsPool(str(host), port, maxsize=AT_ONCE, ssl_context=self._context)

    def _connect(self, host: str, port: int) -> socket.socket:
        """Resolve a name, check all its addresses, and connect to the first that answers."""
        try:
            found = self._resolve(host, port, type=socket.SOCK_STREAM)
        except UnicodeError:
            raise ImageError("read", "unknown host name") from None
        for *_, address in found:
            if self._is_refused(address[0]):
                raise ImageError("read", f"private address refused: {address[0]}; --allow-private-hosts allows it")
        failed: OSError = ConnectionError("no address")
        for n_left, (family, kind, protocol, _, address) in zip(range(len(found), 0, -1), found, strict=True):
            connected = _Socket(family, kind, protocol)
            try:
                connected.settimeout(_current.seconds_left() / n_left)
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connected.connect(address)
            except OSError as error:
                failed = error
                connected.close()
            else:
                connected.settimeout(_current.seconds_left())
                return connected
        raise failed


# -- connections with a deadline -----------------------------------------------------------------------------


class _Fetch(threading.local):
    """The fetch of this thread: when it must end, and how it connects."""

    deadline = math.inf
    connect: Callable[[str, int], socket.socket]

    def seconds_left(self) -> float:
        """Return the time that is left; raise TimeoutError if there is none."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


_current = _Fetch()


class _Deadline:
    """Part of a socket that never waits beyond the deadline, however slowly bytes arrive."""

    def recv_into(self, *args: Any, **keywords: Any) -> int:
        self.settimeout(_current.seconds_left())  # type: ignore[attr-defined]
        return int(super().recv_into(*args, **keywords))  # type: ignore[misc]


class _Socket(_Deadline, socket.socket):
    pass


class _TlsSocket(_Deadline, ssl.SSLSocket):
    pass


class _HttpConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _current.connect(self._dns_host, self.port)


class _HttpsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _current.connect(self._dns_host, self.port)


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


def _is_fetching_elsewhere(record: logging.LogRecord) -> bool:
    """Whether a record may be logged: during a fetch, urllib3's messages contain the whole url."""
    return _current.deadline == math.inf


for _name in ("urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_name).addFilter(_is_fetching_elsewhere)


# -- responses -----------------------------------------------------------------------------------------------


class _TransientError(Exception):
    """A request failed in a way that is worth a retry."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_seconds = wait_seconds


def _require_success(response: urllib3.BaseHTTPResponse) -> None:
    """Raise unless the response has status 200 or 203."""
    status = response.status
    if status in (200, 203):
        return
    if status in (408, 429) or status >= 500:
        reason = "the server is busy" if status in (408, 429) else "server error"
        raise _TransientError(f"{reason}: status {status}", _retry_after(response.headers.get("Retry-After", "")))
    reason = "refused" if 400 <= status < 500 else "unexpected response"
    known = {404: "no such image", 410: "no such image", 401: "no permission", 403: "no permission"}
    raise ImageError("read", f"{known.get(status, reason)}: status {status}")


def _retry_after(value: str) -> float:
    """Return the seconds of a Retry-After header, which may be a date; 0 if it is neither."""
    try:
        return Retry().parse_retry_after(value)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


def _body(response: urllib3.BaseHTTPResponse, max_bytes: int) -> bytes:
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_many_bytes(int(length), max_bytes)
    pieces, n_bytes = [], 0
    while piece := response.read1(_PIECE_BYTES):
        pieces.append(piece)
        n_bytes += len(piece)
        if n_bytes > max_bytes:
            raise too_many_bytes(n_bytes, max_bytes)
    if not pieces and length != "0":  # the header was cut short: a body without a length ends with the connection
        raise _TransientError("the response is incomplete")
    return b"".join(pieces)


def _explain(error: HTTPError) -> NoReturn:
    """Raise what an error of urllib3 means: the time is over, a retry may help, or the image cannot be read."""
    cause = error.args[-1] if error.args else error  # the error that urllib3 has wrapped
    is_over = _current.deadline <= time.monotonic()
    if is_over or isinstance(error, Urllib3TimeoutError) or isinstance(cause, TimeoutError):
        raise TimeoutError from None
    if isinstance(error, DecodeError):
        raise ImageError("read", "the content encoding is broken") from None
    if isinstance(cause, socket.gaierror):
        if cause.errno == socket.EAI_AGAIN:
            raise _TransientError("unknown host name") from None
        raise ImageError("read", "unknown host name") from None
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise ImageError("read", f"the server's certificate is not valid: {cause.verify_message}") from None
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        raise ImageError("read", f"no secure connection: {cause.reason or 'the handshake failed'}") from None
    if isinstance(cause, http.client.InvalidURL) or isinstance(error, LocationParseError):
        raise ImageError("read", "the url cannot be parsed") from None
    if isinstance(cause, ConnectionRefusedError):
        raise _TransientError("the connection is refused") from None
    reason = "the connection was lost" if isinstance(cause, OSError) else "the response is incomplete"
    raise _TransientError(reason) from None


# -- urls ----------------------------------------------------------------------------------------------------


def _parsed(url: str) -> Url:
    try:
        target = parse_url(url)
    except LocationParseError:
        raise ImageError("read", "the url cannot be parsed") from None
    if target.scheme not in ("http", "https") or not target.host:
        raise ImageError("read", "the url must begin with http:// or https:// and a host")
    return target


def _redirected(before: Url, target: Url) -> Url:
    if before.scheme == "https" and target.scheme == "http":
        raise ImageError("read", "redirected from https to http, which is refused")
    is_same_server = (before.scheme, before.host, before.port) == (target.scheme, target.host, target.port)
    return target._replace(auth=before.auth) if target.auth is None and is_same_server else target


def _authorization(target: Url) -> dict[str, str]:
    if not target.auth:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(unquote(target.auth).encode()).decode()}"}


def _user_agent() -> str:
    try:
        return f"featurepress/{importlib.metadata.version('featurepress')}"
    except importlib.metadata.PackageNotFoundError:
        return "featurepress"


def _system_context() -> ssl.SSLContext:
    """Return a context that trusts the certificates of this system; without any, those of certifi."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not (paths.cafile or paths.capath):
        import certifi

        context.load_verify_locations(certifi.where())
    return context
