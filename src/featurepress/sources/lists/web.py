"""Fetch images by http and https, within limits of size and time, and from public addresses only.

A list of urls is somebody else's text: it may name addresses inside one's own network. Each connection is therefore
made to an address that was checked after its name was resolved, redirects included, so that no name can change its
mind in between. Proxies of the environment are not used: they would resolve the names themselves.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import email.utils
import functools
import http.client
import importlib.metadata
import ipaddress
import itertools
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
from urllib3.exceptions import DecodeError, HTTPError, LocationParseError
from urllib3.exceptions import TimeoutError as Urllib3TimeoutError
from urllib3.util import Url, parse_url
from urllib3.util.ssl_ import create_urllib3_context

from featurepress.errors import ImageError
from featurepress.settings import ImageSettings

TRIES = 6
MAX_REDIRECTS = 5
AT_ONCE = 8  # requests to one host, of this process
_BACKOFF_SECONDS, _MOST_BACKOFF_SECONDS = 0.1, 10.0
_MOST_HOSTS = 64  # to which connections are kept
_SHARE_OF_TIME = 0.9
_PIECE_BYTES = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")

Resolve = Callable[..., list[Any]]  # as socket.getaddrinfo


def fetch(url: str, *, limits: ImageSettings, allow_private_hosts: bool, max_bytes: int) -> bytes:
    """Get what a url leads to, whole.

    Parameters
    ----------
    url : str
        Beginning with http:// or https://; a user and password in it are sent.
    limits : ImageSettings
        Nine tenths of `timeout_seconds` hold for all tries and redirects together, to the last byte.
    allow_private_hosts : bool
        Whether addresses inside the own network may be asked.
    max_bytes : int
        Most bytes, decompressed.

    Raises
    ------
    ImageError
        With stage ``read``; the reason never holds the url.
    """
    # A little less than whoever waits for it has: a dead host is one failed image, a read that hangs stops the run.
    seconds = _SHARE_OF_TIME * limits.timeout_seconds
    return _web(allow_private_hosts).fetch(url, timeout_seconds=seconds, max_bytes=max_bytes)


@functools.cache
def _web(allow_private_hosts: bool) -> Web:
    return Web(allow_private_hosts=allow_private_hosts)


os.register_at_fork(after_in_child=_web.cache_clear)  # two processes cannot talk over one connection


def _hold_urls_back(record: logging.LogRecord) -> bool:
    """Return whether a record may be logged: urllib3 shows the whole url where a header is broken."""
    return not str(record.msg).startswith("Failed to parse headers")


logging.getLogger("urllib3.connection").addFilter(_hold_urls_back)


class Web:
    """Fetches urls, and keeps connections; safe from several threads.

    Parameters
    ----------
    allow_private_hosts : bool
        As for `fetch`.
    resolve : callable
        Gives the addresses of a name, as `socket.getaddrinfo`.
    context : ssl.SSLContext, optional
        Decides which certificates are good; the system's by default.
    """

    def __init__(
        self,
        *,
        allow_private_hosts: bool = False,
        resolve: Resolve = socket.getaddrinfo,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._allows_private = allow_private_hosts
        self._resolve = resolve
        self._context = context or _system_context()
        self._context.sslsocket_class = _PunctualTls
        self._headers = {"User-Agent": _user_agent(), "Accept": "*/*"}
        self._lock = threading.Lock()
        self._idle: collections.OrderedDict[Any, list[_Plain | _Secure]] = collections.OrderedDict()
        self._slots: weakref.WeakValueDictionary[str, threading.Semaphore] = weakref.WeakValueDictionary()

    def close(self) -> None:
        """Close all connections that are kept."""
        with self._lock:
            kept = [connection for connections in self._idle.values() for connection in connections]
            self._idle.clear()
        for connection in kept:
            connection.close()

    def fetch(self, url: str, *, timeout_seconds: float, max_bytes: int) -> bytes:
        """Get what a url leads to; see `fetch`."""
        target = _parsed(url)
        with self._slot(str(target.host)):  # to wait for one's turn does not count
            _clock.deadline = time.monotonic() + timeout_seconds
            try:
                return self._fetch_with_retries(target, max_bytes)
            except TimeoutError:
                raise ImageError("read", f"timed out: not fetched in {timeout_seconds:g} seconds") from None

    def _slot(self, host: str) -> threading.Semaphore:
        with self._lock:
            slot = self._slots.get(host)
            if slot is None:
                slot = self._slots[host] = threading.Semaphore(AT_ONCE)
            return slot

    def _fetch_with_retries(self, target: Url, max_bytes: int) -> bytes:
        for n in itertools.count(1):
            try:
                return self._follow(target, max_bytes)
            except _TransientError as error:
                backoff = min(_MOST_BACKOFF_SECONDS, _BACKOFF_SECONDS * 2**n) * random.uniform(0.5, 1.0)
                wait_seconds = max(error.wait_seconds, backoff)
                if n == TRIES or wait_seconds >= _clock.left():
                    raise ImageError("read", error.reason) from None
            time.sleep(wait_seconds)
        raise AssertionError("unreachable")

    def _follow(self, target: Url, max_bytes: int) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            try:
                found = self._request(target, max_bytes)
            except (OSError, http.client.HTTPException, HTTPError) as error:
                _explain(error)
            if isinstance(found, bytes):
                return found
            target = _redirected(target, found)
        raise ImageError("read", f"redirected too often: more than {MAX_REDIRECTS} times")

    def _request(self, target: Url, max_bytes: int) -> bytes | Url:
        """Make one request: give the body, or where else to ask."""
        connection = self._take(target)
        with contextlib.ExitStack() as broken_off:
            broken_off.callback(connection.close)
            connection.timeout = _clock.left()
            headers = self._headers | _authorization(target)
            connection.request("GET", target.request_uri, headers=headers, preload_content=False)
            with contextlib.closing(connection.getresponse()) as response:
                location = response.headers.get("Location")
                if response.status in _REDIRECTS and location:
                    return _parsed(urljoin(target.url, location.encode("latin-1").decode(errors="replace")))
                _require_success(response)
                data = _body(response, max_bytes)
            broken_off.pop_all()
        self._keep(target, connection)
        return data

    # -- connections -----------------------------------------------------------------------------------------

    def _take(self, target: Url) -> _Plain | _Secure:
        """Return an idle connection, or a new one."""
        with self._lock:
            kept = self._idle.get(_origin(target), [])
            while kept:
                connection = kept.pop()
                if connection.is_connected:
                    return connection
                connection.close()
        host = str(target.host).strip("[]")
        if target.scheme == "http":
            return _Plain(host, target.port, opener=self._connect)
        return _Secure(host, target.port, opener=self._connect, ssl_context=self._context)

    def _keep(self, target: Url, connection: _Plain | _Secure) -> None:
        dropped: list[_Plain | _Secure] = []
        if connection.is_connected:
            with self._lock:
                self._idle.setdefault(_origin(target), []).append(connection)
                self._idle.move_to_end(_origin(target))
                if len(self._idle) > _MOST_HOSTS:
                    dropped = self._idle.popitem(last=False)[1]
        else:
            connection.close()
        for one in dropped:
            one.close()

    def _connect(self, host: str, port: int) -> socket.socket:
        """Resolve a name, check all its addresses, and connect to the first that answers."""
        try:
            found = self._resolve(host, port, type=socket.SOCK_STREAM)
        except UnicodeError:
            raise ImageError("read", "the server's name is not known") from None
        for *_, address in found:
            if not self._allows_private and is_private(address[0]):
                raise ImageError("read", f"private address refused: {address[0]}; --allow-private-hosts allows it")
        failed: OSError = ConnectionError("no address")
        for n_left, (family, kind, protocol, _, address) in zip(range(len(found), 0, -1), found, strict=True):
            connected = _PunctualSocket(family, kind, protocol)
            try:
                connected.settimeout(_clock.left() / n_left)
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connected.connect(address)
            except OSError as error:
                failed = error
                connected.close()
            else:
                connected.settimeout(_clock.left())
                return connected
        raise failed


def is_private(address: str) -> bool:
    """Whether an address is anything but a public one, those of IPv4 inside IPv6 included."""
    given = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(given, ipaddress.IPv6Address):
        inner = given.ipv4_mapped or given.sixtofour
        if given in _NAT64:
            inner = ipaddress.IPv4Address(int(given) & 0xFFFFFFFF)
        if inner is not None:
            return is_private(str(inner))
        if given.teredo is not None or given.is_site_local or given in _LOCAL_NAT64:
            return True
    return not given.is_global or given.is_multicast or given.is_reserved or given.is_unspecified


# -- time ----------------------------------------------------------------------------------------------------


class _Clock(threading.local):
    """When the fetch of this thread must end."""

    deadline = math.inf

    def is_over(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self.deadline

    def left(self) -> float:
        """Return the seconds that are left, or raise TimeoutError."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


