"""Faults between a client and a server: a proxy that breaks some requests, the same ones in every run.

Whether a request fails depends on the seed, on method, path and range, and on how often that was asked for
before: not on the clock, nor on what else is under way. The same path never fails more than some times in a row,
whatever range of it is asked for, so that retries can succeed.

=======  ===============================================================================================
kind     what happens
=======  ===============================================================================================
500      500 InternalError
503      503 SlowDown; the server never gets the request
reset    the connection is reset: at once, or after the head of the answer
short    the connection is closed after half of the body; if there is none, after half of the head
long     the body is shorter than Content-Length says, and the connection is closed
stall    no answer for some seconds, and the connection is closed
=======  ===============================================================================================

A write fails *before*, when the server knows nothing of it, or *after*: it is done, but the answer is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

from tests.servers.answers import Refused
from tests.servers.process import running
from tests.servers.s3 import Control
from tests.servers.wire import Answer, Connection, Request, arguments, serve

KINDS = ("500", "503", "reset", "short", "long", "stall")
_WRITES = ("PUT", "POST", "DELETE")
_LONGER_BYTES = 1000
_FRESH_SECONDS = 2.0  # a server closes connections that are idle for longer


@dataclass(frozen=True)
class Plan:
    """Which requests fail, and how."""

    rate: float = 0.05  # share of the requests that fail
    seed: int = 0  # decides which of them
    kinds: tuple[str, ...] = KINDS
    when: tuple[str, ...] = ("before", "after")  # for writes
    methods: str = ""  # only these, separated by spaces; "" for all
    paths: str = ""  # a pattern that is searched in path and query; "" for all
    most_in_a_row: int = 3  # failures of the same method and path
    stall_seconds: float = 2.0  # the wait of a stalled request


@dataclass(frozen=True, slots=True)
class Fault:
    """The fault of a request."""

    kind: str
    after: bool
    with_head: bool

    def __str__(self) -> str:
        return f"{self.kind} {'after' if self.after else 'before'}"


class Dice:
    """Draws faults by a plan."""

    def __init__(self, plan: Plan) -> None:
        assert set(plan.kinds) <= set(KINDS), plan.kinds
        assert set(plan.when) <= {"before", "after"}, plan.when
        self.plan = plan
        self._times: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()

    def draw(self, request: Request) -> Fault | None:
        """Draw the fault of a request."""
        plan, method = self.plan, request.method
        if (plan.methods and method not in plan.methods.split()) or not re.search(plan.paths, request.target):
            return None
        target = re.sub(r"uploadId=[^&]*", "uploadId=", request.target)  # the server generates it
        path = f"{method} {target}"
        place = f"{path} {request.headers.get('range', '')}{request.headers.get('x-ms-range', '')}"
        digest = hashlib.sha256(f"{plan.seed} {place} {self._times[place]}".encode()).digest()
        self._times[place] += 1
        if int.from_bytes(digest[:8]) >= plan.rate * 2**64 or self._in_a_row[path] >= plan.most_in_a_row:
            self._in_a_row[path] = 0
            return None
        self._in_a_row[path] += 1
        kind = plan.kinds[digest[8] % len(plan.kinds)]
        after = method in _WRITES and plan.when[digest[9] % len(plan.when)] == "after"
        if kind in ("short", "long"):
            after = True  # there is a response to cut
        elif kind == "503":
            after = False  # this response means that it was not done
        return Fault(kind, after, with_head=bool(digest[10] % 2))


@dataclass(slots=True)
class Reply:
    """The response of the server; a chunked body is joined."""

    status_line: str
    headers: list[tuple[str, str]]
    body: bytes

    def to_bytes(self, *, longer: int = 0) -> tuple[bytes, bytes]:
        """Return head and body; the head says `longer` bytes more than there are."""
        lines = [self.status_line]
        for name, value in self.headers:
            is_length = name.lower() == "content-length"
            lines.append(f"{name}: {int(value) + longer if is_length else value}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1"), self.body


class Upstream:
    """Connections to the server."""

    def __init__(self, endpoint: str) -> None:
        address = urlsplit(endpoint)
        self._host, self._port = address.hostname, address.port
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: Request) -> Reply:
        """Send the request unchanged and read the response; OSError if there is none."""
        reader, writer = await self._connect()
        try:
            writer.write(request.head + request.body)
            reply, stays = await self._read(request, reader)
        except (OSError, EOFError, ValueError) as error:
            writer.close()
            raise OSError(f"no answer from the server: {error}") from error
        if stays:
            self._idle.append((asyncio.get_running_loop().time(), reader, writer))
        else:
            writer.close()
        return reply

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        now = asyncio.get_running_loop().time()
        while self._idle:
            since, reader, writer = self._idle.pop()
            if now - since < _FRESH_SECONDS and not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port, limit=2**20)

    async def _read(self, request: Request, reader: asyncio.StreamReader) -> tuple[Reply, bool]:
        """Return a response, and whether the connection can be used again."""
        while True:
            lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
            if status >= 200:
                break
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
        named = {name.lower(): value.lower() for name, value in headers}
        stays = named.get("connection") != "close" and not lines[0].startswith("HTTP/1.0")
        if request.method == "HEAD" or status in (204, 304):
            return Reply(lines[0], headers, b""), stays
        if "chunked" in named.get("transfer-encoding", ""):
            body = await _read_chunks(reader)
        elif "content-length" in named:
            return Reply(lines[0], headers, await reader.readexactly(int(named["content-length"]))), stays
        else:
            body, stays = await reader.read(), False
        kept = [(name, value) for name, value in headers if name.lower() != "transfer-encoding"]
        return Reply(lines[0], [*kept, ("Content-Length", str(len(body)))], body), stays


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    pieces = []
    while size := int((await reader.readline()).partition(b";")[0], 16):
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while (await reader.readline()).strip():
        pass
    return b"".join(pieces)


class ProxyServer:
    """The proxy."""

    def __init__(self, upstream: str, plan: Plan) -> None:
        self._upstream = Upstream(upstream)
        self._dice = Dice(plan)
        self._counts: Counter[str] = Counter()
        self._log: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, request: Request, connection: Connection) -> None:
        """Pass a request on, or break it."""
        if request.target.startswith(Proxy._place):
            connection.send(request, self._control(request))
            return
        task = asyncio.get_running_loop().create_task(self._handle(request, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _control(self, request: Request) -> Answer:
        command = request.target.partition("?")[0].removeprefix(Proxy._place)
        result: object = None
        if command == "counts":
            result = self._counts
        elif command == "log":
            result = self._log
        elif command == "plan":
            self._dice = Dice(_plan_of(json.loads(request.query["plan"])))
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(result).encode())

    async def _handle(self, request: Request, connection: Connection) -> None:
        fault = self._dice.draw(request)
        self._counts[str(fault) if fault else "none"] += 1
        if fault is not None:
            self._log.append(f"{request.method} {request.target} {fault}")
        reads = request.method not in _WRITES
        needs_answer = fault is None or fault.after or (reads and fault.kind == "reset" and fault.with_head)
        try:
            reply = await self._upstream.ask(request) if needs_answer else None
        except OSError:
            connection.end(reset=True)
            return
        if fault is not None:
            await self._break(request, connection, fault, reply)
        elif reply is not None:
            head, body = reply.to_bytes()
            connection.write(head)
            connection.write(body)
            connection.done()

    async def _break(self, request: Request, connection: Connection, fault: Fault, reply: Reply | None) -> None:
        """Let a request fail; `reply` is the response of the server, if it was asked."""
        if fault.kind in ("500", "503"):
            code = "InternalError" if fault.kind == "500" else "SlowDown"
            connection.send(request, Refused(int(fault.kind), code, f"{code}, as the test wants it").answer())
            return
        if fault.kind == "stall":
            await asyncio.sleep(self._dice.plan.stall_seconds)
            connection.end()
            return
        if reply is not None:
            head, body = reply.to_bytes(longer=_LONGER_BYTES if fault.kind == "long" else 0)
            if fault.kind == "reset" and fault.with_head:
                connection.write(head)
                await asyncio.sleep(0.01)  # a reset overtakes bytes in flight
            elif fault.kind == "long" and request.method != "HEAD":
                connection.write(head + body)
            elif fault.kind == "short":
                connection.write(head + body[: len(body) // 2] if body else head[: len(head) // 2])
        connection.end(reset=fault.kind == "reset")


# -- clients -------------------------------------------------------------------------------------------------


class Proxied(Protocol):
    """A server that can be reached through a proxy."""

    @property
    def endpoint(self) -> str:
        """Where it listens."""

    def environment_at(self, endpoint: str) -> dict[str, str]:
        """The environment with which a process finds it at another endpoint."""


@dataclass(frozen=True)
class Proxy(Control):
    """A proxy in front of a server, and the plan of its faults."""

    _place: ClassVar[str] = "/-proxy-/"
    server: Proxied
    planned: Plan = field(default_factory=Plan)

    @property
    def environment(self) -> dict[str, str]:
        """The environment with which a process finds the server through the proxy."""
        return self.environment_at(self.endpoint)

    def environment_at(self, endpoint: str) -> dict[str, str]:
        """The same through a proxy that listens at `endpoint`."""
        return self.server.environment_at(endpoint)

    def counts(self) -> Counter[str]:
        """Count the requests by what happened to them: ``none``, ``500 before``, ``reset after`` and so on."""
        return Counter(self.ask("counts"))

    def n_faults(self) -> int:
        """Count the requests that were broken."""
        return sum(n for kind, n in self.counts().items() if kind != "none")

    def log(self) -> list[str]:
        """Return the requests that were broken, such as ``PUT /bucket/key reset after``."""
        return list(self.ask("log"))

    def plan(self, **options: Any) -> None:
        """Use another plan, with the parameters of `Plan`, and forget the requests so far."""
        self.ask("plan", plan=json.dumps(asdict(Plan(**options))))

    def calm(self) -> None:
        """Break nothing from now on."""
        self.plan(rate=0.0)


def _plan_of(given: Mapping[str, Any]) -> Plan:
    return Plan(**{**given, "kinds": tuple(given["kinds"]), "when": tuple(given["when"])})


@contextlib.contextmanager
def start_proxy(server: Proxied, **options: Any) -> Iterator[Proxy]:
    """Run a proxy in front of a server; `options` are the parameters of `Plan`."""
    plan = Plan(**options)
    with running("proxy", "--upstream", server.endpoint, "--plan", json.dumps(asdict(plan))) as endpoint:
        yield Proxy(endpoint, server, plan)


def main() -> None:
    """Serve until standard input ends."""
    parser = arguments("Break some of the requests to a server.")
    parser.add_argument("--upstream", required=True, help="address of the server")
    parser.add_argument("--plan", default="{}", help="the parameters of Plan, as JSON")
    given = parser.parse_args()
    plan = _plan_of({**asdict(Plan()), **json.loads(given.plan)})
    serve(ProxyServer(given.upstream, plan), given)


if __name__ == "__main__":
    main()
