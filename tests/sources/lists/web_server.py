"""A web server on this machine whose responses a test decides, and a resolver of made-up names."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from featurepress.errors import ImageError
from featurepress.sources.lists.web import Web

Answer = Callable[["Handler"], None]
DATA = b"\xff\xd8 an image " * 1000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append(self)
        self.server.answer(self)

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.seen: list[Handler] = []
        self.n_connections = 0

    def get_request(self) -> Any:
        self.n_connections += 1
        return super().get_request()

    def handle_error(self, *_: object) -> None:
        pass  # the clients of these tests hang up

    def url(self, path: str = "/a.jpg") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


@contextlib.contextmanager
def serving(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(answer)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def unguarded(**options: Any) -> Web:
    """Return a client that may connect to any address."""
    return Web(is_refused=lambda address: False, **options)


def get(web: Web, url: str, *, timeout_seconds: float = 10.0, max_bytes: int = 10_000_000) -> bytes:
    return web.fetch(url, timeout_seconds=timeout_seconds, max_bytes=max_bytes)


def failure(web: Web, url: str, **limits: Any) -> str:
    with pytest.raises(ImageError) as caught:
        get(web, url, **limits)
    assert caught.value.stage == "read"
    assert "secret" not in caught.value.reason
    return caught.value.reason


class Names:
    """A resolver of names with underscores for dots; several lists of addresses are used one after the other."""

    def __init__(self, **names: list[list[str]]) -> None:
        self.names = names
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        known = self.names.get(host.replace(".", "_"))
        if known is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        addresses = known.pop(0) if len(known) > 1 else known[0]
        family = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [
            (family[ipaddress.ip_address(address).version], socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]