_clock = _Clock()


class _Punctual:
    """A socket that never waits beyond the deadline, however slowly the other side drips."""

    def recv_into(self, *args: Any, **keywords: Any) -> int:
        """Receive some bytes."""
        self.settimeout(_clock.left())  # type: ignore[attr-defined]
        return int(super().recv_into(*args, **keywords))  # type: ignore[misc]


class _PunctualSocket(_Punctual, socket.socket):
    pass


class _PunctualTls(_Punctual, ssl.SSLSocket):
    pass


Opener = Callable[[str, int], socket.socket]


class _Plain(HTTPConnection):
    def __init__(self, host: str, port: int | None, *, opener: Opener) -> None:
        super().__init__(host, port)
        self._opener = opener

    def _new_conn(self) -> socket.socket:
        return self._opener(self._dns_host, self.port)


class _Secure(HTTPSConnection):
    def __init__(self, host: str, port: int | None, *, opener: Opener, ssl_context: ssl.SSLContext) -> None:
        super().__init__(host, port, ssl_context=ssl_context)
        self._opener = opener

    def _new_conn(self) -> socket.socket:
        return self._opener(self._dns_host, self.port)


# -- answers -------------------------------------------------------------------------------------------------


class _TransientError(Exception):
    """A request failed in a way that is worth a retry."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_seconds = wait_seconds


def _require_success(response: urllib3.HTTPResponse) -> None:
    """Raise unless the response has status 200 or 203."""
    status = response.status
    if status in (200, 203):
        return
    if status in (408, 429) or status >= 500:
        what = "the server is busy" if status in (408, 429) else "the server fails"
        raise _TransientError(f"{what}: status {status}", _retry_after(response.headers.get("Retry-After", "")))
    what = "refused" if 400 <= status < 500 else "unexpected answer"
    known = {404: "no such picture", 410: "no such picture", 401: "no permission", 403: "no permission"}
    raise ImageError("read", f"{known.get(status, what)}: status {status}")


def _retry_after(value: str) -> float:
    """Return the seconds of a Retry-After header, which may hold a date; 0 for none."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _body(response: urllib3.HTTPResponse, max_bytes: int) -> bytes:
    length = response.headers.get("Content-Length", "")
    limit = f"above the limit of {max_bytes} (--max-bytes)"
    if length.isdecimal() and int(length) > max_bytes:
        raise ImageError("read", f"too many bytes: {length}, {limit}")
    pieces, n_bytes = [], 0
    while piece := response.read1(_PIECE_BYTES):
        pieces.append(piece)
        n_bytes += len(piece)
        if n_bytes > max_bytes:
            raise ImageError("read", f"too many bytes: {limit}")
    if not pieces and length != "0":  # the header broke off, where such a body ends with the connection
        raise _TransientError("the answer is not whole")
    return b"".join(pieces)


