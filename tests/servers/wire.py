"""HTTP/1.1 as clients of object stores use it, for servers in their own processes.

Written for speed on one core: a server answers several thousand requests a second.
"""

from __future__ import annotations

import argparse
import asyncio
import http
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote_to_bytes

REASONS = {status.value: status.phrase for status in http.HTTPStatus}
_LONG_BODY_BYTES = 65536  # a longer body is sent separately, without a copy


@dataclass(slots=True)
class Request:
    """A request of a client."""

    method: str  # in capitals
    target: str  # path and query as they were sent, percent-encoded
    headers: dict[str, str]  # by name in lower case
    body: bytes
    head: bytes  # request line and headers as they were sent, with the empty line

    @property
    def path(self) -> bytes:
        """The path, percent-decoded and otherwise unchanged: with ``//``, ``.`` and ``..``."""
        return unquote_to_bytes(self.target.partition("?")[0])

    @property
    def query(self) -> dict[str, str]:
        """The query; a missing value is ""; bytes that are not UTF-8 are surrogates."""
        text = self.target.partition("?")[2]
        if not text:
            return {}
        return dict(parse_qsl(text, keep_blank_values=True, errors="surrogateescape"))


@dataclass(slots=True)
class Answer:
    """A response; Content-Length is added unless it exists."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def to_bytes(self, *, with_body: bool = True) -> bytes:
        """Return head and body as they are sent."""
        lines = [f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if "Content-Length" not in self.headers:
            lines.append(f"Content-Length: {len(self.body)}")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        return head + self.body if with_body else head


class Connection(asyncio.Protocol):
    """A client's connection: its requests are answered in order.

    `app` gets each request together with this connection, and sooner or later calls `send` or `end` once.
    """

    def __init__(self, app: Callable[[Request, Connection], None]) -> None:
        self._app = app
        self._buffer = bytearray()
        self._head: Request | None = None  # whose body is still incoming
        self._missing_bytes = 0
        self._busy = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Collect bytes, and answer complete requests."""
        self._buffer += data
        self._go_on()

    @property
    def is_open(self) -> bool:
        """Whether the client is still connected, as far as is known."""
        return not self._transport.is_closing()

    def send(self, request: Request, answer: Answer) -> None:
        """Answer the request, and continue with the next."""
        with_body = request.method != "HEAD"
        if with_body and len(answer.body) > _LONG_BODY_BYTES:
            self.write(answer.to_bytes(with_body=False))
            self.write(answer.body)
        else:
            self.write(answer.to_bytes(with_body=with_body))
        self.done()

    def write(self, data: bytes) -> None:
        """Send some bytes of a response."""
        if self.is_open:
            self._transport.write(data)

    def done(self) -> None:
        """Continue with the next request: this one is answered."""
        self._busy = False
        if self._buffer:
            asyncio.get_running_loop().call_soon(self._go_on)

    def end(self, *, reset: bool = False) -> None:
        """Close the connection after what was written, or reset it at once."""
        if not reset:
            self._transport.close()
            return
        connection = self._transport.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._transport.abort()

    def _go_on(self) -> None:
        while not self._busy and (request := self._take()) is not None:
            self._busy = True
            self._app(request, self)

    def _take(self) -> Request | None:
        """Return a complete request from the received bytes, if there is one."""
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return None
            head = bytes(self._buffer[: end + 4])
            del self._buffer[: end + 4]
            lines = head[:-4].decode("latin-1").split("\r\n")
            method, target, _ = lines[0].split(" ")
            headers = {}
            for line in lines[1:]:
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            self._head = Request(method, target, headers, b"", head)
            self._missing_bytes = int(headers.get("content-length", 0))
            if headers.get("transfer-encoding"):
                self.write(Answer(411, {"Connection": "close"}).to_bytes())
                self.end()
                return None
            if self._missing_bytes > len(self._buffer) and "expect" in headers:
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if len(self._buffer) < self._missing_bytes:
            return None
        request, self._head = self._head, None
        if self._missing_bytes:
            request.body = bytes(self._buffer[: self._missing_bytes])
            del self._buffer[: self._missing_bytes]
        return request


# -- processes -----------------------------------------------------------------------------------------------


def arguments(purpose: str | None) -> argparse.ArgumentParser:
    """Return a parser of the arguments that every server has."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--port", type=int, default=0, help="where to listen; 0, the default, for a free port")
    parser.add_argument("--tied", action="store_true", help="end when standard input does")
    return parser


def serve(app: Callable[[Request, Connection], None], given: argparse.Namespace) -> None:
    """Answer requests until the process ends; the address is printed once it can be used."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(app), "127.0.0.1", given.port, backlog=1024
        )
        print(f"listens on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await server.serve_forever()

    if given.tied:
        tie()
    asyncio.run(run())


def tie() -> None:
    """End this process when its standard input ends."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