def _explain(error: Exception) -> NoReturn:
    """Raise what an error of a library means: the time is over, it may pass, or it will not."""
    cause = error.args[-1] if isinstance(error, HTTPError) and error.args else error  # what urllib3 has wrapped
    if isinstance(error, TimeoutError | Urllib3TimeoutError) or isinstance(cause, TimeoutError) or _clock.is_over():
        raise TimeoutError from None
    if isinstance(error, DecodeError):
        raise ImageError("read", "its content encoding is broken") from None
    if isinstance(cause, socket.gaierror):
        reason = "the server's name is not known"
        if cause.errno == socket.EAI_AGAIN:
            raise _TransientError(reason) from None
        raise ImageError("read", reason) from None
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise ImageError("read", f"the server's certificate is not valid: {cause.verify_message}") from None
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        raise ImageError("read", f"no secure connection: {cause.reason or 'the handshake fails'}") from None
    if isinstance(cause, http.client.InvalidURL | LocationParseError):
        raise ImageError("read", "the url cannot be understood") from None
    if isinstance(cause, ConnectionRefusedError):
        raise _TransientError("the connection is refused") from None
    if isinstance(error, HTTPError):
        raise _TransientError("the answer is not whole") from None
    raise _TransientError("the connection breaks off") from None


# -- urls ----------------------------------------------------------------------------------------------------


def _parsed(url: str) -> Url:
    try:
        target = parse_url(url)
    except LocationParseError:
        raise ImageError("read", "the url cannot be understood") from None
    if target.scheme not in ("http", "https") or not target.host:
        raise ImageError("read", "the url is none of http or https, or names no server")
    return target


def _redirected(before: Url, target: Url) -> Url:
    if before.scheme == "https" and target.scheme == "http":
        raise ImageError("read", "redirected from https to http, which is refused")
    if target.auth is None and _origin(before) == _origin(target):
        return target._replace(auth=before.auth)
    return target


def _origin(target: Url) -> tuple[str | None, str | None, int | None]:
    return target.scheme, target.host, target.port


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
    """Return what trusts the certificates that this system trusts, or where it has none those of certifi."""
    context = create_urllib3_context()
    context.load_default_certs()
    paths = ssl.get_default_verify_paths()
    if not (paths.cafile or paths.capath):
        import certifi

        context.load_verify_locations(certifi.where())
    return context
